"""`current`: which adapter of a recipe is promoted, and how that came about.

    <store>/current/<recipe>.json                     the adapter that is promoted now, for whoever deploys it
    <store>/current/<recipe>/<number>-<run>.json      one event a decision: promoted or kept, and what stood before it

The events are the truth. They are only ever added, each under a name of its own, and read in the order of their names:
a promotion counts if what it was compared with is what the events before it have put in place. So a run that took long
never pushes out what was promoted meanwhile, and of two that decide at the same moment one counts, the same one for
every reader, and the other stays in the history as kept: no lock, and nothing that only some S3 servers know. The first
file is made from the events after each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tasks.config import RunConfig
from tasks.digest import digest_of
from tasks.errors import StoreError
from tasks.models import model_digest
from tasks.step import Planned
from tasks.store import Ref, Store

_FILES_AT_ONCE = 8


@dataclass(frozen=True)
class Origin:
    """What an adapter went on from: an adapter, and the examples which that one had seen."""

    adapter: Ref
    examples: Ref


@dataclass(frozen=True)
class Promoted:
    """An adapter that is, or was, promoted.

    Attributes:
        weights: Digest of its weights, which an artifact that was made again by force may no longer have.
        scores: What it scored in the run that promoted it.
        origin: None: a fresh adapter, trained on all of `examples`.
    """

    arm: str
    run_id: str
    promoted_at: str
    adapter: Ref
    weights: str
    examples: Ref
    scores: Ref
    decision: Ref
    origin: Origin | None

    def refs(self) -> list[Ref]:
        """The artifacts that must stay while this is promoted, or may be again."""
        own = [self.adapter, self.examples, self.scores, self.decision]
        return own + ([self.origin.adapter, self.origin.examples] if self.origin else [])


@dataclass(frozen=True)
class Event:
    """A decision.

    Attributes:
        outcome: promoted or kept; from `advance` also current: nothing changed, and nothing was written.
        before: What was promoted when the run began; `after` what is since.
    """

    number: int
    at: str
    run_id: str
    flow_run_id: str
    outcome: str
    reasons: list[str]
    decision: Ref
    before: Promoted | None
    after: Promoted | None

    def summary(self) -> dict[str, Any]:  # Any: JSON values
        """What the record of the run says of it."""
        return {
            "outcome": self.outcome, "reasons": self.reasons,
            "current": self.after.run_id if self.after else None,
        }  # fmt: skip


class _Standing(NamedTuple):
    """Every event, oldest first, with the outcome that it has in the end; and what is promoted after all of them."""

    events: list[Event]
    now: Promoted | None


def promoted_now(store: Store, name: str) -> Promoted | None:
    """What is promoted for a recipe of this name."""
    return _standing(store, name).now


def names(store: Store) -> list[str]:
    """The recipes that have decided about an adapter."""
    return [name for name in store.names("current") if not name.endswith(".json")]


def history(store: Store, name: str) -> list[Event]:
    """All decisions, newest first."""
    return _standing(store, name).events[::-1]


def current_for(store: Store, recipe: RunConfig, flow_run_id: str = "") -> Promoted | None:
    """What a run is planned against. A run that has decided before, and is tried again, gets what it had then.

    Otherwise it would compare its adapter with itself.

    Raises:
        StoreError: The adapter is gone, or belongs to another base model.
    """
    if recipe.promotion is None:
        return None
    standing = _standing(store, recipe.name)
    own = _of_flow_run(standing, flow_run_id)
    current = own.before if own else standing.now
    if current is not None:
        _require_usable(store, recipe, current)
    return current


def _require_usable(store: Store, recipe: RunConfig, current: Promoted) -> None:
    where = f"{store.uri}/current/{recipe.name}.json"
    manifest = store.manifest(**current.adapter)
    if manifest is None:
        raise StoreError(
            f"{where}: the promoted adapter {store.link(current.adapter)} is gone. Bring it back, or start over: "
            f"remove {store.uri}/current/{recipe.name}/, or give the recipe another name."
        )
    trained_on = (manifest.identity.get("outside") or {}).get("model")
    if trained_on != model_digest(recipe.model):
        raise StoreError(
            f"{where}: the promoted adapter belongs to another base model than model.base={recipe.model.base}. "
            "Adapters of two models cannot be compared: give the recipe another name."
        )


def origin_for(current: Promoted | None, examples: Ref) -> Origin | None:
    """What an adapter trained on new rows alone goes on from; None: nothing yet, so a fresh one on all rows.

    With the same examples there is no new row. Then it is what the promoted adapter itself went on from, so that
    training is the step that made that adapter, and is found done.
    """
    if current is None:
        return None
    return current.origin if current.examples == examples else Origin(current.adapter, current.examples)


def advance(
    store: Store, recipe: RunConfig, planned: Sequence[Planned], before: Promoted | None, *, run_id: str,
    flow_run_id: str = "",
) -> Event | None:  # fmt: skip
    """Let `current` follow the decision of a run whose steps are done. Doing it twice changes nothing.

    Args:
        planned: All steps of the run.
        before: What the run was planned against.

    Returns:
        What became of the adapter; None where the recipe promotes nothing.
    """
    if recipe.promotion is None:
        return None
    decided = next(one for one in planned if one.ref["step"] == "promote")
    standing = _standing(store, recipe.name)
    event = _event(store, standing, planned, decided, before, run_id=run_id, flow_run_id=flow_run_id)
    found = _already(standing, event)
    if found is None and event.outcome == "current":
        return event
    if found is None:
        store.write_json(asdict(event), "current", recipe.name, f"{event.number:06}-{flow_run_id or run_id}.json")
        standing = _standing(store, recipe.name)
        found = next(e for e in standing.events if (e.number, e.run_id) == (event.number, event.run_id))
    if standing.now is not None:
        _write_pointer(store, recipe.name, standing.now)
    return found


def _event(
    store: Store, standing: _Standing, planned: Sequence[Planned], decided: Planned, before: Promoted | None, *,
    run_id: str, flow_run_id: str,
) -> Event:  # fmt: skip
    """The decision of a run, as an event after the last one."""
    decision: dict[str, Any] = json.loads((store.fetch(decided.ref) / "decision.json").read_text())  # Any: JSON values
    number = standing.events[-1].number + 1 if standing.events else 1
    at, adapter = datetime.now(UTC).isoformat(timespec="seconds"), decided.inputs["adapter"]
    examples = next(one.ref for one in planned if one.ref["step"] == "ingest")
    after = Promoted(
        decision["arm"], run_id, at, adapter, _weights(store, adapter), examples, decided.inputs["scores_arm"],
        decided.ref, _origin(planned, adapter),
    )  # fmt: skip
    outcome, reasons = decision["outcome"], decision["reasons"]
    if outcome == "current" and standing.now and after.adapter == standing.now.adapter:
        outcome, reasons = _made_again(decision, after.weights != standing.now.weights)
    event = Event(number, at, run_id, flow_run_id, outcome, reasons, decided.ref, before, after)
    return _as_it_counts(event, standing.now)


def _made_again(decision: dict[str, Any], differs: bool) -> tuple[str, list[str]]:  # Any: JSON values
    """Outcome and reasons for the promoted adapter, which `--force train` may have given other weights.

    Those that were promoted are gone then, and cannot be compared with: what is left is the comparison with the base.
    """
    failed = [check["reason"] for check in decision["checks"] if not check["passed"]]
    if not differs:
        return "current", decision["reasons"]
    if failed:
        return "kept", ["it was made again, has other weights, and with them is not shown to be good", *failed]
    return "promoted", ["it was made again and has other weights, which are no worse than the base"]


def _as_it_counts(event: Event, now: Promoted | None) -> Event:
    """An event after what stands: a promotion is kept back where it was compared with something else."""
    if event.outcome != "promoted":
        return replace(event, after=now)
    if _identity(event.before) == _identity(now):
        return event
    compared, stands = event.before.run_id if event.before else "the base", now.run_id if now else "nothing"
    reason = f"it was compared with {compared}, but meanwhile {stands} was promoted. The next run compares with that."
    return replace(event, outcome="kept", reasons=[reason], after=now)


def _identity(promoted: Promoted | None) -> Ref | None:
    return promoted.decision if promoted else None


def _adapter(promoted: Promoted | None) -> Ref | None:
    return promoted.adapter if promoted else None


def _origin(planned: Sequence[Planned], adapter: Ref) -> Origin | None:
    """What the adapter went on from, as the steps that made it have it."""
    made = {one.ref["fingerprint"]: one for one in planned}
    trained = made[adapter["fingerprint"]]
    if "start" not in trained.inputs:
        return None
    selected = made[trained.inputs["targets"]["fingerprint"]]
    return Origin(trained.inputs["start"], selected.inputs["seen"])


def _already(standing: _Standing, event: Event) -> Event | None:
    """The same decision, where it is written already: by an earlier try of the run, or by a run of the same inputs."""
    own = _of_flow_run(standing, event.flow_run_id)
    if own is not None and own.decision == event.decision:
        return own
    if event.outcome == "current" or (event.outcome == "promoted" and _adapter(event.before) == _adapter(event.after)):
        return None  # made again, this decision may come out the same each time
    for other in reversed(standing.events):
        if other.decision == event.decision:
            return other
        if other.outcome == "promoted":
            return None  # what was decided before that was about another adapter
    return None


def _of_flow_run(standing: _Standing, flow_run_id: str) -> Event | None:
    """The last event of this flow run, whatever happened since."""
    own = [event for event in standing.events if flow_run_id and event.flow_run_id == flow_run_id]
    return own[-1] if own else None


def _write_pointer(store: Store, name: str, now: Promoted) -> None:
    pointer = asdict(now) | {"folder": store.link(now.adapter, "adapter"), "history": f"{store.uri}/current/{name}/"}
    store.write_json(pointer, "current", f"{name}.json")


def _standing(store: Store, name: str) -> _Standing:
    files = [file for file in store.names("current", name) if file.endswith(".json")]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        written = list(pool.map(lambda file: _event_in(store, name, file), files))
    events: list[Event] = []
    now: Promoted | None = None
    for event in written:
        events.append(_as_it_counts(event, now))
        now = events[-1].after
    return _Standing(events, now)


_READ: dict[tuple[str, str, str], Event] = {}  # an event never changes, and a year of nights has many


def _event_in(store: Store, name: str, file: str) -> Event:
    key = (store.root, name, file)
    if key not in _READ:
        raw = store.read_json("current", name, file)
        _READ[key] = Event(**{**raw, "before": _promoted(raw["before"]), "after": _promoted(raw["after"])})
    return _READ[key]


def _promoted(raw: dict[str, Any] | None) -> Promoted | None:  # Any: JSON values
    if raw is None:
        return None
    origin = Origin(**raw["origin"]) if raw["origin"] else None
    return Promoted(**{**raw, "origin": origin})


def _weights(store: Store, adapter: Ref) -> str:
    """A digest of an adapter's weights as they are on the store now."""
    manifest = store.manifest(**adapter)
    files = manifest.files if manifest else []
    return digest_of({entry["name"]: entry["sha256"] for entry in files if entry["name"].endswith(".safetensors")})


def is_intact(store: Store, promoted: Promoted) -> bool:
    """Whether the adapter still holds the weights that were promoted: it may have been made again by force."""
    return _weights(store, promoted.adapter) == promoted.weights


def kept_artifacts(store: Store) -> set[tuple[str, str]]:
    """What `ssr gc` must leave: all that `current` points to, and what it pointed to before, as (step, fingerprint)."""
    kept = set()
    for name in names(store):
        last = next((event for event in history(store, name) if event.outcome == "promoted"), None)
        for promoted in (last.before, last.after) if last else ():
            kept |= {(ref["step"], ref["fingerprint"]) for ref in (promoted.refs() if promoted else [])}
    return kept
