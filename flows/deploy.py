"""`ssr deploy`: make a Prefect server hold what `deployments/` says, and tell what that changed.

In order: work pools and their queues, the block with the store's credentials, the automation for dead workers, the
deployments of `prefect.yaml`. What is as wanted already is not touched, so that it can run again at any time: a
schedule that somebody paused stays paused, runs that are scheduled stay scheduled, and so does a paused automation.

Not covered: starting workers, building images, and removing what an older version deployed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import yaml
from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)  # fmt: skip
from prefect.client.schemas.objects import ConcurrencyOptions, DeploymentSchedule, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.dockerutils import parse_image_tag
from prefect.utilities.templating import apply_values, find_placeholders
from pydantic_core import to_jsonable_python

from flows.access import S3Access
from flows.recipes import shipped
from tasks.errors import ConfigError, SsrError
from tasks.store import open_store

Infra = Literal["process", "docker", "kubernetes", "ecs"]
Outcome = Literal["created", "updated", "unchanged"]
Json = dict[str, Any]  # Any: JSON values

FOLDER = Path(__file__).parents[1] / "deployments"
TAG = "selective-self-rehearsal"
AUTOMATION = "ssr: a worker that died"
# A parent waits for its steps while it holds a place on the CPU pool: steps come first.
QUEUES = {"ssr-cpu": {"steps": 1, "parents": 2}, "ssr-gpu": {"steps": 1}}
_SHORTEST_HEARTBEAT_SECONDS = 30  # Prefect's own limit
_HEARTBEATS = 3  # a window with fewer declares runs dead that live


class Change(NamedTuple):
    """One thing on the server, and what became of it."""

    what: str
    name: str
    outcome: Outcome


@dataclass(frozen=True)
class Target:
    """What is deployed where.

    Attributes:
        store: URI of the store as workers see it.
        store_access: Name of the block with the store's credentials; None: workers have their own.
        image: Image of the CPU pool's containers; without a tag, that of the commit. Containers only, as gpu_image.
        gpu_limit: Steps on the GPU pool at a time; None: as it is on the server, else one.
        run_limit: Runs of the pipeline at a time; more wait.
        dead_after_seconds: Without a sign of life for so long, a run is declared crashed.
    """

    infra: Infra = "process"
    store: str = ".ssr"
    store_access: str | None = None
    image: str | None = None
    gpu_image: str | None = None
    recipe: str = "nightly"
    gpu_limit: int | None = None
    run_limit: int = 1
    dead_after_seconds: int = 540

    def heartbeat_seconds(self) -> int:
        """How often a run gives a sign of life: as Prefect is set, unless the window is too short for that.

        Raises:
            ConfigError: No heartbeat is short enough for the window.
        """
        settings = get_current_settings().flows
        chosen = settings.heartbeat_frequency if "heartbeat_frequency" in settings.model_fields_set else None
        longest = self.dead_after_seconds // _HEARTBEATS
        heartbeat = chosen or min(180, longest)
        if max(heartbeat, _SHORTEST_HEARTBEAT_SECONDS) > longest:
            least = _HEARTBEATS * max(heartbeat, _SHORTEST_HEARTBEAT_SECONDS)
            source = f"PREFECT_FLOWS_HEARTBEAT_FREQUENCY={chosen}" if chosen else "a heartbeat of at least 30 s"
            raise ConfigError(
                f"--dead-after-seconds {self.dead_after_seconds}: runs that live would be declared dead. With {source} "
                f"give {least} or more: {_HEARTBEATS} heartbeats."
            )
        return heartbeat


def deploy(target: Target, *, check_store: bool = True) -> list[Change]:
    """Create or update everything, in the order in which one thing needs another.

    Raises:
        ConfigError: A setting is wrong, there is no server, or a pool is of another type.
        StoreError: The store cannot be written from here.
        SsrError: The server refused something.
    """
    content = fill_in(target)
    with _server() as client:
        if check_store:
            open_store(target.store).preflight()
        pools = _checked_pools(client, target)
        return [
            *(_pool(client, name, found, target) for name, found in pools.items()),
            *(_queue(client, pool, name) for pool, queues in QUEUES.items() for name in queues),
            *([_access(target.store_access)] if target.store_access else []),
            _automation(client, target),
            *(_deployment(client, entry, content["pull"]) for entry in content["deployments"]),
        ]


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "no Prefect server: PREFECT_API_URL is not set. Start one: prefect server start; then: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        try:
            client.raise_for_api_version_mismatch()
        except (RuntimeError, httpx.HTTPError) as error:
            why = error.__cause__ or error
            raise ConfigError(
                f"PREFECT_API_URL={url}: {why}. Is a server of Prefect {client.client_version()} up there, and is "
                "PREFECT_API_AUTH_STRING set if it asks for one?"
            ) from error
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise SsrError(f"{url} refused: {error}: {error.response.text[:2000]}") from error
        except httpx.HTTPError as error:
            raise SsrError(f"{url}: {type(error).__name__}: {error}. Deploy again: it goes on.") from error


# --- prefect.yaml ---


def fill_in(target: Target) -> Json:
    """The content of `prefect.yaml` for this target. A key whose value the target leaves open is left out.

    Raises:
        ConfigError: The target does not fit together, or the file names a value that there is not.
    """
    path = FOLDER / "prefect.yaml"
    content: Json = yaml.safe_load(path.read_text())
    values = _values(target)
    if unknown := {found.full_match for found in find_placeholders(content)} - {f"{{{{ {name} }}}}" for name in values}:
        raise ConfigError(f"{path}: no value for {', '.join(sorted(unknown))}. Known: {', '.join(values)}.")
    return apply_values(content, {name: value for name, value in values.items() if value is not None})


def _values(target: Target) -> dict[str, str | int | None]:
    if target.recipe not in shipped():
        raise ConfigError(f"--recipe {target.recipe}: no such recipe. Shipped: {', '.join(shipped())}.")
    contained = target.infra != "process"
    given = [f"--{name.replace('_', '-')}" for name in ("image", "gpu_image") if getattr(target, name)]
    if given and not contained:
        raise ConfigError(f"{given[0]} has no effect with --infra process. Remove it, or give another --infra.")
    return {
        "recipe": target.recipe,
        "store": _store_for_workers(target),
        "store_access": target.store_access,
        "image": _tagged(target.image or "ssr-flow", "") if contained else None,
        "gpu_image": _tagged(target.gpu_image or "ssr-gpu-worker", "-cuda") if contained else None,
        "version": _commit() or metadata.version("selective-self-rehearsal"),
        "heartbeat_seconds": str(target.heartbeat_seconds()),
        "run_limit": target.run_limit,
    }


def _store_for_workers(target: Target) -> str:
    if "://" in target.store:
        return target.store
    if target.infra != "process":
        raise ConfigError(
            f"--store {target.store}: containers do not see a folder of this machine. Give one that every worker "
            "reaches, such as s3://bucket/prefix."
        )
    return str(Path(target.store).expanduser().absolute())  # a worker runs a flow in a folder of its own


def _tagged(image: str, variant: str) -> str:
    name, tag = parse_image_tag(image)
    if tag == "latest":
        raise ConfigError(
            f"image {image}: latest does not tell what ran. Give a commit's tag, or none: then it is ours."
        )
    if tag:
        return image
    if not (commit := _commit()):
        raise ConfigError(f"image {image}: this is no git checkout, so give the tag, too: {name}:COMMIT")
    return f"{name}:{commit}{variant}"


def _commit() -> str | None:
    if commit := os.environ.get("SSR_COMMIT"):  # in an image, where there is no checkout
        return commit
    command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # from PATH
    except (OSError, subprocess.CalledProcessError):
        return None


# --- pools, queues, block, automation ---


def job_template(infra: Infra, pool: str) -> Json:
    """The base job template of a pool, as committed."""
    content: Json = json.loads((FOLDER / "work_pools" / f"{infra}-{pool.removeprefix('ssr-')}.json").read_text())
    return content


def _checked_pools(client: SyncPrefectClient, target: Target) -> Json:
    """The pools by name, None where there is none yet. Looked at before anything is changed."""
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


def _pool(client: SyncPrefectClient, name: str, found: Any, target: Target) -> Change:  # Any: a WorkPool, or None
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


def _queue(client: SyncPrefectClient, pool: str, name: str) -> Change:
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


def _access(name: str) -> Change:
    wanted = S3Access.from_environment()
    try:
        found: Any = S3Access.load(name)  # Any: an awaitable only where a loop runs
    except ValueError:
        found = None
    if found is not None and found.to_environment() == wanted.to_environment():
        return Change("block", f"s3-access/{name}", "unchanged")
    wanted.save(name, overwrite=True)
    return Change("block", f"s3-access/{name}", "created" if found is None else "updated")


def _automation(client: SyncPrefectClient, target: Target) -> Change:
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


# --- deployments ---

_ENTRY = {"name", "entrypoint", "work_pool", "parameters", "tags", "version", "concurrency_limit", "schedules"}
_SCHEDULE = {"slug", "schedule", "parameters", "active"}


def _deployment(client: SyncPrefectClient, entry: Json, pull: list[Json]) -> Change:
    if unknown := entry.keys() - _ENTRY:
        raise ConfigError(f"prefect.yaml, {entry['entrypoint']}: {', '.join(sorted(unknown))} has no effect here.")
    flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    name = f"{flow.name}/{entry['name']}"
    wanted = _wanted(flow, entry, pull)
    try:
        found = client.read_deployment_by_name(name)
    except ObjectNotFound:
        schedules = [DeploymentScheduleCreate(**schedule) for schedule in _schedules(entry, [])]
        client.create_deployment(client.create_flow_from_name(flow.name), entry["name"], **wanted, schedules=schedules)
        return Change("deployment", name, "created")
    differing = {key: value for key, value in wanted.items() if _as_json(value) != _as_json(_found(found, key))}
    if differing.keys() & {
        "work_pool_name",
        "work_queue_name",
    }:  # the server looks for a queue in the pool sent with it
        differing |= {key: wanted[key] for key in ("work_pool_name", "work_queue_name")}
    schedules_wanted = _schedules(entry, found.schedules)
    if _by_slug(schedules_wanted) != _by_slug([schedule.model_dump() for schedule in found.schedules]):
        differing["schedules"] = [DeploymentScheduleUpdate(**schedule) for schedule in schedules_wanted]
    if not differing:
        return Change("deployment", name, "unchanged")
    client.update_deployment(found.id, DeploymentUpdate(**differing))
    return Change("deployment", name, "updated")


def _wanted(flow: Flow[..., Any], entry: Json, pull: list[Json]) -> Json:
    limit = entry.get("concurrency_limit")
    pool = entry["work_pool"]
    return {
        "entrypoint": entry["entrypoint"],
        "work_pool_name": pool["name"],
        "work_queue_name": pool["work_queue_name"],
        "job_variables": pool["job_variables"],
        "parameters": entry.get("parameters", {}),
        "description": flow.description,
        "tags": entry["tags"],
        "version": entry["version"],
        "pull_steps": pull,
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "concurrency_limit": limit["limit"] if limit else None,
        "concurrency_options": ConcurrencyOptions(collision_strategy=limit["collision_strategy"]) if limit else None,
    }


def _found(deployment: DeploymentResponse, key: str) -> Any:  # Any: whatever a field of a deployment is
    if key == "concurrency_limit":  # under its own name the server gives null
        return limit.limit if (limit := deployment.global_concurrency_limit) else None
    found = getattr(deployment, key)
    return found or [] if key == "pull_steps" else found


def _schedules(entry: Json, there: list[DeploymentSchedule]) -> list[Json]:
    """Those of the file, active or not as they are on the server, and those that people have made there."""
    active = {schedule.slug: schedule.active for schedule in there}
    ours: list[Json] = [
        {
            "slug": one["slug"],
            "schedule": CronSchedule(cron=one["cron"], timezone=one["timezone"]),
            "parameters": one.get("parameters", {}),
            "active": active.get(one["slug"], one["active"]),
        }
        for one in entry.get("schedules", [])
    ]
    slugs = {one["slug"] for one in ours}
    # The server replaces the whole list where one schedule has no slug, and the UI makes them without.
    others = [schedule.model_dump(include=_SCHEDULE) for schedule in there if schedule.slug not in slugs]
    return ours + others


def _by_slug(schedules: list[Json]) -> Json:
    return {str(one["slug"]): _as_json({key: one[key] for key in _SCHEDULE}) for one in schedules}


def _as_json(value: Any) -> Any:  # Any: models and JSON values
    return to_jsonable_python(value, exclude_none=True)
