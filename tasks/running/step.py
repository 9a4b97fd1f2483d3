"""`@step`: fingerprint -> cache -> stage -> commit.

A step is a function of config sections and of artifacts made by other steps. Its fingerprint is known before anything
runs, because it is made of the fingerprints of its inputs, not of their content. So a whole run can be planned, with
the reason for every step that must run, without touching a GPU.

    @step(version=1, pool="gpu", table=schema.OUTPUTS, outside=lambda *, model: {"model": model_digest(model)})
    def generate(ctx: Context, *, model: ModelConfig, config: GenerateConfig, examples: Ref) -> None:
        ...writes outputs.parquet below ctx.out...

The declaration is all that other parts need to know of a step: its deployment and the form of a run (`flows.steps`,
`flows.deployment`, `flows.form`) and `ssr why --row` follow from it. What remains is the line in `flows.rehearsal` that
says when the step runs. Not covered: how Prefect runs a step (`flows.execution.step_task`).
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import shlex
import socket
import time
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from tasks.artifacts import unfinished
from tasks.artifacts.claims import claimed
from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files
from tasks.config import Section
from tasks.errors import SsrError, StepError
from tasks.running import progress
from tasks.running.context import Context
from tasks.running.process import run_in_process
from tasks.tables import schema
from tasks.wording import counts_in_words

__all__ = ["STEPS", "Context", "Planned", "Step", "as_input", "retry_hint", "step"]
logger = logging.getLogger(__name__)

Launcher = Callable[..., list[str]]
Outside = Callable[..., Mapping[str, Any]]  # Any: JSON values
Pool = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Planned:
    """A step with everything it needs, not yet run.

    Attributes:
        label: The name of the step within the run, e.g. `train sft-5e-4`.
        identity: What the fingerprint is the digest of.
        sections: The full config that the step runs with, as JSON values.
    """

    step: Step
    label: str
    ref: Ref
    identity: dict[str, Any]  # Any: JSON values
    sections: dict[str, Any]  # Any: JSON values
    inputs: dict[str, Ref]

    def execute(self, store: Store, *, force: bool = False) -> Ref:
        """Run the step in this process, or reuse its artifact; see `Step.execute`."""
        return self.step.execute(store, self, force=force)

    def reusable(self, store: Store) -> Manifest | None:
        """The manifest of the artifact if it is intact and was made from the inputs as they are now; else None."""
        manifest = store.verified(**self.ref)
        if manifest is None or any(
            digest != manifest.input_digests.get(name) for name, digest in _input_digests(store, self.inputs).items()
        ):
            return None
        return manifest

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """The planned step as JSON values, for a process that knows the step by its name. It never holds a secret."""
        return {
            "step": self.step.name, "label": self.label, "fingerprint": self.ref["fingerprint"],
            "sections": self.sections, "inputs": self.inputs, "identity": self.identity,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Planned:  # Any: JSON values
        """The planned step that `to_json` has written."""
        ref = Ref(step=values["step"], fingerprint=values["fingerprint"])
        step = STEPS[values["step"]]
        return cls(step, values["label"], ref, values["identity"], values["sections"], values["inputs"])


def retry_hint(label: str, counts: Mapping[str, int]) -> str:
    """How to retry the failed rows of a finished step, which no later run does by itself; "" without such rows."""
    n = counts.get("rows_retryable", 0)
    rows = "row" if n == 1 else "rows"
    return f"{n:,} failed {rows} may succeed on another try: --force {shlex.quote(label)}" if n else ""


def as_input(ref: Ref) -> Planned:
    """An artifact of the store as the input of a step to plan. It cannot be executed."""

    def refuse(ctx: Context) -> None:
        raise StepError(f"{ref['step']}/{ref['fingerprint']}: only a reference. Run the recipe that makes it.")

    return Planned(Step(ref["step"], 0, refuse), "", ref, {}, {}, {})


def _nothing(**sections: Section) -> dict[str, Any]:  # Any: JSON values
    return {}


@dataclass(frozen=True)
class Step:
    """A versioned function from config and artifacts to an artifact. Made by `@step`, which explains its fields."""

    name: str
    version: int
    body: Callable[..., None]
    outside: Outside = _nothing
    launcher: Launcher | None = None
    pool: Pool = "cpu"
    table: pa.Schema | None = None

    @property
    def table_name(self) -> str | None:
        """The name of the table that the step writes, e.g. `outputs` for `outputs.parquet`."""
        return self.table.metadata[b"table"].decode() if self.table is not None else None

    def plan(self, label: str = "", /, **parts: Section | Planned) -> Planned:
        """Compute the fingerprint for these sections and inputs.

        Raises:
            SsrError: What enters from outside (a dataset, a model) is not there.
        """
        sections = {key: part for key, part in parts.items() if isinstance(part, Section)}
        inputs = {key: part.ref for key, part in parts.items() if isinstance(part, Planned)}
        identity = {
            "step": self.name, "version": self.version,
            "config": {key: section.identity() for key, section in sections.items()},
            "inputs": {key: ref["fingerprint"] for key, ref in inputs.items()},
            "outside": dict(self.outside(**sections)),
        }  # fmt: skip
        ref = Ref(step=self.name, fingerprint=digest_of(identity))
        as_json = {key: section.model_dump(mode="json") for key, section in sections.items()}
        return Planned(self, label or self.name, ref, identity, as_json, inputs)

    def execute(self, store: Store, planned: Planned, *, force: bool = False) -> Ref:
        """Make the artifact unless the store has one that is reusable.

        While another worker makes the same artifact, this one waits and then reuses it.

        Raises:
            SsrError: As the body raised it.
            StepError: Any other failure of the body, with its cause.
        """
        if not force and _reused(store, planned):
            return planned.ref
        with claimed(store, planned.ref):
            if force or not _reused(store, planned):
                self._make(store, planned, force=force)
        return planned.ref

    def _make(self, store: Store, planned: Planned, *, force: bool) -> None:
        label = planned.label
        progress.tell(lambda listener: listener.started(label))
        started = time.time()
        with store.staging(**planned.ref) as out:
            # Read before the body runs: an input that is replaced meanwhile makes this artifact stale.
            made_from = _input_digests(store, planned.inputs)
            # A forced try resumes only a forced one: what an ordinary try has left may be the reason for the force.
            unfinished.keep_only_if(store, planned.ref, f"{digest_of(made_from)}{' forced' if force else ''}")
            context = Context(store, planned.ref, out, planned.inputs, progress=_announce(label), force=force)
            try:
                self._run_body(context, planned)
                self._check_table(out)
            except FileNotFoundError as error:
                raise StepError(f"{label}: {error}. Run the same command again.") from error
            seconds = round(time.time() - started, 3)
            facts = {"started": started, "seconds": seconds, **_circumstances(), **context.facts}
            manifest = Manifest(
                planned.step.name, planned.ref["fingerprint"], planned.identity, planned.inputs, describe_files(out),
                made_from, dict(context.counts), facts,
            )  # fmt: skip
            store.publish(out, manifest)
        store.done_with_work(**planned.ref)
        logger.info("%s: %s in %.1f s", label, counts_in_words(context.counts), seconds)
        if hint := retry_hint(label, context.counts):
            logger.warning("%s: %s", label, hint)
        progress.tell(lambda listener: listener.finished(label, context.counts, seconds))

    def _run_body(self, context: Context, planned: Planned) -> None:
        if self.launcher is None:
            self.call(context, planned.sections)
            return
        spec = {
            "module": self.body.__module__, "store": context.store.uri, "ref": planned.ref, "out": str(context.out),
            "sections": planned.sections, "inputs": planned.inputs, "force": context.force,
        }  # fmt: skip
        launcher = self.launcher(**self._typed(planned.sections))
        result = run_in_process(spec, context.work / "spec.json", launcher=launcher, progress=context.progress)
        context.counts |= result.counts
        context.facts |= result.facts

    def _check_table(self, out: Path) -> None:
        """Check that the body wrote the table that `@step` declares, with its schema."""
        if self.table is None:
            return
        path = out / f"{self.table_name}.parquet"
        if not path.exists():
            raise StepError(
                f"{self.name}: @step declares table={self.table_name}, but the body wrote no {path.name}. Write it, or "
                "declare table=None."
            )
        schema.count_rows(path, self.table)

    def call(self, context: Context, sections: Mapping[str, Any]) -> None:  # Any: JSON values
        """Run the body here, with sections given as JSON values.

        Raises:
            SsrError: As the body raised it.
            StepError: Any other failure, with its cause.
        """
        try:
            self.body(context, **self._typed(sections), **context.inputs)
        except (SsrError, OSError):
            raise
        except Exception as error:
            raise StepError(f"{self.name}: {type(error).__name__}: {error}") from error

    def _typed(self, sections: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values; sections
        hints = typing.get_type_hints(self.body)
        return {key: hints[key].model_validate(value) for key, value in sections.items()}


def _reused(store: Store, planned: Planned) -> bool:
    """Whether the artifact is reusable. If it is, the listeners are called."""
    found = planned.reusable(store)
    if found is None:
        return False
    progress.tell(lambda listener: listener.reused(planned.label, found.counts))
    return True


def _input_digests(store: Store, inputs: Mapping[str, Ref]) -> dict[str, str]:
    manifests = {name: store.manifest(**ref) for name, ref in inputs.items()}
    return {name: manifest.content_digest for name, manifest in manifests.items() if manifest}


STEPS: dict[str, Step] = {}


def step(
    *, version: int, pool: Pool, table: pa.Schema | None, outside: Outside = _nothing, launcher: Launcher | None = None
) -> Callable[[Callable[..., None]], Step]:
    """Make a function a step, and register it under the name of the function.

    Args:
        version: Raise it when the same inputs give other bytes than before.
        pool: The work pool that the step's deployment runs on: gpu for a step that loads a model.
        table: The schema (`tasks.tables.schema`) of the main table that the body writes as `<table>.parquet`; None for
            a step without one. Of a table with an `example_id`, `ssr why --row` shows the rows.
        outside: From the same sections, the content digests of what enters from outside the store.
        launcher: From the same sections, the command that starts the body in a process of its own
            (`tasks.running.process`). None: the body runs in the process of the flow.

    Raises:
        ValueError: The name is taken, there is no such pool, or the schema is not of a table.
    """

    def decorate(body: Callable[..., None]) -> Step:
        name = body.__name__
        if name in STEPS:
            taken = f"{STEPS[name].body.__module__}.{name}"
            raise ValueError(f"step {name}: {taken} has this name already. Rename one of the two functions.")
        if pool not in get_args(Pool):
            raise ValueError(f"step {name}: there is no pool {pool!r}. Declare one of: {', '.join(get_args(Pool))}.")
        if table is not None and b"table" not in (getattr(table, "metadata", None) or {}):
            raise ValueError(f"step {name}: table is {table!r}. Declare a schema of tasks.tables.schema, or None.")
        STEPS[name] = Step(name, version, body, outside, launcher, pool, table)
        return STEPS[name]

    return decorate


def _announce(label: str) -> progress.Progress:
    def announce(done: int, total: int, detail: str = "") -> None:
        progress.tell(lambda listener: listener.progress(label, done, total, detail))

    return announce


_RECORDED = ("torch", "transformers", "trl", "peft", "lm_eval", "pyarrow", "duckdb", "prefect")


@functools.cache
def _circumstances() -> dict[str, Any]:  # Any: JSON values
    versions = {}
    for name in ("selective-self-rehearsal", *_RECORDED):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "host": socket.gethostname(), "python": platform.python_version(), "cores": os.cpu_count(),
        "versions": versions,
    }  # fmt: skip
