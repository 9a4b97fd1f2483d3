"""A run under Prefect: every step a task cached by its fingerprint, and a record of what the run used."""

from __future__ import annotations

import os
from concurrent.futures import CancelledError
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.records import RunRecord, new_run_id
from flows.rehearsal import plan_steps, rehearse
from tasks.config import RunConfig, Section
from tasks.errors import SsrError, StepError
from tasks.progress import listeners
from tasks.step import Planned, Step, task_parameters
from tasks.store import Ref, Store, open_store


class PrefectRunner:
    """Submits each step as a Prefect task, at most `workers` of them unfinished at a time."""

    def __init__(self, store: Store, *, forced: set[str], workers: int) -> None:
        self._store = store
        self._forced = forced
        self._workers = workers
        self._futures: dict[str, PrefectFuture[Ref]] = {}
        self._refreshed: set[str] = set()
        self.planned: list[Planned] = []

    def __call__(self, step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        planned = step.plan(label, **parts)
        fingerprint = planned.ref["fingerprint"]
        if fingerprint in self._futures:  # two arms that share a step
            return planned
        self._wait_for_a_place()
        force = bool({step.name, planned.label} & self._forced)
        upstream = [ref["fingerprint"] for ref in planned.inputs.values()]
        # What is made again may come out otherwise. Then Prefect's record of the steps after it must not count, and
        # the step itself looks whether its inputs are still those it was made from.
        waited = [*upstream, *([after.ref["fingerprint"]] if after else [])]
        reusable = planned.reusable(self._store)
        refresh = force or bool(self._refreshed.intersection(upstream)) or reusable is None
        if refresh:
            self._refreshed.add(fingerprint)
        elif reusable:
            for listener in listeners():
                listener.reused(planned.label, reusable.counts)
        self._futures[fingerprint] = step.task(planned, refresh=refresh).submit(
            **task_parameters(planned, self._store, force=force), wait_for=[self._futures[f] for f in waited]
        )
        self.planned.append(planned)
        return planned

    def _wait_for_a_place(self) -> None:
        running = [future for future in self._futures.values() if not future.state.is_final()]
        if len(running) >= self._workers:
            next(iter(as_completed(running)))

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


@flow(name="rehearsal", flow_run_name="{recipe.name}", task_runner=ThreadPoolTaskRunner(max_workers=64))  # type: ignore[arg-type]  # Prefect's own generic
def rehearsal(recipe: RunConfig, store: str = ".ssr", force: tuple[str, ...] = ()) -> dict[str, Any]:
    """Selective Self-Rehearsal, from a dataset to a report.

    Args:
        recipe: What to run.
        store: Folder or s3:// address of the artifacts.
        force: Steps to run again though they are cached, by name (train) or label (train ssr).

    Returns:
        The record of the run: its id, its steps' references, and where the report is.
    """
    opened = open_store(store)
    opened.preflight()
    if recipe.execution.threads:
        os.environ["OMP_NUM_THREADS"] = str(recipe.execution.threads)
    flow_run_id = str(runtime.flow_run.id or "")
    record = RunRecord.begin(new_run_id(recipe.name), recipe, plan_steps(recipe), flow_run_id=flow_run_id)
    record.save(opened)
    runner = PrefectRunner(opened, forced=set(force), workers=recipe.execution.workers)
    try:
        report = rehearse(runner, recipe)
        runner.wait()
    except BaseException as error:
        record.finished("failed", str(error)).save(opened)
        raise
    record = record.finished("completed")
    record.save(opened)
    _show_report(opened, report.ref, recipe)
    return record.to_json()


def _show_report(store: Store, report: Ref, recipe: RunConfig) -> None:
    # From the flow and not from the task: a cached task would not emit it again.
    markdown = (store.fetch(report) / "report.md").read_text()
    create_markdown_artifact(markdown, key=f"report-{recipe.name.replace('_', '-')}", description="Report of the run")
