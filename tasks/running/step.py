"""`@step`: fingerprint -> cache -> stage -> commit. The one place in `tasks/` that knows Prefect.

A step is a function of config sections and of artifacts made by other steps. Its fingerprint is known before anything
runs, because it is made of the fingerprints of its inputs, not of their content; so a whole run can be planned, with
the reason for every step that must run, without touching a GPU.

    @step(version=1, outside=lambda *, model: {"model": model_digest(model)})
    def generate(ctx: Context, *, model: ModelConfig, config: GenerateConfig, examples: Ref) -> None:
        ...writes files below ctx.out...
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import platform
import shlex
import socket
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts import unfinished
from tasks.artifacts.claims import claimed
from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import Section
from tasks.errors import SsrError, StepError
from tasks.running import progress
from tasks.running.process import run_in_process

if TYPE_CHECKING:
    from prefect import Task
    from prefect.context import TaskRunContext
    from prefect.results import ResultStorage

logger = logging.getLogger(__name__)

Launcher = Callable[..., list[str]]
Outside = Callable[..., Mapping[str, Any]]  # Any: JSON values


@dataclass
class Context:
    """What a step's body works with.

    Attributes:
        ref: The artifact being made.
        out: Write files here; they become the artifact.
        inputs: The artifacts it is made from, by parameter name.
        counts: Whole numbers for the manifest; `account` checks that rows add up.
        facts: Other measured values for the manifest.
        progress: Call it with (done, total, detail).
        force: It is made again though it was there: nothing that was measured before may stand in for it, and rows
            that failed are asked for again.
    """

    store: Store
    ref: Ref
    out: Path
    inputs: dict[str, Ref]
    progress: progress.Progress = progress.silent
    force: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # Any: JSON values

    @functools.cached_property
    def work(self) -> Path:
        """A folder that outlives a killed step, for checkpoints; removed when the step is done."""
        return self.store.work_folder(**self.ref)

    def path(self, ref: Ref, name: str) -> Path:
        """A local path of one file of an input."""
        return self.store.fetch(ref) / name

    def counts_of(self, ref: Ref) -> dict[str, int]:
        """The counts in the manifest of an input.

        Raises:
            StepError: It is gone.
        """
        manifest = self.store.manifest(**ref)
        if manifest is None:
            raise StepError(f"{self.store.link(ref)}: gone while {self.ref['step']} ran. Run the same command again.")
        return manifest.counts

    def account(self, rows_in: int, kept: int, dropped: Mapping[str, int]) -> None:
        """Record where every row went.

        Raises:
            StepError: They do not add up: a row was lost or doubled, which is a defect of this program.
        """
        total = kept + sum(dropped.values())
        if rows_in != total:
            raise StepError(f"{self.ref['step']}: {rows_in} rows in, but {kept} kept + {dict(dropped)} = {total}")
        self.counts |= {"rows_in": rows_in, "rows_out": kept}
        self.counts |= {f"dropped.{reason}": n for reason, n in sorted(dropped.items())}


@dataclass(frozen=True)
class Planned:
    """A step with everything it needs, not yet run.

    Attributes:
        label: Its name within the run, e.g. `train sft-5e-4`.
        identity: What the fingerprint is the digest of.
        sections: The full config it runs with, as JSON values.
    """

    step: Step
    label: str
    ref: Ref
    identity: dict[str, Any]  # Any: JSON values
    sections: dict[str, Any]  # Any: JSON values
    inputs: dict[str, Ref]

    def execute(self, store: Store, *, force: bool = False) -> Ref:
        """Run it here and now, or reuse what the store holds."""
        return self.step.execute(store, self, force=force)

    def reusable(self, store: Store) -> Manifest | None:
        """The manifest of the artifact if it can be used as it is: there, intact, and made from what is there now."""
        manifest = store.verified(**self.ref)
        if manifest is None or any(
            digest != manifest.input_digests.get(name) for name, digest in _input_digests(store, self.inputs).items()
        ):
            return None
        return manifest


def another_try(label: str, counts: Mapping[str, int]) -> str:
    """What may become of the failed rows of a step that is done: by itself it is not made again. "" if nothing may."""
    n = counts.get("rows_retryable", 0)
    rows = "row" if n == 1 else "rows"
    return f"{n:,} failed {rows} may succeed on another try: --force {shlex.quote(label)}" if n else ""


def as_input(ref: Ref) -> Planned:
    """An artifact that is there, as an input of a step to plan. It cannot be made from this."""

    def made_elsewhere(ctx: Context) -> None:
        raise StepError(f"{ref['step']}/{ref['fingerprint']}: only a reference. Run the recipe that makes it.")

    return Planned(Step(ref["step"], 0, made_elsewhere, lambda **sections: {}, None), "", ref, {}, {}, {})


@dataclass(frozen=True)
class Step:
    """A named, versioned function from config and artifacts to an artifact. Made by `@step`."""

    name: str
    version: int
    body: Callable[..., None]
    outside: Outside
    launcher: Launcher | None

    def plan(self, label: str = "", /, **parts: Section | Planned) -> Planned:
        """Work out the fingerprint for these sections and inputs.

        Raises:
            SsrError: What enters from outside (a dataset, a model) is not there.
        """
        sections = {key: part for key, part in parts.items() if isinstance(part, Section)}
        inputs = {key: part.ref for key, part in parts.items() if isinstance(part, Planned)}
        identity = {
            "step": self.name,
            "version": self.version,
            "config": {key: section.identity() for key, section in sections.items()},
            "inputs": {key: ref["fingerprint"] for key, ref in inputs.items()},
            "outside": dict(self.outside(**sections)),
        }
        ref = Ref(step=self.name, fingerprint=digest_of(identity))
        as_json = {key: section.model_dump(mode="json") for key, section in sections.items()}
        return Planned(self, label or self.name, ref, identity, as_json, inputs)

    def execute(self, store: Store, planned: Planned, *, force: bool = False) -> Ref:
        """Make the artifact unless it is there, intact, and made from the inputs as they are now.

        While another worker makes it, this one waits, and then finds it made.

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
        for listener in progress.listeners():
            listener.started(label)
        started = time.time()
        with store.staging(**planned.ref) as out:
            # Of now: should an input be made again meanwhile, this is not made from it.
            made_from = _input_digests(store, planned.inputs)
            # A forced try goes on from a forced one alone: what it would find may be why it is forced.
            unfinished.keep_only_if(store, planned.ref, f"{digest_of(made_from)}{' forced' if force else ''}")
            context = Context(store, planned.ref, out, planned.inputs, progress=_announce(label), force=force)
            try:
                self._run_body(context, planned)
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
        logger.info("%s: %s in %.1f s", label, _in_words(context.counts), seconds)
        if hint := another_try(label, context.counts):
            logger.warning("%s: %s", label, hint)
        for listener in progress.listeners():
            listener.finished(label, context.counts, seconds)

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

    def task(
        self, planned: Planned, *, refresh: bool, records: ResultStorage, body: Callable[..., Ref] | None = None
    ) -> Task[..., Ref]:
        """This step as a Prefect task whose cache key is the fingerprint.

        Args:
            refresh: Ignore Prefect's record. Prefect never looks at our files: when the manifest is gone or damaged,
                its record must not count.
            records: Where Prefect keeps its records.
            body: Called with `task_parameters`; default: run the step here.
        """
        from prefect import task

        return task(
            name=self.name,
            version=str(self.version),
            description=inspect.getdoc(self.body),
            task_run_name=planned.label,
            cache_key_fn=_cache_key,
            refresh_cache=refresh,
            persist_result=True,
            result_serializer="json",
            result_storage=records,
        )(body or execute_here)


