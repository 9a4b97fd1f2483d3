"""Why a step must run: what of its identity differs from the nearest artifact of the same step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from flows.rehearsal import force_names
from tasks.artifacts.store import Store
from tasks.running.step import Planned
from tasks.wording import counts_in_words

_COMPARED = 50  # artifacts of a step that are compared, newest first


class PlanLine(NamedTuple):
    """What a step of a planned run will do. `action` is cached or run."""

    label: str
    action: str
    reason: str
    fingerprint: str


class Difference(NamedTuple):
    """A leaf of two JSON values that differs. `path` has its keys, joined by dots; an absent value is None."""

    path: str
    old: Any  # Any: JSON values
    new: Any

    def in_words(self) -> str:
        """Such as `train.lora_rank 8 -> 16`."""
        return f"{self.path.removeprefix('config.')} {_short(self.old)} -> {_short(self.new)}"


def plan_lines(store: Store, planned: list[Planned], forced: set[str]) -> list[PlanLine]:
    """What each step will do and why, in order, without running any.

    Args:
        forced: Names and labels of steps to run again.
    """
    lines: list[PlanLine] = []
    running: dict[str, str] = {}
    for one in planned:
        fingerprint = one.ref["fingerprint"]
        manifest = one.reusable(store)
        if force_names(one) & forced:
            action, reason = "run", "forced"
        elif manifest is not None:
            action, reason = "cached", counts_in_words(manifest.counts)
        else:
            action, reason = "run", why_not_cached(store, one, running)
        if action == "run":
            running[fingerprint] = one.label
        lines.append(PlanLine(one.label, action, reason, fingerprint))
    return lines


def why_not_cached(store: Store, planned: Planned, running: dict[str, str]) -> str:
    """How a step without a reusable artifact differs from the most similar artifact there is.

    Args:
        running: Labels by fingerprint of the steps of this run that come before it and must run.
    """
    if store.manifest(**planned.ref) is not None:
        return "its files are damaged, or its inputs were made again"
    name = planned.step.name
    manifests = (store.manifest(name, fingerprint) for fingerprint in store.fingerprints(name)[:_COMPARED])
    compared = [differences(manifest.identity, planned.identity) for manifest in manifests if manifest]
    if not compared:
        return "first time"
    nearest = min(compared, key=len)
    waiting = [running[ref["fingerprint"]] for ref in planned.inputs.values() if ref["fingerprint"] in running]
    changed = [one for one in nearest if not one.path.startswith("inputs.")]
    if not changed and waiting:
        return f"after {', '.join(dict.fromkeys(waiting))}"
    return differences_in_words(changed or nearest)


def differences(old: Any, new: Any, path: str = "") -> list[Difference]:  # Any: JSON values
    """The leaves at which two JSON values differ. Lists of different lengths differ as a whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [Difference(path, old, new)]
    prefix = f"{path}." if path else ""
    return [found for key, before, after in pairs for found in differences(before, after, f"{prefix}{key}")]


def differences_in_words(found: Iterable[Difference]) -> str:
    """Such as `train.lora_rank 8 -> 16; train.seed 0 -> 1`."""
    return "; ".join(one.in_words() for one in found)


def _short(value: Any) -> str:  # Any: JSON values
    text = str(value)
    is_digest = isinstance(value, str) and len(value) >= 32 and all(c in "0123456789abcdef" for c in value)
    return text[:8] if is_digest else text if len(text) <= 60 else f"{text[:57]}..."
