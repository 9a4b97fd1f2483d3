"""The promotion log of a recipe: every decision about an adapter, and which adapter they leave promoted.

    <store>/current/<recipe>/<number>-<run>.json      one event a decision: promoted, kept or, by hand, restored
    <store>/current/<recipe>.json                     the adapter that is promoted now, for whoever deploys it

The events are the truth. They are only ever added, each in a file of its own, and are read in the order of their file
names. A promotion counts only if the adapter that it was compared with is still the promoted one after all events
before it. So a slow run never replaces an adapter that was promoted after it was planned. If two runs decide at the
same moment, every reader counts the same one, and the other stays in the log as kept. This needs no lock and no feature
that only some S3 servers have. The second file is derived from the events, and names a copy of the adapter
(`flows.promotion.copies`).

A person can restore an adapter that was promoted before, under the same rule: a run that was planned before then is
kept. And no run promotes the replaced weights again, or the next run on the same data would undo the restoration.

Not covered: who decides, and how (`flows.promotion.advance`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tasks.artifacts.store import Ref, Store

_FILES_AT_ONCE = 8


@dataclass(frozen=True)
class Origin:
    """Where training went on from: an adapter, and the examples which that adapter had seen."""

    adapter: Ref
    examples: Ref


@dataclass(frozen=True)
class Promoted:
    """An adapter that is promoted, or was.

    Attributes:
        adapter: The copy of the adapter. Nothing changes it.
        weights: Digest of its weights.
        examples: The examples of the run that promoted it.
        scores: Its scores in the run that promoted it.
        decision: The artifact of the promote step.
        origin: None: training started with a fresh adapter, on all of `examples`.
        trained: The artifact of the train step that `adapter` is a copy of.
        restored_at: When a person restored it, ISO 8601 in UTC; None if its run promoted it.
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
    trained: Ref
    restored_at: str | None = None

    def artifacts(self) -> list[Ref]:
        """The artifacts that must exist while this adapter is promoted, or for it to be restored."""
        own = [self.adapter, self.examples, self.scores, self.decision]
        return own + ([self.origin.adapter, self.origin.examples] if self.origin else [])


@dataclass(frozen=True)
class Event:
    """One decision about an adapter.

    Attributes:
        number: Its place in the log, from 1; two events of one moment may have the same.
        run_id: The run that decided; of a restored adapter, the run that had promoted it.
        outcome: promoted, kept or restored. `advance` also returns current: the adapter was the promoted one already,
            and nothing was written.
        decision: The artifact of the promote step.
        before: The promoted adapter when the run was planned, or when a person decided; None for the base model.
        after: The promoted adapter after this event.
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
        """What the record of the run keeps: outcome, reasons, and the run whose adapter is promoted now."""
        current = self.after.run_id if self.after else None
        return {"outcome": self.outcome, "reasons": self.reasons, "current": current}


class PromotionLog(NamedTuple):
    """The events of a recipe, and what follows from them.

    Attributes:
        events: Oldest first, each with the outcome that counts.
        promoted: The adapter that is promoted after all events.
        replaced: By the digest of its weights, each adapter that a person has replaced, with the event that did it. One
            that was restored since is not among them.
    """

    events: list[Event]
    promoted: Promoted | None
    replaced: dict[str, Event]

    def of_flow_run(self, flow_run_id: str) -> Event | None:
        """The last event of this flow run, whatever happened since."""
        own = [event for event in self.events if flow_run_id and event.flow_run_id == flow_run_id]
        return own[-1] if own else None


def read_log(store: Store, recipe: str) -> PromotionLog:
    """Read all events of a recipe, and work out which of them count."""
    files = [file for file in store.names("current", recipe) if file.endswith(".json")]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        written = list(pool.map(lambda file: _read_event(store, recipe, file), files))
    log = PromotionLog([], None, {})
    for event in written:
        log = _with(log, as_it_counts(event, log))
    return log


def _with(log: PromotionLog, event: Event) -> PromotionLog:
    replaced = dict(log.replaced)
    if event.outcome == "restored" and event.before and event.after:
        replaced[event.before.weights] = event
        replaced.pop(event.after.weights, None)
    return PromotionLog([*log.events, event], event.after, replaced)


_READ: dict[tuple[str, str, str], Event] = {}  # an event never changes, and a year of nightly runs has many


def _read_event(store: Store, recipe: str, file: str) -> Event:
    key = (store.root, recipe, file)
    if key not in _READ:
        raw = store.read_json("current", recipe, file)
        _READ[key] = Event(**{**raw, "before": _promoted(raw["before"]), "after": _promoted(raw["after"])})
    return _READ[key]


def _promoted(raw: dict[str, Any] | None) -> Promoted | None:  # Any: JSON values
    if raw is None:
        return None
    origin = Origin(**raw["origin"]) if raw["origin"] else None
    return Promoted(**{**raw, "origin": origin})


def as_it_counts(event: Event, log: PromotionLog) -> Event:
    """The event with the outcome that counts after the events of `log`.

    A promotion or restoration counts as kept if another adapter has been promoted since it was decided, and a promotion
    also if its weights were replaced by a person.
    """
    promoted = log.promoted
    if event.outcome not in ("promoted", "restored"):
        return replace(event, after=promoted)
    if _promotion_of(event.before) != _promotion_of(promoted):
        return replace(event, outcome="kept", reasons=[outdated(event, promoted)], after=promoted)
    by_hand = log.replaced.get(event.after.weights) if event.after else None
    if event.outcome == "promoted" and by_hand:
        reason = (
            f"a person replaced an adapter with the same weights at {by_hand.at[:19]} ({'; '.join(by_hand.reasons)}). "
            f"Only `ssr current --restore` promotes it again."
        )
        return replace(event, outcome="kept", reasons=[reason], after=promoted)
    return event


def outdated(event: Event, promoted: Promoted | None) -> str:
    """Say that another adapter was promoted between the decision of an event and its place in the log."""
    before = event.before.run_id if event.before else "the base"
    meanwhile = "no adapter is promoted any more"
    if promoted:
        meanwhile = f"{promoted.run_id} was {'restored by hand' if promoted.restored_at else 'promoted'}"
    if event.outcome == "restored":
        return f"{event.run_id} was to replace {before}, but meanwhile {meanwhile}."
    return f"it was compared with {before}, but meanwhile {meanwhile}. The next run compares with that."


def _promotion_of(promoted: Promoted | None) -> tuple[Ref, str, str | None] | None:
    """What tells one promotion from another.

    An adapter that is restored counts as promoted anew, so that runs which were compared with it before are kept.
    """
    return (promoted.decision, promoted.weights, promoted.restored_at) if promoted else None


def write_pointer(store: Store, recipe: str) -> None:
    """Write the file that says which adapter is promoted; repeat it if the log has grown meanwhile.

    Otherwise, of two processes that write it at once, the one that has read fewer events could write last.
    """
    written, now = None, promoted_now(store, recipe)
    while now is not None and now != written:
        folder = {"folder": store.link(now.adapter, "adapter"), "history": f"{store.uri}/current/{recipe}/"}
        store.write_json(asdict(now) | folder, "current", f"{recipe}.json")
        written, now = now, promoted_now(store, recipe)


def recipes_with_log(store: Store) -> list[str]:
    """The names of the recipes whose runs have decided about an adapter."""
    return [name for name in store.names("current") if not name.endswith(".json")]


def promoted_now(store: Store, recipe: str) -> Promoted | None:
    """The adapter that is promoted for a recipe; None if there is none."""
    return read_log(store, recipe).promoted
