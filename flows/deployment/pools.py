"""What deployments need on a Prefect server: work pools and their queues, the store's block, and automations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectNotFound

from flows.deployment.pool_changes import MergedTemplate, merge_template
from flows.deployment.target import FOLDER, Change, Infra, Json, Target
from flows.execution.access import S3Access
from tasks.errors import ConfigError

TAG = "selective-self-rehearsal"
AUTOMATION = "ssr: a worker that died"
NEVER_BEGAN = "ssr: a run that never began"
_ENDED = ("Completed", "Failed", "Cancelled", "Crashed")
# The process has given up the run in these states; it did not die.
_WAITING = ("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Resuming", "Paused", "Suspended")
# A worker starts a process in seconds. A container may wait for its image, or for a node that has to come up first.
_START_SECONDS = {"process": 600, "docker": 2400, "kubernetes": 2400, "ecs": 2400}
_START_MARGIN_SECONDS = 600  # beyond a pool's own limit: the worker can say why a pod did not start
# Priorities; 1 comes first. A parent holds a place on the CPU pool while it waits for its steps, so steps come first.
QUEUES = {"ssr-cpu": {"steps": 1, "parents": 2}, "ssr-gpu": {"steps": 1}}


def job_template(infra: Infra, pool: str) -> Json:
    """The base job template of a pool, as committed."""
    content: Json = json.loads((FOLDER / "work_pools" / f"{infra}-{pool.removeprefix('ssr-')}.json").read_text())
    return content


def check_pools(client: SyncPrefectClient, target: Target) -> Json:
    """The pools on the server by name; None for one that does not exist yet. Changes nothing.

    Raises:
        ConfigError: A pool is of another type, or too small.
    """
    pools: Json = {}
    for name in QUEUES:
        try:
            pools[name] = client.read_work_pool(name)
        except ObjectNotFound:
            pools[name] = None
    for name, found in pools.items():
        if found and found.type != target.infra:
            raise ConfigError(
                f"work pool {name} is of type {found.type}, and Prefect cannot change that. Deploy with --infra "
                f"{found.type}, or remove the pool first: prefect work-pool delete {name}"
            )
        if found and "parents" in QUEUES[name] and found.concurrency_limit == 1:
            raise ConfigError(
                f"work pool {name} has a limit of 1: a run would hold the one place that its steps wait for. Give it 2 "
                f"or more, or none: prefect work-pool clear-concurrency-limit {name}"
            )
    return pools


def templates(target: Target, pools: Json) -> dict[str, MergedTemplate]:
    """The base job template for each pool: ours, with what people have changed on the server."""
    return {
        name: merge_template(job_template(target.infra, name), found.base_job_template if found else {})
        for name, found in pools.items()
    }


def put_pool(
    client: SyncPrefectClient, name: str, found: Any, template: MergedTemplate, target: Target
) -> list[Change]:  # Any: a WorkPool, or None
    """Create or update a work pool.

    Args:
        found: The pool on the server; None if it does not exist yet.
    """
    wanted: Json = {"base_job_template": template.template}
    if name == "ssr-gpu" and (target.gpu_limit or found is None):
        wanted["concurrency_limit"] = target.gpu_limit or 1
    if found is None:
        client.create_work_pool(WorkPoolCreate(name=name, type=target.infra, **wanted))
        return [Change("work pool", name, "created")]
    differing = {key: value for key, value in wanted.items() if getattr(found, key) != value}
    if differing:
        client.update_work_pool(name, WorkPoolUpdate(**differing))
    kept = [Change("left as it is", f"{name}: {one}", "kept") for one in template.kept]
    return [Change("work pool", name, "updated" if differing else "unchanged"), *kept]


def put_queue(client: SyncPrefectClient, pool: str, name: str, found_pool: Any) -> Change:  # Any: as above
    """Create or update a queue of a work pool. A lower limit that people have set stays.

    Args:
        found_pool: The pool as it was on the server before; None if it did not exist.
    """
    priority = QUEUES[pool][name]
    what = f"{pool}/{name}"
    pool_limit = found_pool.concurrency_limit if found_pool else None
    # Parents never fill the pool, because their steps need a place in it.
    most = pool_limit - 1 if pool_limit and name == "parents" else None
    try:
        found = client.read_work_queue_by_name(name, pool)
    except ObjectNotFound:
        client.create_work_queue(name, priority=priority, concurrency_limit=most, work_pool_name=pool)
        return Change("work queue", what, "created")
    limit = min((one for one in (most, found.concurrency_limit) if one is not None), default=None)
    if (found.priority, found.concurrency_limit) == (priority, limit):
        return Change("work queue", what, "unchanged")
    client.update_work_queue(found.id, priority=priority, concurrency_limit=limit, is_paused=found.is_paused)
    return Change("work queue", what, "updated")


def put_access(name: str) -> Change:
    """Create or update the block with the store's credentials, which are those of the environment."""
    wanted = S3Access.from_environment()
    try:
        found: Any = S3Access.load(name)  # Any: an awaitable only where a loop runs
    except ValueError:
        found = None
    if found is not None and found.to_environment() == wanted.to_environment():
        return Change("block", f"s3-access/{name}", "unchanged")
    wanted.save(name, overwrite=True)
    return Change("block", f"s3-access/{name}", "created" if found is None else "updated")


