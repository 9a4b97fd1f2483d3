"""Runs the steps of a rehearsal as Prefect tasks, each cached by its fingerprint: here, or on other machines."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

from prefect.exceptions import UnfinishedRun
from prefect.filesystems import RemoteFileSystem
from prefect.futures import PrefectFuture, as_completed
from prefect.results import ResultStorage

from flows.execution.children import Children
from flows.execution.devices import steps_at_a_time
from flows.execution.prefect_ui import StepProgress
from flows.execution.step_task import Execute, execute_here, step_task
from flows.rehearsal import force_names
from tasks.artifacts.digest import digest_of
from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.store import Manifest, Ref, Store, open_store
from tasks.config import Section
from tasks.errors import SsrError, StepError
from tasks.running.progress import tell
from tasks.running.step import Planned, Step


class RunOptions(NamedTuple):
    """How the steps of a run are executed.

    Attributes:
        forced: Steps to run again although the store has their artifacts, by name or label.
        since: Seconds since 1970. An artifact that was made later is not forced again, so that a retry of the run
            continues where the first try ended.
        workers: How many steps may be unfinished at a time. On this machine it is one if there is a GPU.
        execute: Executes a step on another machine. None: steps are executed in this process.
    """

    forced: frozenset[str]
    since: float
    workers: int
    execute: Execute | None = None


class PrefectRunner:
    """The runner of a rehearsal that submits each step as a Prefect task.

    Attributes:
        planned: The steps that were submitted, in order and without doubles.
    """

    def __init__(self, store: Store, options: RunOptions) -> None:
        self._store = store
        self._options = options
        self._n_at_a_time = options.workers if options.execute else steps_at_a_time(options.workers)
        self._records = _records_of(store)
        self._futures: dict[str, PrefectFuture[Ref]] = {}
        self._unfinished: list[PrefectFuture[Ref]] = []
        self._refreshed: set[str] = set()
        self.planned: list[Planned] = []

    def __call__(self, step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        """Submit the step, unless the run has it already, and return it planned; see `flows.rehearsal.Runner`."""
        planned = step.plan(label, **parts)
        fingerprint = planned.ref["fingerprint"]
        if fingerprint in self._futures:  # two arms that share a step
            return planned
        self._wait_for_a_place()
        reusable = planned.reusable(self._store)
        force = self._is_forced(planned, after, reusable)
        upstream = [ref["fingerprint"] for ref in planned.inputs.values()]
        # A step that runs again may write other bytes. So Prefect's records of the steps after it must not count; such
        # a step itself compares the digests of its inputs with those in its manifest.
        waited = [*upstream, *([after.ref["fingerprint"]] if after else [])]
        refresh = force or bool(self._refreshed.intersection(waited)) or reusable is None
        if refresh:
            self._refreshed.add(fingerprint)
        elif reusable:
            tell(lambda listener: listener.reused(planned.label, reusable.counts))
        execute = self._options.execute or execute_here
        future = step_task(planned, refresh=refresh, records=self._records, execute=execute).submit(
            planned=planned.to_json(), store=self._store.uri, force=force,
            wait_for=[self._futures[f] for f in waited if f in self._futures],  # artifacts of earlier runs have none
        )  # fmt: skip
        self._futures[fingerprint] = future
        self._unfinished.append(future)
        self.planned.append(planned)
        return planned

    def _is_forced(self, planned: Planned, after: Planned | None, reusable: Manifest | None) -> bool:
        made_by_this_run = reusable is not None and reusable.facts.get("started", 0.0) >= self._options.since
        return bool(force_names(planned, after) & self._options.forced) and not made_by_this_run

    def _wait_for_a_place(self) -> None:
        # Only futures are counted: the server learns late that a task has ended.
        while len(self._unfinished) >= self._n_at_a_time:
            self._unfinished.remove(next(as_completed(self._unfinished)))

    def wait(self) -> None:
        """Wait for every step.

        Raises:
            SsrError: What the first failed step raised; a StepError if that was not an error of ours.
        """
        failures: list[Exception] = []
        for planned in self.planned:
            try:
                self._futures[planned.ref["fingerprint"]].result()
            except (UnfinishedRun, CancelledError):
                continue  # never started, because a step before it failed
            except Exception as error:
                failures.append(error)
        if failures:
            first = failures[0]
            raise first if isinstance(first, SsrError) else StepError(f"{type(first).__name__}: {first}") from first


def _records_of(store: Store) -> ResultStorage:
    """Where Prefect keeps its records of cached tasks: in the store, so that every machine finds them.

    On S3 that must be a block which the server knows. The block holds no credentials.
    """
    if isinstance(store, LocalStore):
        return Path(store.root) / "prefect"
    name = f"ssr-{digest_of(store.uri)[:16]}"
    block = RemoteFileSystem(basepath=f"{store.uri}/prefect")
    block.save(name, overwrite=True)
    return block


def execute_by_deployment(children: Children, *, threads: int | None, store_access: str) -> Execute:
    """A function that has a planned step executed by the step's own deployment, unless its artifact is reusable.

    Args:
        threads: CPU threads of the step's process; None: as many as its libraries choose.
        store_access: Name of the block with the store's credentials; "": the worker has its own.
    """

    def execute(planned: dict[str, Any], store: str, force: bool) -> Ref:  # Any: JSON values
        step, opened = Planned.from_json(planned), open_store(store)
        if not force and step.reusable(opened):
            return step.ref  # made by a child of an earlier try of this run, which outlived that try
        parameters = {
            "planned": planned, "store": store, "force": force, "threads": threads, "store_access": store_access
        }  # fmt: skip
        began = time.time()

        def announce(progress: StepProgress) -> None:
            tell(lambda listener: listener.progress(step.label, *progress))

        tell(lambda listener: listener.started(step.label))
        children.run(step, parameters, on_progress=announce)
        made = step.reusable(opened)
        if made is None:
            raise StepError(
                f"{step.label}: its run on another worker has completed, but {opened.link(step.ref)} is not there. "
                "Give a store that means the same place on all workers, such as s3://bucket/prefix."
            )
        tell(lambda listener: listener.finished(step.label, made.counts, time.time() - began))
        return step.ref

    return execute
