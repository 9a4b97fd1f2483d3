"""A planned step as a Prefect task whose cache key is the fingerprint, so that the UI shows a cache hit as Cached."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.context import TaskRunContext
from prefect.results import ResultStorage

from tasks.artifacts.store import Ref, open_store
from tasks.running.step import Planned

Execute = Callable[[dict[str, Any], str, bool], Ref]  # Any: JSON values


def execute_here(planned: dict[str, Any], store: str, force: bool) -> Ref:  # Any: JSON values
    """Run a planned step in this process, or reuse its artifact.

    Args:
        planned: The step as `Planned.to_json` writes it.
        store: The URI of the store.
    """
    return Planned.from_json(planned).execute(open_store(store), force=force)


def step_task(planned: Planned, *, refresh: bool, records: ResultStorage, execute: Execute) -> Task[..., Ref]:
    """The Prefect task of a planned step. It is called with the parameters of `execute`.

    Args:
        refresh: Ignore Prefect's record of an earlier run. Prefect never looks at our files, so its record must not
            count when the artifact is gone or damaged.
        records: Where Prefect keeps its records.
        execute: What the task does: `execute_here`, or a function that has another machine execute the step.
    """
    return task(
        name=planned.step.name, version=str(planned.step.version), description=inspect.getdoc(planned.step.body),
        task_run_name=planned.label, cache_key_fn=_fingerprint, refresh_cache=refresh, persist_result=True,
        result_serializer="json", result_storage=records,
    )(execute)  # fmt: skip


def _fingerprint(context: TaskRunContext, parameters: dict[str, Any]) -> str:  # Any: as Prefect passes them
    return str(parameters["planned"]["fingerprint"])
