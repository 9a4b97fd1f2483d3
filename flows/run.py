"""A run under Prefect: `ssr run` starts `rehearsal`; `pipeline` is deployed, scheduled, and started in the UI.

Both do the same and differ in how they are given a recipe. Neither is given a secret: the credentials of the store are
in the environment, or in a block that is given by its name.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from flows.execution.access import use_access
from flows.execution.children import Children, cancel_children, require_deployed
from flows.execution.devices import gpu_remarks
from flows.execution.prefect_ui import ArtifactListener, show_counts, show_links, show_report
from flows.execution.runner import PrefectRunner, RunOptions, execute_by_deployment
from flows.form.run_form import RunForm
from flows.promotion.advance import advance, current_for
from flows.rehearsal import plan_steps, rehearse
from flows.runs.records import RunRecord, run_id_of
from tasks.artifacts.store import Store, open_store
from tasks.config import RunConfig
from tasks.running.progress import listening
from tasks.running.step import Planned

logger = logging.getLogger(__name__)

Record = dict[str, Any]  # Any: JSON values


def _cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:  # Any: as Prefect passes it
    cancel_children(flow_run.id)


def _name_of_run() -> str:
    """Such as `demo 2026-11-27 02:00`: the recipe, and when the run was due (UTC)."""
    given = runtime.flow_run.parameters.get("run") or RunForm()
    form = given if isinstance(given, RunForm) else RunForm.model_validate(given)
    due = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{form.name or form.recipe} {due:%Y-%m-%d %H:%M}"


_AS_FLOW: dict[str, Any] = {  # Any: settings of several kinds
    "task_runner": ThreadPoolTaskRunner(max_workers=64),
    "on_cancellation": [_cancel_children],
}


@flow(name="rehearsal", flow_run_name="{recipe.name}", **_AS_FLOW)
def rehearsal(recipe: RunConfig, store: str = ".ssr", force: tuple[str, ...] = ()) -> Record:
    """Selective Self-Rehearsal, from a dataset to a report.

    Args:
        recipe: What to run.
        store: Folder or s3:// address of the artifacts.
        force: Steps to run again although they are cached, by name (train) or label (train ssr).

    Returns:
        The record of the run: its id, its steps' references, and where the report is.
    """
    return _run(recipe, store, force)


@flow(name="rehearsal-pipeline", flow_run_name=_name_of_run, **_AS_FLOW)
def pipeline(run: RunForm = RunForm(), store: str = ".ssr", store_access: str = "") -> Record:
    """Selective Self-Rehearsal, from a dataset to a report.

    Args:
        run: A recipe and what to change of it.
        store: Folder or s3:// address of the artifacts, the same place on every worker.
        store_access: Name of an S3 access block; empty: the AWS_* variables of the worker.
    """
    use_access(store_access)
    return _run(run.to_recipe(), store, tuple(run.force), store_access=store_access)


def _run(recipe: RunConfig, store: str, force: tuple[str, ...], *, store_access: str = "") -> Record:
    opened = open_store(store if "://" in store else str(Path(store).expanduser().absolute()))
    opened.preflight()
    if recipe.execution.threads:
        os.environ["OMP_NUM_THREADS"] = str(recipe.execution.threads)
    flow_run_id, began = str(runtime.flow_run.id or ""), _began()
    current = current_for(opened, recipe, flow_run_id)
    planned = plan_steps(recipe, current)
    children = _children(recipe, planned)
    for remark in gpu_remarks(recipe):
        logger.warning(remark)
    record = RunRecord.begin(run_id_of(recipe.name, began, flow_run_id), recipe, planned, flow_run_id=flow_run_id)
    execution = recipe.execution
    execute = None
    if children:
        execute = execute_by_deployment(children, threads=execution.threads, store_access=store_access)
    runner = PrefectRunner(opened, RunOptions(frozenset(force), began.timestamp(), execution.workers, execute))
    record.save(opened)
    try:
        with ArtifactListener(recipe.name) as bars, listening(bars):
            report = rehearse(runner, recipe, current)
            runner.wait()
        decided = advance(opened, recipe, runner.planned, current, run_id=record.run_id, flow_run_id=flow_run_id)
    except BaseException as error:
        if children:
            children.stopped.set()
        record.with_made(runner.planned).finished("failed", str(error)).save(opened)
        raise
    record = record.with_made(runner.planned).finished("completed", promotion=decided.summary() if decided else None)
    record.save(opened)
    _show(opened, runner.planned, report, recipe, record)
    return record.to_json()


def _began() -> datetime:
    """When the run began; for a retry, when its first try began."""
    context = FlowRunContext.get()
    first = context.flow_run.start_time if context and context.flow_run else None
    return first or datetime.now(UTC)


def _children(recipe: RunConfig, planned: list[Planned]) -> Children | None:
    """The children of this run, if its steps run on other machines."""
    if recipe.execution.steps == "inline":
        return None
    require_deployed([one.step.name for one in planned])
    return Children(UUID(runtime.flow_run.id), datetime.now(UTC))


def _show(store: Store, planned: list[Planned], report: Planned, recipe: RunConfig, record: RunRecord) -> None:
    since = datetime.fromisoformat(record.started).timestamp()
    show_counts(store, planned, name=recipe.name, since=since)
    show_report(store, report.ref, recipe)
    show_links(store, report.ref, recipe, run_id=record.run_id)
