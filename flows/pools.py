"""What deployments stand on, on a Prefect server: work pools, their queues, the store's block, the automation."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectNotFound

from flows.access import S3Access
from flows.target import FOLDER, Change, Infra, Json, Target
from tasks.errors import ConfigError

TAG = "selective-self-rehearsal"
AUTOMATION = "ssr: a worker that died"
# A parent waits for its steps while it holds a place on the CPU pool: steps come first.
QUEUES = {"ssr-cpu": {"steps": 1, "parents": 2}, "ssr-gpu": {"steps": 1}}


def job_template(infra: Infra, pool: str) -> Json:
    """The base job template of a pool, as committed."""
    content: Json = json.loads((FOLDER / "work_pools" / f"{infra}-{pool.removeprefix('ssr-')}.json").read_text())
    return content


def check_pools(client: SyncPrefectClient, target: Target) -> Json:
    """The pools by name, None where there is none yet. To be asked before anything is changed.

    Raises:
        ConfigError: A pool is of another type.
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
    return pools


def put_pool(client: SyncPrefectClient, name: str, found: Any, target: Target) -> Change:  # Any: a WorkPool, or None
    wanted: Json = {"base_job_template": job_template(target.infra, name)}
    if name == "ssr-gpu" and (target.gpu_limit or found is None):
        wanted["concurrency_limit"] = target.gpu_limit or 1
    if found is None:
        client.create_work_pool(WorkPoolCreate(name=name, type=target.infra, **wanted))
        return Change("work pool", name, "created")
    differing = {key: value for key, value in wanted.items() if getattr(found, key) != value}
    if differing:
        client.update_work_pool(name, WorkPoolUpdate(**differing))
    return Change("work pool", name, "updated" if differing else "unchanged")


def put_queue(client: SyncPrefectClient, pool: str, name: str) -> Change:
    priority = QUEUES[pool][name]
    what = f"{pool}/{name}"
    try:
        found = client.read_work_queue_by_name(name, pool)
    except ObjectNotFound:
        client.create_work_queue(name, priority=priority, work_pool_name=pool)
        return Change("work queue", what, "created")
    if found.priority == priority:
        return Change("work queue", what, "unchanged")
    client.update_work_queue(found.id, priority=priority, is_paused=found.is_paused)
    return Change("work queue", what, "updated")


def put_access(name: str) -> Change:
    wanted = S3Access.from_environment()
    try:
        found: Any = S3Access.load(name)  # Any: an awaitable only where a loop runs
    except ValueError:
        found = None
    if found is not None and found.to_environment() == wanted.to_environment():
        return Change("block", f"s3-access/{name}", "unchanged")
    wanted.save(name, overwrite=True)
    return Change("block", f"s3-access/{name}", "created" if found is None else "updated")


def put_automation(client: SyncPrefectClient, target: Target) -> Change:
    wanted = dead_worker_automation(target.dead_after_seconds)
    found = client.read_automations_by_name(AUTOMATION)
    if not found:
        client.create_automation(wanted)
        return Change("automation", AUTOMATION, "created")
    wanted.enabled = found[0].enabled
    if AutomationCore.model_validate(found[0].model_dump()) == wanted:
        return Change("automation", AUTOMATION, "unchanged")
    client.update_automation(found[0].id, wanted)
    return Change("automation", AUTOMATION, "updated")


def dead_worker_automation(seconds: int) -> AutomationCore:
    """Declare a run of ours crashed that gave a sign of life and then, for so long, none and no end either.

    Without it a run whose machine died stays Running for ever, holds its place on the pool, and cannot be retried.
    """
    ended = ("Completed", "Failed", "Cancelled", "Crashed")
    waiting = ("Scheduled", "AwaitingRetry", "Paused", "Suspended")  # given up by its process, not dead
    return AutomationCore(
        name=AUTOMATION,
        description=f"Marks a run crashed that has given no sign of life for {seconds} s.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            # Others on this server may beat more slowly.
            match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in (*ended, *waiting))},
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"No sign of life for {seconds} s: its worker died. Retry goes on.",
            )
        ],
    )
