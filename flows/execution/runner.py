"""Runs the steps of a rehearsal as Prefect tasks, each cached by its fingerprint: here, or on other machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

from prefect.exceptions import UnfinishedRun
from prefect.filesystems import RemoteFileSystem
from prefect.futures import PrefectFuture, as_completed
from prefect.results import ResultStorage

from flows.execution.children import Children
from flows.execution.devices import steps_at_a_time
from flows.execution.prefect_ui import HowFar
from flows.rehearsal import forced_by
from tasks.artifacts.digest import digest_of
from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.store import Manifest, Ref, Store, open_store
from tasks.config import Section
from tasks.errors import SsrError, StepError
from tasks.running.progress import listeners
from tasks.running.step import STEPS, Planned, Step, task_parameters

Body = Callable[..., Ref]


class Wanted(NamedTuple):
    """How the steps of a run are to be done.

    Attributes:
        forced: Steps to run again though they are there, by name or label.
        since: Seconds since 1970: what was made after that is not forced again, so that a run that is tried again
            goes on.
        workers: Steps that may be unfinished at a time; on this machine, if it has a GPU, one.
        body: Does a step; None: in this process.
    """

    forced: frozenset[str]
    since: float
    workers: int
    body: Body | None = None


class PrefectRunner:
    """Submits each step as a Prefect task, when what it reads has been submitted."""

    def __init__(self, store: Store, wanted: Wanted) -> None:
        self._store = store
        self._wanted = wanted
        self._n_at_a_time = wanted.workers if wanted.body else steps_at_a_time(wanted.workers)
        self._records = _records_of(store)
        self._futures: dict[str, PrefectFuture[Ref]] = {}
        self._unfinished: list[PrefectFuture[Ref]] = []
        self._refreshed: set[str] = set()
        self.planned: list[Planned] = []

    def __call__(self, step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        planned = step.plan(label, **parts)
        fingerprint = planned.ref["fingerprint"]
        if fingerprint in self._futures:  # two arms that share a step
            return planned
        self._wait_for_a_place()
        reusable = planned.reusable(self._store)
        force = self._is_forced(planned, after, reusable)
        upstream = [ref["fingerprint"] for ref in planned.inputs.values()]
        # What is made again may come out otherwise. Then Prefect's record of the steps after it must not count, and
        # the step itself looks whether its inputs are still those it was made from.
        waited = [*upstream, *([after.ref["fingerprint"]] if after else [])]
        refresh = force or bool(self._refreshed.intersection(waited)) or reusable is None
        if refresh:
            self._refreshed.add(fingerprint)
        elif reusable:
            for listener in listeners():
                listener.reused(planned.label, reusable.counts)
        task = step.task(planned, refresh=refresh, records=self._records, body=self._wanted.body)
        future = task.submit(
            **task_parameters(planned, self._store, force=force),
            wait_for=[self._futures[f] for f in waited if f in self._futures],  # not what an earlier run made
        )
        self._futures[fingerprint] = future
        self._unfinished.append(future)
        self.planned.append(planned)
        return planned

    def _is_forced(self, planned: Planned, after: Planned | None, reusable: Manifest | None) -> bool:
        made_by_this_run = reusable is not None and reusable.facts.get("started", 0.0) >= self._wanted.since
        return bool(forced_by(planned, after) & self._wanted.forced) and not made_by_this_run

    def _wait_for_a_place(self) -> None:
        # By the futures alone: the server hears of a task's end late, and would count one twice, as running and ended.
        while len(self._unfinished) >= self._n_at_a_time:
            self._unfinished.remove(next(as_completed(self._unfinished)))

    def wait(self) -> None:
        """Wait for every step; then raise what the first failed one raised."""
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

    On S3 it must be a block that the server knows. There are no credentials in it: they are where the store finds them.
    """
    if isinstance(store, LocalStore):
        return Path(store.root) / "prefect"
    name = f"ssr-{digest_of(store.uri)[:16]}"
    block = RemoteFileSystem(basepath=f"{store.uri}/prefect")
    block.save(name, overwrite=True)
    return block


def elsewhere(children: Children, *, threads: int | None, store_access: str) -> Body:
    """A body that has a step done by its own deployment, unless its artifact is there."""

    def execute_elsewhere(
        fingerprint: str, step: str, label: str, store: str, sections: dict[str, Any], inputs: dict[str, Ref],
        identity: dict[str, Any], force: bool,
    ) -> Ref:  # Any: JSON values  # fmt: skip
        opened, ref = open_store(store), Ref(step=step, fingerprint=fingerprint)
        planned = Planned(STEPS[step], label, ref, identity, sections, inputs)
        if not force and planned.reusable(opened):
            return ref  # made by a child that outlived an earlier try of this run
        parameters = {
            "fingerprint": fingerprint, "step": step, "label": label, "store": store, "sections": sections,
            "inputs": inputs, "identity": identity, "force": force, "threads": threads, "store_access": store_access,
        }  # fmt: skip
        began = time.time()

        def told(how_far: HowFar) -> None:
            for listener in listeners():
                listener.progress(label, *how_far)

        for listener in listeners():
            listener.started(label)
        children.run(step, label, fingerprint, parameters, told=told)
        made = planned.reusable(opened)
        if made is None:
            raise StepError(
                f"{label}: another worker says it is done, but {opened.link(ref)} is not there. Give a store that "
                "means the same place on all workers, such as s3://bucket/prefix."
            )
        for listener in listeners():
            listener.finished(label, made.counts, time.time() - began)
        return ref

    return execute_elsewhere
