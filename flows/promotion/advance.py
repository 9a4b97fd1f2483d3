"""`current`: which adapter of a recipe is promoted; how a run, or a person, moves it.

What stands is what the log of decisions says: see `flows.promotion.log`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from flows.promotion.copies import keep_adapter, keep_scores, weights_of
from flows.promotion.log import (
    Event,
    Origin,
    Promoted,
    Standing,
    as_it_counts,
    as_kept,
    history,
    lost,
    names,
    standing_of,
    write_pointer,
)  # fmt: skip
from tasks.artifacts.store import Ref, Store
from tasks.config import RunConfig
from tasks.errors import ConfigError, StoreError
from tasks.models import model_digest
from tasks.running.step import Planned

KEPT_PROMOTED = 5  # adapters that `ssr gc` leaves for each recipe, so that they can be put back


def current_for(store: Store, recipe: RunConfig, flow_run_id: str = "") -> Promoted | None:
    """What a run is planned against. A run that has decided before, and is tried again, gets what it had then.

    Otherwise it would compare its adapter with itself.

    One that was promoted before there were copies gets its copy now, before a step can be made again by force.

    Raises:
        StoreError: The adapter is gone, has other weights, or belongs to another base model.
    """
    if recipe.promotion is None:
        return None
    standing = standing_of(store, recipe.name)
    own = standing.of_flow_run(flow_run_id)
    current = own.before if own else standing.now
    if current is None:
        return None
    current = as_kept(store, current)
    _require_usable(store, recipe, current)
    return _kept(store, current)


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
    if not is_intact(store, current):
        raise StoreError(
            f"{where}: the promoted adapter {store.link(current.adapter)} was made again, and has other weights than "
            f"those that were promoted. Put back another: ssr current {recipe.name} --restore RUN_ID. Or start over: "
            f"remove {store.uri}/current/{recipe.name}/."
        )


def _kept(store: Store, promoted: Promoted) -> Promoted:
    """The same with a copy as the adapter, made now unless it is one."""
    if promoted.trained is not None:
        return promoted
    copy = keep_adapter(store, promoted.adapter, promoted.weights)
    return replace(promoted, adapter=copy, trained=promoted.adapter)


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
    standing = standing_of(store, recipe.name)
    event = _event(store, standing, planned, decided, before, run_id=run_id, flow_run_id=flow_run_id)
    if event.outcome == "promoted" and _already(standing, event) is None:
        copied = _with_copies(store, event, planned, decided).after
        # On S3 that takes minutes: what was decided meanwhile counts, and this one comes after it.
        standing = standing_of(store, recipe.name)
        event = _event(store, standing, planned, decided, before, run_id=run_id, flow_run_id=flow_run_id)
        event = replace(event, after=copied) if event.outcome == "promoted" else event
    found = _already(standing, event)
    if found is None and event.outcome == "current":
        found = event
    if found is None:
        store.write_json(asdict(event), "current", recipe.name, f"{event.number:06}-{flow_run_id or run_id}.json")
        standing = standing_of(store, recipe.name)
        found = next(e for e in standing.events if (e.number, e.run_id) == (event.number, event.run_id))
    # Whatever came of it: a run that was killed after its event has left the pointer as it was.
    write_pointer(store, recipe.name)
    return found


def _with_copies(store: Store, event: Event, planned: Sequence[Planned], decided: Planned) -> Event:
    """A promotion whose adapter and scores are copies.

    Raises:
        StoreError: The adapter was made again since it was measured: it is not what was decided about.
    """
    assert event.after is not None  # a promotion has one
    measured = next(one for one in planned if one.ref == decided.inputs["scores_arm"])
    if measured.reusable(store) is None or decided.reusable(store) is None:
        raise StoreError(
            f"{store.link(event.after.adapter)}: another run has made the adapter again since it was measured. "
            "Nothing was promoted: run the same command again."
        )
    after = _kept(store, event.after)
    return replace(event, after=replace(after, scores=keep_scores(store, measured, after.adapter)))


def restore(store: Store, name: str, run_id: str, *, reason: str = "") -> Event:
    """Put back an adapter that was promoted before, by hand.

    Args:
        run_id: The run that promoted it, or the beginning of its id.
        reason: Stays in the history.

    Raises:
        ConfigError: No such run has promoted one, or it stands already.
        StoreError: It is gone, or was made again with other weights; or another was promoted in this very moment.
    """
    former = as_kept(store, _promoted_by(standing_of(store, name), run_id, name))
    _require_there(store, former)
    kept = _kept(store, former)
    standing = standing_of(store, name)  # after the copy, which takes minutes on S3
    if standing.now and former.weights == standing.now.weights:
        raise ConfigError(f"{name}: the adapter of {former.run_id} is the promoted one already. Nothing was changed.")
    at = datetime.now(UTC)
    after = replace(kept, restored_at=at.isoformat(timespec="microseconds"))
    event = Event(
        standing.events[-1].number + 1, at.isoformat(timespec="seconds"), former.run_id, "", "restored",
        [f"by hand: {reason}" if reason else "by hand"], former.decision, standing.now, after,
    )  # fmt: skip
    store.write_json(asdict(event), "current", name, f"{event.number:06}-restore-{uuid.uuid4().hex}.json")
    write_pointer(store, name)
    standing = standing_of(store, name)
    if event not in standing.events:  # not as it was written: it does not count
        raise StoreError(f"{name}: {lost(event, standing.now)} See `ssr current {name}`, and decide again.")
    return event


def _promoted_by(standing: Standing, run_id: str, name: str) -> Promoted:
    """The last adapter that a run has promoted."""
    promoted = {event.run_id: event.after for event in standing.events if event.outcome == "promoted" and event.after}
    matching = [run_id] if run_id in promoted else [one for one in promoted if one.startswith(run_id)]
    if len(matching) != 1:
        what = "several runs begin so that have" if matching else "no such run has ever"
        there = ", ".join(reversed(promoted)) or "none"
        raise ConfigError(f"{run_id}: {what} promoted an adapter for {name}. Promoted, newest first: {there}.")
    return promoted[matching[0]]


def _require_there(store: Store, former: Promoted) -> None:
    again = "Another that was promoted may still be there: `ssr current` lists them."
    if store.verified(**former.adapter) is None:
        raise StoreError(f"{store.link(former.adapter)}: the adapter of {former.run_id} is gone, or damaged. {again}")
    if not is_intact(store, former):
        raise StoreError(
            f"{store.link(former.adapter)}: the adapter of {former.run_id} was made again since, and has other weights "
            f"than those that were promoted. {again}"
        )
    for ref in former.refs():
        if store.manifest(**ref) is None:
            raise StoreError(
                f"{store.link(ref)}: gone, and the adapter of {former.run_id} cannot go on without. {again}"
            )


def _event(
    store: Store, standing: Standing, planned: Sequence[Planned], decided: Planned, before: Promoted | None, *,
    run_id: str, flow_run_id: str,
) -> Event:  # fmt: skip
    """The decision of a run, as an event after the last one."""
    decision: dict[str, Any] = json.loads((store.fetch(decided.ref) / "decision.json").read_text())  # Any: JSON values
    number = standing.events[-1].number + 1 if standing.events else 1
    at, adapter = datetime.now(UTC).isoformat(timespec="seconds"), decided.inputs["adapter"]
    examples = next(one.ref for one in planned if one.ref["step"] == "ingest")
    after = Promoted(
        decision["arm"], run_id, at, adapter, weights_of(store, adapter), examples, decided.inputs["scores_arm"],
        decided.ref, _origin(planned, adapter),
    )  # fmt: skip
    event = Event(number, at, run_id, flow_run_id, decision["outcome"], decision["reasons"], decided.ref, before, after)
    return as_it_counts(event, standing)


def _origin(planned: Sequence[Planned], adapter: Ref) -> Origin | None:
    """What the adapter went on from, as the steps that made it have it."""
    made = {one.ref["fingerprint"]: one for one in planned}
    trained = made[adapter["fingerprint"]]
    if "start" not in trained.inputs:
        return None
    selected = made[trained.inputs["targets"]["fingerprint"]]
    return Origin(trained.inputs["start"], selected.inputs["seen"])


def _already(standing: Standing, event: Event) -> Event | None:
    """The same decision, where it is written already: by an earlier try of the run, or by a run of the same inputs."""
    own = standing.of_flow_run(event.flow_run_id)
    if own is not None and own.decision == event.decision:
        return own
    if event.outcome in ("current", "promoted"):
        return None  # a promotion counts only where it is the first: one that was kept until now was made again
    for other in reversed(standing.events):
        if other.outcome == "restored":
            return None  # what was decided before that no longer says what stands
        if other.decision == event.decision:
            return other
        if other.outcome == "promoted":
            return None  # what was decided before that was about another adapter
    return None


def is_intact(store: Store, promoted: Promoted) -> bool:
    """Whether the adapter is there with the weights that were promoted: one without a copy may have been made again."""
    return weights_of(store, promoted.adapter) == promoted.weights


def kept_artifacts(store: Store) -> set[tuple[str, str]]:
    """What `ssr gc` must leave, as (step, fingerprint): all of the last adapters that stood, and of this one.

    They are what can be put back, and what a run that goes on now is compared with.
    """
    kept = set()
    for name in names(store):
        stood: dict[str, Promoted] = {}
        for event in history(store, name):
            if event.after and event.outcome in ("promoted", "restored"):
                stood.setdefault(event.after.weights, event.after)
        for promoted in list(stood.values())[:KEPT_PROMOTED]:
            kept |= {(ref["step"], ref["fingerprint"]) for ref in promoted.kept()}
    return kept
