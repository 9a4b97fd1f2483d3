"""What people have changed on a work pool, told apart from what `ssr deploy` put there, so that it can stay.

A pool's template carries a record of what was deployed (`shipped`); what differs from that is somebody's own. Prefect
reads past that key, and its UI hands it back with every change. Not here: deployments and schedules, which stay as
they are but for what the command is told (`flows.deployment.deployments`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from flows.deployment.target import Json

RECORD = "shipped"
_ABSENT: Any = object()  # Any: stands for a JSON value that is not there


class Kept(NamedTuple):
    """A base job template.

    Attributes:
        names: What of it is somebody's own: a variable, or a key of one (env.HTTPS_PROXY), or job_configuration.
    """

    template: Json
    names: list[str]


def keep_changes(ours: Json, found: Json) -> Kept:
    """Our template with the defaults of variables, and the job configuration, that people have changed on the server.

    On a pool that `ssr deploy` did not make there is no record. There a default that differs counts as changed; a
    missing default does not, and neither does the job configuration.

    Args:
        found: The template on the server; {} where there is no pool yet.
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
    # Variables that somebody added, and those that their job configuration may still name.
    added = {
        name: one for name, one in there.items() if name not in variables and (is_own or name not in last["defaults"])
    }
    properties = {name: _with_default(one, defaults.get(name)) for name, one in variables.items()}
    merged = {
        "job_configuration": configuration,
        "variables": {**ours["variables"], "properties": properties | added},
        RECORD: record,
    }
    return Kept(merged, names)


def differing(ours: Any, theirs: Any, path: str = "") -> list[str]:  # Any: JSON values
    """The paths at which two JSON values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = dict.fromkeys([*ours, *theirs])
        inner = [differing(ours.get(k, _ABSENT), theirs.get(k, _ABSENT), f"{path}.{k}" if path else k) for k in keys]
        return [one for found in inner for one in found]
    return [] if ours == theirs else [path]


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
    # The form of the UI writes null for a field that is empty.
    return {name: one["default"] for name, one in variables.items() if one.get("default") is not None}


def _with_default(variable: Json, value: Any) -> Json:  # Any: a JSON value
    if value is None and variable.get("default") is not None:  # emptied by somebody
        return {key: inner for key, inner in variable.items() if key != "default"}
    return variable if value is None else {**variable, "default": value}


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
