"""Merge our job template of a work pool with what people have changed on the server, so that their changes stay.

The template of a pool carries a record of what was deployed (key `shipped`). What differs from that record was changed
by people. Prefect ignores this key, and its UI sends it back with every change.
Not covered: deployments and schedules (`flows.deployment.deployments`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from flows.deployment.target import Json

RECORD = "shipped"
_ABSENT: Any = object()  # Any: stands for a JSON value that is not there


class MergedTemplate(NamedTuple):
    """A base job template.

    Attributes:
        kept: The parts that people have changed: a variable, a key of one (env.HTTPS_PROXY), or job_configuration.
    """

    template: Json
    kept: list[str]


def merge_template(ours: Json, found: Json) -> MergedTemplate:
    """Our template with the defaults of variables, and the job configuration, that people have changed on the server.

    On a pool that `ssr deploy` did not make there is no record. There a default that differs counts as changed; a
    missing default does not, and neither does the job configuration.

    Args:
        found: The template on the server; {} if there is no pool yet.
    """
    variables = ours["variables"]["properties"]
    record: Json = {
        "defaults": {name: one.get("default") for name, one in variables.items()},
        "job_configuration": _digest(ours["job_configuration"]),
    }
    there = found.get("variables", {}).get("properties", {})
    wanted = _defaults(variables)
    theirs = {name: value for name, value in _defaults(there).items() if name in variables}
    last: Json = found.get(RECORD) or {"defaults": {}, "job_configuration": None}
    before = {name: value for name, value in last["defaults"].items() if value is not None}
    defaults, names = _merge(wanted, theirs, before) if found else (wanted, [])
    configuration, is_own = ours["job_configuration"], False
    if last["job_configuration"]:
        is_own = _digest(found["job_configuration"]) not in (last["job_configuration"], record["job_configuration"])
    if is_own:
        configuration, names = found["job_configuration"], [*names, "job_configuration"]
    # Variables that people have added, and those of ours from before that their job configuration may still use.
    added = {
        name: one for name, one in there.items() if name not in variables and (is_own or name not in last["defaults"])
    }
    properties = {name: _with_default(one, defaults.get(name)) for name, one in variables.items()}
    merged = {
        "job_configuration": configuration,
        "variables": {**ours["variables"], "properties": properties | added},
        RECORD: record,
    }
    return MergedTemplate(merged, names)


def _merge(ours: Json, theirs: Json, before: Json, path: str = "") -> tuple[Json, list[str]]:
    merged: Json = {}
    names: list[str] = []
    for key in dict.fromkeys([*ours, *theirs]):
        mine, there, was = (one.get(key, _ABSENT) for one in (ours, theirs, before))
        if isinstance(mine, dict) and isinstance(there, dict):
            value, inner = _merge(mine, there, was if isinstance(was, dict) else {}, f"{path}{key}.")
            names += inner
        elif there in (was, mine):
            value = mine
        else:
            value = there
            names.append(path + key)
        if value is not _ABSENT:
            merged[key] = value
    return merged, names


def _defaults(variables: Json) -> Json:
    # The form of the UI writes null for an empty field.
    return {name: one["default"] for name, one in variables.items() if one.get("default") is not None}


def _with_default(variable: Json, value: Any) -> Json:  # Any: a JSON value
    if value is None and variable.get("default") is not None:  # people have emptied it
        return {key: inner for key, inner in variable.items() if key != "default"}
    return variable if value is None else {**variable, "default": value}


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
