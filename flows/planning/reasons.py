"""Why a step must run: what of its identity differs from the nearest artifact of the same step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from flows.rehearsal import forced_by
from tasks.artifacts.store import Store
from tasks.running.step import Planned

_COMPARED = 50  # artifacts of a step looked at, newest first


class PlanLine(NamedTuple):
    """What a step of a planned run will do. `action` is cached or run."""

    label: str
    action: str
    reason: str
    fingerprint: str


def plan_lines(store: Store, planned: list[Planned], forced: set[str]) -> list[PlanLine]:
    """What each step will do and why, in order. Runs nothing."""
    lines: list[PlanLine] = []
    running: dict[str, str] = {}
    for one in planned:
        fingerprint = one.ref["fingerprint"]
        manifest = one.reusable(store)
        if forced_by(one) & forced:
            action, reason = "run", "forced"
        elif manifest is not None:
            action, reason = "cached", _in_words(manifest.counts)
        else:
            action, reason = "run", why_not_cached(store, one, running)
        if action == "run":
            running[fingerprint] = one.label
        lines.append(PlanLine(one.label, action, reason, fingerprint))
    return lines


def why_not_cached(store: Store, planned: Planned, running: dict[str, str]) -> str:
    """The difference to the most similar artifact there is."""
    if store.manifest(**planned.ref) is not None:
        return "its files are damaged, or its inputs were made again"
    nearest: list[str] | None = None
    for fingerprint in store.fingerprints(planned.step.name)[:_COMPARED]:
        manifest = store.manifest(planned.step.name, fingerprint)
        if manifest is None:
            continue
        found = differences(manifest.identity, planned.identity)
        if nearest is None or len(found) < len(nearest):
            nearest = found
    if nearest is None:
        return "first time"
    waiting = [running[ref["fingerprint"]] for ref in planned.inputs.values() if ref["fingerprint"] in running]
    changed = [difference for difference in nearest if not difference.startswith("inputs.")]
    if not changed and waiting:
        return f"after {', '.join(dict.fromkeys(waiting))}"
    return "; ".join(changed or nearest)


def differences(old: Any, new: Any, path: str = "") -> list[str]:  # Any: JSON values
    """The leaves that differ, as `path old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{path}.{i}")]
    return [] if old == new else [f"{path.removeprefix('config.')} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:  # Any: JSON values
    text = str(value)
    is_digest = isinstance(value, str) and len(value) >= 32 and all(c in "0123456789abcdef" for c in value)
    return text[:8] if is_digest else text if len(text) <= 60 else f"{text[:57]}..."


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in _told(counts))


def _told(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    yield from list(counts.items())[:4]
