"""The kinds of engines, each declared once: what runs a model, which settings it reads, what it can measure.

To add a kind, write the function that opens it in `tasks/engines/`, and declare the kind at the end of this file. A
setting that only the new kind reads is one more field of `EngineConfig` (`tasks/config/model.py`). A declaration that
is not complete fails when `tasks.config` or `tasks.engines` is imported.

Functions are named here and not imported, because `tasks.config` checks recipes with this file, and engines in turn
import `tasks.config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name

DEFAULT_KIND = "transformers"


@dataclass(frozen=True)
class EngineKind:
    """One way to run a model. Functions are named as `module:function`.

    Attributes:
        name: The value of `engine.kind` in a recipe.
        description: What runs the model, and where. Stands in the form in the Prefect UI and in the reference.
        opens: The function that opens an engine; it takes and returns what `tasks.engines.open_engine` does.
        loads_weights: Whether the model is loaded on this machine. Otherwise only the model's name is known, no device
            here is used, and no adapter can be put on it, so an engine of the default kind measures base and arms.
        reads: The fields of `EngineConfig` that have an effect. A recipe that sets another one is refused.
        needs: Those of them that a recipe must set.
        shares: The function that starts one server for the base model and several adapters, which takes and returns
            what `tasks.engines.shared_server` does. None: base and arms are measured one at a time.
        finds_environment: The function that returns the path of the environment that the kind needs beside the
            project's own, or raises a ConfigError that says how to set it up; for `ssr doctor`. None: it needs none.
    """

    name: str
    description: str
    opens: str
    loads_weights: bool
    reads: tuple[str, ...]
    needs: tuple[str, ...] = ()
    shares: str | None = None
    finds_environment: str | None = None

    @property
    def makes_copies(self) -> bool:
        """Whether several GPUs can each have a copy of the model."""
        return "data_parallel" in self.reads


_KINDS: dict[str, EngineKind] = {}


def register(kind: EngineKind) -> None:
    """Make an engine kind known.

    Raises:
        ValueError: The declaration contradicts itself, or its name is taken.
    """
    if kind.name in _KINDS:
        raise ValueError(f"engine kind {kind.name}: this name is declared twice. Give one of the two another name.")
    if unread := sorted(set(kind.needs) - set(kind.reads)):
        raise ValueError(f"engine kind {kind.name}: it needs {', '.join(unread)}. List that under `reads`, too.")
    if kind.shares and not kind.loads_weights:
        raise ValueError(f"engine kind {kind.name}: without weights here it takes no adapters. Remove `shares`.")
    _KINDS[kind.name] = kind


def engine_kinds() -> tuple[EngineKind, ...]:
    """All kinds, in the order of their declarations."""
    return tuple(_KINDS.values())


def engine_kind(name: str) -> EngineKind:
    """The kind of this name.

    Raises:
        ValueError: There is none.
    """
    if name not in _KINDS:
        raise ValueError(f"there is no such engine kind. Set it to one of {', '.join(_KINDS)}.")
    return _KINDS[name]


def described() -> str:
    """All kinds with their descriptions, for the description of a field in which one is chosen."""
    return "; ".join(f"{kind.name}: {kind.description}" for kind in engine_kinds())


def check_fields(known: set[str]) -> None:
    """Check that `EngineConfig` has every field that a kind reads, and that some kind reads every field it has.

    Args:
        known: The fields of `EngineConfig`, without `kind`.

    Raises:
        ValueError: A field is missing, or no kind reads it.
    """
    for kind in engine_kinds():
        if missing := sorted(set(kind.reads) - known):
            raise ValueError(
                f"engine kind {kind.name} reads {', '.join(missing)}, which EngineConfig does not have. Add the field "
                "in tasks/config/model.py, or correct `reads`."
            )
    if unread := sorted(known.difference(*(kind.reads for kind in engine_kinds()))):
        raise ValueError(f"EngineConfig.{unread[0]}: no engine kind reads it. List it under `reads` of one that does.")


def check_functions() -> None:
    """Check that every function that a kind names is there.

    Raises:
        ValueError: One is missing.
    """
    for kind in engine_kinds():
        for part in ("opens", "shares", "finds_environment"):
            if (named := getattr(kind, part)) is not None:
                try:
                    resolve_name(named)
                except (ImportError, AttributeError, ValueError) as error:
                    raise ValueError(
                        f"engine kind {kind.name}: {part}={named!r} names no function ({error}). Write the function, "
                        "or correct its name in tasks/engine_kinds.py (module:function)."
                    ) from error


_OF_CLIENTS = ("concurrency", "timeout_seconds")

register(EngineKind(
    DEFAULT_KIND, "in the process of the step, also without a GPU",
    opens="tasks.engines.transformers:open_transformers", loads_weights=True, reads=("batch_tokens",),
))  # fmt: skip
register(EngineKind(
    "vllm", "a vLLM server that the step starts, for GPUs", opens="tasks.engines.vllm:open_vllm", loads_weights=True,
    reads=(
        "python", "tensor_parallel", "data_parallel", "memory_share", "max_context", "quantization", "extra_args",
        "start_timeout_seconds", *_OF_CLIENTS,
    ),
    shares="tasks.engines.vllm:shared_vllm", finds_environment="tasks.engines.vllm_server:find_python",
))  # fmt: skip
register(EngineKind(
    "openai", "OpenAI-compatible servers that are running already, at the addresses in `urls`",
    opens="tasks.engines.openai:open_openai", loads_weights=False,
    reads=("urls", "served_model", "api_key_env", *_OF_CLIENTS), needs=("urls",),
))  # fmt: skip
