"""From the engine section of a recipe to an engine that answers, for as long as it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name

from tasks.config import EngineConfig, ModelConfig
from tasks.engine_kinds import check_functions, engine_kind
from tasks.engines.base import Engine
from tasks.errors import ConfigError


def open_engine(
    model: ModelConfig, config: EngineConfig, *, work: Path, adapter: Path | None = None
) -> AbstractContextManager[Engine]:
    """The engine for a model; when it is closed, what it started is gone and the device is free.

    Args:
        work: Folder for the log of a server that is started.
        adapter: LoRA folder on top of the model.

    Raises:
        ConfigError: What the kind of engine needs is not set up, a key is missing, or the kind takes no adapter.
        StepError: A server does not come up, or does not answer.
    """
    kind = engine_kind(config.kind)
    if adapter is not None and not kind.loads_weights:
        raise ConfigError(f"engine.kind={kind.name}: an adapter cannot be put on a server elsewhere. Use vllm.")
    opened: AbstractContextManager[Engine] = resolve_name(kind.opens)(model, config, work=work, adapter=adapter)
    return opened


def shared_server(
    model: ModelConfig, config: EngineConfig, *, work: Path, adapters: Mapping[str, Path]
) -> AbstractContextManager[None]:
    """Start one server for a model and several adapters; `open_engine` uses it while it runs, in this process.

    Args:
        config: Of a kind that shares a server (`EngineKind.shares`).
        adapters: LoRA folders by the name under which the server has them.
    """
    shares = engine_kind(config.kind).shares
    if shares is None:
        raise ConfigError(f"engine.kind={config.kind}: it does not measure several models on one server.")
    server: AbstractContextManager[None] = resolve_name(shares)(model, config, work=work, adapters=adapters)
    return server


check_functions()
