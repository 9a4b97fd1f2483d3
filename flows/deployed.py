"""The deployments of `prefect.yaml` on a Prefect server, and their schedules."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentScheduleUpdate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyOptions, DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic_core import to_jsonable_python

from flows.target import Change, Json
from tasks.errors import ConfigError

_ENTRY = {"name", "entrypoint", "work_pool", "parameters", "tags", "version", "concurrency_limit", "schedules"}
_SCHEDULE = {"slug", "schedule", "parameters", "active"}


def put_deployment(client: SyncPrefectClient, entry: Json, pull: list[Json]) -> Change:
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
