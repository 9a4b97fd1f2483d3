"""The promoted adapter of a recipe: what a run is planned against, and how a run or a person replaces it.

The promotion log (`flows.promotion.log`) says which adapter is promoted.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from flows.promotion.copies import copy_adapter, copy_of, copy_scores
from flows.promotion.log import (
    Event,
    Origin,
    Promoted,
    PromotionLog,
    as_it_counts,
    outdated,
    read_log,
    recipes_with_log,
    write_pointer,
)  # fmt: skip
from tasks.artifacts.store import Ref, Store
from tasks.config import RunConfig
from tasks.errors import ConfigError, StoreError
from tasks.models import model_digest
from tasks.running.step import Planned

KEPT_PROMOTED = 5  # adapters that `ssr gc` keeps for each recipe, so that they can be restored


def current_for(store: Store, recipe: RunConfig, flow_run_id: str = "") -> Promoted | None:
    """The promoted adapter that a run is planned against; None if there is none, or the recipe promotes nothing.

    A retry of a run that has decided already gets the adapter that the first try had. Otherwise it would compare its
    own adapter with itself.

    Raises:
        StoreError: The adapter is gone, or belongs to another base model.
    """
    if recipe.promotion is None:
        return None
    log = read_log(store, recipe.name)
    own = log.of_flow_run(flow_run_id)
    current = own.before if own else log.promoted
    if current is not None:
        _require_usable(store, recipe, current)
    return current


def _require_usable(store: Store, recipe: RunConfig, current: Promoted) -> None:
    where = f"{store.uri}/current/{recipe.name}.json"
    manifest = store.manifest(**current.adapter)
    if manifest is None:
        raise StoreError(
            f"{where}: the promoted adapter {store.link(current.adapter)} is gone. Bring it back, or restore another: "
            f"ssr current {recipe.name} --restore RUN_ID. Or start over: remove {store.uri}/current/{recipe.name}/, or "
            "give the recipe another name."
        )
    trained_on = (manifest.identity.get("outside") or {}).get("model")
    if trained_on != model_digest(recipe.model):
        raise StoreError(
            f"{where}: the promoted adapter belongs to another base model than model.base={recipe.model.base}. "
            "Adapters of two models cannot be compared: give the recipe another name."
        )


def origin_for(current: Promoted | None, examples: Ref) -> Origin | None:
    """Where training on new rows alone goes on from; None: nowhere yet, so a fresh adapter is trained on all rows.

    Usually that is the promoted adapter. If the examples are the same as when it was trained, there is no new row. Then
    it is what the promoted adapter went on from, so that the train step is the one that made it: a cache hit.
    """
    if current is None:
        return None
    return current.origin if current.examples == examples else Origin(current.adapter, current.examples)


def advance(
    store: Store, recipe: RunConfig, planned: Sequence[Planned], before: Promoted | None, *, run_id: str,
    flow_run_id: str = "",
) -> Event | None:  # fmt: skip
    """Write the decision of a run whose steps are done to the promotion log. A retry writes nothing more.

    Args:
        planned: All steps of the run.
        before: What the run was planned against.

    Returns:
        The decision as it counts; None where the recipe promotes nothing.
    """
    if recipe.promotion is None:
        return None
    decided = next(one for one in planned if one.ref["step"] == "promote")
    log = read_log(store, recipe.name)
    event = _event(store, log, planned, decided, before, run_id=run_id, flow_run_id=flow_run_id)
    if event.outcome == "promoted" and _written(log, event) is None:
        scores = _copy(store, event, planned, decided)
        # On S3 copying takes minutes, and this event must come after those that were written meanwhile.
        log = read_log(store, recipe.name)
        event = _event(store, log, planned, decided, before, run_id=run_id, flow_run_id=flow_run_id)
        if event.outcome == "promoted" and event.after:
            event = replace(event, after=replace(event.after, scores=scores))
    found = _written(log, event)
    if found is None and event.outcome == "current":
        found = event
    if found is None:
        store.write_json(asdict(event), "current", recipe.name, f"{event.number:06}-{flow_run_id or run_id}.json")
        log = read_log(store, recipe.name)
        found = next(e for e in log.events if (e.number, e.run_id) == (event.number, event.run_id))
    # Always: an earlier try may have been killed between its event and the pointer.
    write_pointer(store, recipe.name)
    return found


def _copy(store: Store, event: Event, planned: Sequence[Planned], decided: Planned) -> Ref:
    """Copy the adapter that is to be promoted, and its scores; gives the copied scores.

    Raises:
        StoreError: The adapter was made again since it was measured, so the decision is about another one.
    """
    assert event.after is not None  # a promotion has an adapter
    trained = event.after.trained
    measured = next(one for one in planned if one.ref == decided.inputs["scores_arm"])
    if measured.reusable(store) is None or decided.reusable(store) is None:
        raise StoreError(
            f"{store.link(trained)}: another run has made the adapter again since it was measured. "
            "Nothing was promoted: run the same command again."
        )
    return copy_scores(store, measured, copy_adapter(store, trained, event.after.weights))


def restore(store: Store, name: str, run_id: str, *, reason: str = "") -> Event:
    """Promote an adapter again that was promoted before: the decision of a person.

    Args:
        name: The recipe's name.
        run_id: The run that promoted it, or the beginning of its id.
        reason: Is written to the log.

    Raises:
        ConfigError: No such run has promoted an adapter, or it is the promoted one already.
        StoreError: The adapter is gone; or another one was promoted in this very moment.
    """
    log = read_log(store, name)
    former = _promoted_by(log, run_id, name)
    _require_there(store, former)
    if log.promoted and former.weights == log.promoted.weights:
        raise ConfigError(f"{name}: the adapter of {former.run_id} is the promoted one already. Nothing was changed.")
    at = datetime.now(UTC)
    after = replace(former, restored_at=at.isoformat(timespec="microseconds"))
    event = Event(
        log.events[-1].number + 1, at.isoformat(timespec="seconds"), former.run_id, "", "restored",
        [f"by hand: {reason}" if reason else "by hand"], former.decision, log.promoted, after,
    )  # fmt: skip
    store.write_json(asdict(event), "current", name, f"{event.number:06}-restore-{uuid.uuid4().hex}.json")
    write_pointer(store, name)
    log = read_log(store, name)
    if event not in log.events:  # the log has it with another outcome: it does not count
        raise StoreError(f"{name}: {outdated(event, log.promoted)} See `ssr current {name}`, and decide again.")
    return event


def _promoted_by(log: PromotionLog, run_id: str, name: str) -> Promoted:
    """The last adapter that a run has promoted."""
    promoted = {event.run_id: event.after for event in log.events if event.outcome == "promoted" and event.after}
    matching = [run_id] if run_id in promoted else [one for one in promoted if one.startswith(run_id)]
    if len(matching) != 1:
        what = "the ids of several runs begin so that have" if matching else "no such run has ever"
        there = ", ".join(reversed(promoted)) or "none"
        raise ConfigError(f"{run_id}: {what} promoted an adapter for {name}. Promoted, newest first: {there}.")
    return promoted[matching[0]]


def _require_there(store: Store, former: Promoted) -> None:
    again = "`ssr current` lists the others that were promoted; one of them may still be there."
    if store.verified(**former.adapter) is None:
        raise StoreError(f"{store.link(former.adapter)}: the adapter of {former.run_id} is gone, or damaged. {again}")
    for ref in former.artifacts():
        if store.manifest(**ref) is None:
            raise StoreError(
                f"{store.link(ref)}: it is gone, and the adapter of {former.run_id} cannot be promoted without it. "
                f"{again}"
            )


def _event(
    store: Store, log: PromotionLog, planned: Sequence[Planned], decided: Planned, before: Promoted | None, *,
    run_id: str, flow_run_id: str,
) -> Event:  # fmt: skip
    """The decision of a run as the next event, with the outcome that counts.

    Its adapter names the copy, which `_copy` makes where the adapter is promoted.
    """
    decision: dict[str, Any] = json.loads((store.fetch(decided.ref) / "decision.json").read_text())  # Any: JSON values
    number = log.events[-1].number + 1 if log.events else 1
    at, trained = datetime.now(UTC).isoformat(timespec="seconds"), decided.inputs["adapter"]
    weights = store.require(trained).weights_digest
    examples = next(one.ref for one in planned if one.ref["step"] == "ingest")
    after = Promoted(
        decision["arm"], run_id, at, copy_of(weights), weights, examples, decided.inputs["scores_arm"], decided.ref,
        _origin(planned, trained), trained,
    )  # fmt: skip
    event = Event(number, at, run_id, flow_run_id, decision["outcome"], decision["reasons"], decided.ref, before, after)
    return as_it_counts(event, log)


def _origin(planned: Sequence[Planned], adapter: Ref) -> Origin | None:
    """Where training went on from, by the inputs of the steps that made the adapter."""
    made = {one.ref["fingerprint"]: one for one in planned}
    trained = made[adapter["fingerprint"]]
    if "start" not in trained.inputs:
        return None
    selected = made[trained.inputs["targets"]["fingerprint"]]
    return Origin(trained.inputs["start"], selected.inputs["seen"])


def _written(log: PromotionLog, event: Event) -> Event | None:
    """The same decision where the log has it already: from an earlier try, or from another run with the same inputs."""
    own = log.of_flow_run(event.flow_run_id)
    if own is not None and own.decision == event.decision:
        return own
    if event.outcome in ("current", "promoted"):
        return None  # a forced run has decided anew: an earlier event of the same artifact was kept
    for other in reversed(log.events):
        if other.decision == event.decision and other.outcome != "restored":
            return other
        if other.outcome in ("restored", "promoted"):
            return None  # the decisions before it were about another promoted adapter
    return None


def kept_artifacts(store: Store) -> set[tuple[str, str]]:
    """The artifacts that `ssr gc` must keep, as (step, fingerprint): those of the last adapters that were promoted.

    These adapters can be restored, and a run is compared with one of them.
    """
    kept = set()
    for recipe in recipes_with_log(store):
        promoted: dict[str, Promoted] = {}
        for event in reversed(read_log(store, recipe).events):
            if event.after and event.outcome in ("promoted", "restored"):
                promoted.setdefault(event.after.weights, event.after)
        for one in list(promoted.values())[:KEPT_PROMOTED]:
            # A run on the same data would have to train again without the artifact of the train step.
            kept |= {(ref["step"], ref["fingerprint"]) for ref in [*one.artifacts(), one.trained]}
    return kept