def put_automation(client: SyncPrefectClient, wanted: AutomationCore) -> Change:
    """Create or update an automation. One that people have disabled stays disabled."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return Change("automation", wanted.name, "created")
    wanted = wanted.model_copy(update={"enabled": found[0].enabled})
    if AutomationCore.model_validate(found[0].model_dump()) == wanted:
        return Change("automation", wanted.name, "unchanged")
    client.update_automation(found[0].id, wanted)
    return Change("automation", wanted.name, "updated")


def dead_worker_automation(seconds: int) -> AutomationCore:
    """Mark a run of ours crashed if its heartbeat stops for so many seconds and it has not ended.

    Without this, a run whose machine died stays Running for ever, holds its place on the pool, and cannot be retried.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    return _crashed_where_silent(
        AUTOMATION, seconds, after={heartbeat}, expect={heartbeat},
        description=f"Marks a run crashed that has sent no heartbeat for {seconds} s.",
        message=f"No heartbeat for {seconds} s: its worker died. Retry goes on.",
    )  # fmt: skip


def never_began_automation(seconds: int) -> AutomationCore:
    """Mark a run of ours crashed if a worker took it so many seconds ago and it has neither begun nor ended.

    A run sends heartbeats only once it runs. Without this, a run whose worker died before stays Pending for ever, and
    holds its place on the pool.
    """
    pending = "prefect.flow-run.Pending"
    return _crashed_where_silent(
        NEVER_BEGAN, seconds, after={pending},
        # Pending, too: otherwise the end of a first try would count for a retry within the same window.
        expect={pending, "prefect.flow-run.Running", "prefect.flow-run.Retrying", "prefect.flow-run.heartbeat"},
        description=f"Marks a run crashed that a worker took {seconds} s ago and that has not begun since.",
        message=f"Taken by a worker {seconds} s ago, and not begun: its worker died, or its container did not start. "
        "Retry starts it on another.",
    )  # fmt: skip


def start_seconds(infra: Infra, pools: Iterable[Json]) -> int:
    """How long a run may take to begin: longer than any of these job templates allows for a pod."""
    limits = [one["variables"]["properties"].get("pod_watch_timeout_seconds", {}).get("default") for one in pools]
    return max(_START_SECONDS[infra], *(_START_MARGIN_SECONDS + (limit or 0) for limit in limits))


def _crashed_where_silent(
    name: str, seconds: int, *, after: set[str], expect: set[str], description: str, message: str
) -> AutomationCore:
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            # Other runs on this server may send heartbeats more rarely.
            match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
            for_each={"prefect.resource.id"},
            after=after,
            expect={*expect, *(f"prefect.flow-run.{state}" for state in (*_ENDED, *_WAITING))},
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", force=False, message=message)],
    )
