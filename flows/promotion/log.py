"""The log of promotions: every decision about a recipe's adapter, and what stands after all of them.

    <store>/current/<recipe>/<number>-<run>.json      one event a decision: promoted, kept or, by hand, restored
    <store>/current/<recipe>.json                     the adapter that is promoted now, for whoever deploys it

The events are the truth. They are only ever added, each under a name of its own, and read in the order of their names:
a promotion counts if what it was compared with is what the events before it have put in place. So a run that took long
never pushes out what was promoted meanwhile, and of two that decide at the same moment one counts, the same one for
every reader, and the other stays in the history as kept: no lock, and nothing that only some S3 servers know. The
second file is made from the events after each, and names a copy of the adapter (`flows.promotion.copies`).

What was promoted before can be put back by hand, under the same rule. A run that was planned before that is kept back,
whatever it was compared with; and the weights that were replaced so are never promoted again by a run, or the next one
on the same data would undo it.

Not covered: who decides, and how (`flows.promotion.advance`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from flows.promotion.copies import kept_adapter
from tasks.artifacts.store import Ref, Store

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
        adapter: A copy that nothing changes. Of one promoted before there were copies: what the training step made,
            which may be made again by force and then has other weights.
        weights: Digest of the weights that were promoted.
        scores: What it scored in the run that promoted it.
        origin: None: a fresh adapter, trained on all of `examples`.
        restored_at: When it was put back by hand; None where it stands, or stood, since it was promoted.
        trained: What `adapter` is a copy of; None where it is none.
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
    restored_at: str | None = None
    trained: Ref | None = None

    def refs(self) -> list[Ref]:
        """The artifacts that must be there while this is promoted, or may be again."""
        own = [self.adapter, self.examples, self.scores, self.decision]
        return own + ([self.origin.adapter, self.origin.examples] if self.origin else [])

    def kept(self) -> list[Ref]:
        """Those, its copy wherever there is one, and what a run on the same data would have to train again."""
        return [*self.refs(), kept_adapter(self.weights), *([self.trained] if self.trained else [])]


@dataclass(frozen=True)
class Event:
    """A decision.

    Attributes:
        run_id: The run that decided; of what was restored, the run that had promoted it.
        outcome: promoted, kept or restored; from `advance` also current: nothing changed, and nothing was written.
        before: What was promoted when the run began, or when somebody decided by hand; `after` what is since.
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


class Standing(NamedTuple):
    """Every event, oldest first, with the outcome that it has in the end; and what is promoted after all of them.

    Attributes:
        replaced: What was replaced by hand, and not put back since: the event, by the digest of the weights.
    """

    events: list[Event]
    now: Promoted | None
    replaced: dict[str, Event]

    def of_flow_run(self, flow_run_id: str) -> Event | None:
        """The last event of this flow run, whatever happened since."""
        own = [event for event in self.events if flow_run_id and event.flow_run_id == flow_run_id]
        return own[-1] if own else None


def standing_of(store: Store, name: str) -> Standing:
    """What the log of a recipe says."""
    files = [file for file in store.names("current", name) if file.endswith(".json")]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        written = list(pool.map(lambda file: _event_in(store, name, file), files))
    standing = Standing([], None, {})
    for event in written:
        standing = _after(standing, as_it_counts(event, standing))
    return standing._replace(now=as_kept(store, standing.now) if standing.now else None)


def as_kept(store: Store, promoted: Promoted) -> Promoted:
    """The same with its copy as the adapter, where one was made since it was promoted."""
    if promoted.trained is not None or store.manifest(**kept_adapter(promoted.weights)) is None:
        return promoted
    return replace(promoted, adapter=kept_adapter(promoted.weights), trained=promoted.adapter)


def _after(standing: Standing, event: Event) -> Standing:
    replaced = dict(standing.replaced)
    if event.outcome == "restored" and event.before and event.after:
        replaced[event.before.weights] = event
        replaced.pop(event.after.weights, None)
    return Standing([*standing.events, event], event.after, replaced)


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


def as_it_counts(event: Event, standing: Standing) -> Event:
    """An event after what stands: kept where it was to replace something else, or brings back what was replaced."""
    now = standing.now
    if event.outcome not in ("promoted", "restored"):
        return replace(event, after=now)
    if _identity(event.before) != _identity(now):
        return replace(event, outcome="kept", reasons=[lost(event, now)], after=now)
    by_hand = standing.replaced.get(event.after.weights) if event.after else None
    if event.outcome == "promoted" and by_hand:
        reason = (
            f"it has the very weights that were replaced by hand at {by_hand.at[:19]} ({'; '.join(by_hand.reasons)}). "
            f"Only `ssr current --restore` brings them back."
        )
        return replace(event, outcome="kept", reasons=[reason], after=now)
    return event


def lost(event: Event, now: Promoted | None) -> str:
    """Why an event does not count."""
    before = event.before.run_id if event.before else "the base"
    meanwhile = f"{now.run_id} was {'put back by hand' if now.restored_at else 'promoted'}" if now else "nothing stands"
    if event.outcome == "restored":
        return f"{event.run_id} was to be put back in place of {before}, but meanwhile {meanwhile}."
    return f"it was compared with {before}, but meanwhile {meanwhile}. The next run compares with that."


def _identity(promoted: Promoted | None) -> tuple[Ref, str, str | None] | None:
    """What stood, and since when: put back, it is something else for those who were compared with it before."""
    return (promoted.decision, promoted.weights, promoted.restored_at) if promoted else None


def write_pointer(store: Store, name: str) -> None:
    """Say for whoever deploys it what is promoted now: again, if the log has grown while it was written.

    Else, of two that write at once, the one that has read less of the log could be the last.
    """
    written, now = None, promoted_now(store, name)
    while now is not None and now != written:
        folder = {"folder": store.link(now.adapter, "adapter"), "history": f"{store.uri}/current/{name}/"}
        store.write_json(asdict(now) | folder, "current", f"{name}.json")
        written, now = now, promoted_now(store, name)


def names(store: Store) -> list[str]:
    """The recipes that have decided about an adapter."""
    return [name for name in store.names("current") if not name.endswith(".json")]


def promoted_now(store: Store, name: str) -> Promoted | None:
    """What is promoted for a recipe of this name."""
    return standing_of(store, name).now


def history(store: Store, name: str) -> list[Event]:
    """All decisions, newest first."""
    return standing_of(store, name).events[::-1]
