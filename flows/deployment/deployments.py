"""Create and update the deployments of `prefect.yaml` on a Prefect server, and their schedules.

`prefect.yaml` decides what runs, and where. Once a deployment exists, the server decides with which parameters, at what
times and with which added job variables. Only what the command line of `ssr deploy` names replaces those.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
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

from flows.deployment.target import Change, Json, Target
from flows.planning.reasons import differences
from flows.runs.recipes import shipped
from tasks.errors import ConfigError

PARENT = "rehearsal-pipeline/nightly"
_ENTRY = {"name", "entrypoint", "work_pool", "parameters", "tags", "version", "concurrency_limit", "schedules"}
_PLACE = ("work_pool_name", "work_queue_name")
_SCHEDULE = {"slug", "schedule", "parameters", "active"}


def as_on_server(client: SyncPrefectClient, target: Target) -> Target:
    """The target with its open settings filled in from the server."""
    try:
        found = client.read_deployment_by_name(PARENT)
    except ObjectNotFound:
        return target
    limit = found.global_concurrency_limit
    run = found.parameters.get("run") or {}
    recipe = run.get("recipe")
    return replace(
        target,
        store=target.store or found.parameters.get("store"),
        recipe=target.recipe or (recipe if recipe in shipped() else None),
        run_limit=target.run_limit or (limit.limit if limit else None),
    )


def put_deployment(client: SyncPrefectClient, entry: Json, pull: list[Json], given: Set[str]) -> list[Change]:
    """Create or update one deployment.

    Args:
        entry: Its entry in `prefect.yaml`, filled in.
        pull: The steps with which a worker gets the code.
        given: Names of the parameters that the entry decides, whatever they are on the server.

    Raises:
        ConfigError: The entry has a key that is not supported here.
    """
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
        return [Change("deployment", name, "created")]
    merged = {
        "parameters": {**wanted["parameters"], **_without(found.parameters, given)},
        "job_variables": _job_variables(wanted["job_variables"], found.job_variables or {}),
    }
    kept = [
        Change("left as it is", f"{name}: {difference.path}", "kept")
        for key in merged
        for difference in differences(wanted[key], merged[key], key)
    ]
    wanted |= merged
    differing = {key: value for key, value in wanted.items() if _as_json(value) != _as_json(_found(found, key))}
    if differing.keys() & set(_PLACE):  # the server looks for a queue in the pool sent with it
        differing |= {key: wanted[key] for key in _PLACE}
    schedules_wanted = _schedules(entry, found.schedules, given)
    kept += [
        Change("left as it is", f"{name}: schedule {path}", "kept")
        for path in _kept_of_schedules(_schedules(entry, []), schedules_wanted)
    ]
    if _by_slug(schedules_wanted) != _by_slug([schedule.model_dump() for schedule in found.schedules]):
        differing["schedules"] = [DeploymentScheduleUpdate(**schedule) for schedule in schedules_wanted]
    if differing:
        client.update_deployment(found.id, DeploymentUpdate(**differing))
    return [Change("deployment", name, "updated" if differing else "unchanged"), *kept]


def _without(parameters: Json, given: Set[str]) -> Json:
    return {name: value for name, value in parameters.items() if name not in given}


def _job_variables(ours: Json, found: Json) -> Json:
    """Ours, such as the image and the heartbeat, and those that people have added."""
    return {**found, **ours, "env": {**(found.get("env") or {}), **ours["env"]}}


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
    if key == "concurrency_limit":  # the server gives null in the field of this name
        return limit.limit if (limit := deployment.global_concurrency_limit) else None
    found = getattr(deployment, key)
    return found or [] if key == "pull_steps" else found


def _schedules(entry: Json, there: list[DeploymentSchedule], given: Set[str] = frozenset()) -> list[Json]:
    """The schedules of the file, as they are on the server except for given parameters, and those that people made."""
    by_slug = {schedule.slug: schedule.model_dump(include=_SCHEDULE) for schedule in there}
    ours: list[Json] = []
    for one in entry.get("schedules", []):
        parameters = one.get("parameters", {})
        schedule = CronSchedule(cron=one["cron"], timezone=one["timezone"])
        new = {"slug": one["slug"], "schedule": schedule, "parameters": parameters, "active": one["active"]}
        found = by_slug.get(one["slug"], new)
        named = {name: value for name, value in parameters.items() if name in given}
        ours.append({**found, "parameters": {**_without(found["parameters"], given), **named}})
    slugs = {one["slug"] for one in ours}
    # The UI makes schedules without a slug, and with one of those the server replaces the whole list.
    others = [schedule.model_dump(include=_SCHEDULE) for schedule in there if schedule.slug not in slugs]
    return ours + others


def _kept_of_schedules(ours: list[Json], wanted: list[Json]) -> list[str]:
    """The paths at which our schedules differ from the file, except for being paused."""
    there = _by_slug(wanted)
    return [
        found.path
        for slug, one in _by_slug(ours).items()
        for found in differences({**one, "active": there[slug]["active"]}, there[slug], slug)
    ]


def _by_slug(schedules: list[Json]) -> Json:
    return {str(one["slug"]): _as_json({key: one[key] for key in _SCHEDULE}) for one in schedules}


def _as_json(value: Any) -> Any:  # Any: models and JSON values
    return to_jsonable_python(value, exclude_none=True)