def execute_here(
    fingerprint: str, step: str, label: str, store: str, sections: dict[str, Any], inputs: dict[str, Ref],
    identity: dict[str, Any], force: bool,
) -> Ref:  # Any: JSON values  # fmt: skip
    """Run a step that was planned elsewhere, given as `task_parameters`."""
    planned = Planned(STEPS[step], label, Ref(step=step, fingerprint=fingerprint), identity, sections, inputs)
    return planned.execute(open_store(store), force=force)


def _reused(store: Store, planned: Planned) -> bool:
    """Whether the artifact can be used as it is; then the listeners are told."""
    found = planned.reusable(store)
    if found is None:
        return False
    for listener in progress.listeners():
        listener.reused(planned.label, found.counts)
    return True


def _input_digests(store: Store, inputs: Mapping[str, Ref]) -> dict[str, str]:
    manifests = {name: store.manifest(**ref) for name, ref in inputs.items()}
    return {name: manifest.content_digest for name, manifest in manifests.items() if manifest}


def task_parameters(planned: Planned, store: Store, *, force: bool) -> dict[str, Any]:  # Any: JSON values
    """What the Prefect task of a planned step is called with: public, so never a secret."""
    return {
        "fingerprint": planned.ref["fingerprint"], "step": planned.step.name, "label": planned.label,
        "store": store.uri, "sections": planned.sections, "inputs": planned.inputs, "identity": planned.identity,
        "force": force,
    }  # fmt: skip


def _cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:  # Any: as Prefect passes them
    return str(parameters["fingerprint"])


STEPS: dict[str, Step] = {}


def step(
    *, version: int, outside: Outside = lambda **sections: {}, launcher: Launcher | None = None
) -> Callable[[Callable[..., None]], Step]:
    """Make a function a step.

    Args:
        version: Raise it when the same inputs give other bytes than before.
        outside: From the same sections, the content digests of what enters from outside the store.
        launcher: Run the body in a process of its own, started by what this makes of the sections; see
            `tasks.running.process`.
    """

    def decorate(body: Callable[..., None]) -> Step:
        made = Step(body.__name__, version, body, outside, launcher)
        STEPS[made.name] = made
        return made

    return decorate


def _announce(label: str) -> progress.Progress:
    def announce(done: int, total: int, detail: str = "") -> None:
        for listener in progress.listeners():
            listener.progress(label, done, total, detail)

    return announce


_NOTED = ("torch", "transformers", "trl", "peft", "lm_eval", "pyarrow", "duckdb", "prefect")


@functools.cache
def _circumstances() -> dict[str, Any]:  # Any: JSON values
    versions = {}
    for name in ("selective-self-rehearsal", *_NOTED):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "host": socket.gethostname(), "python": platform.python_version(), "cores": os.cpu_count(),
        "versions": versions,
    }  # fmt: skip


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items()) or "done"
