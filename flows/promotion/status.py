"""What `ssr current` shows: the adapter that is promoted for a recipe, and the decisions that led there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from flows.promotion.log import Event, Promoted, read_log, recipes_with_log
from tasks.artifacts.store import Store
from tasks.errors import ConfigError

Status = dict[str, Any]  # Any: JSON values


def promotion_status(store: Store, recipe: str | None) -> list[Status]:
    """The promoted adapter and all decisions, newest first, of one recipe or, with None, of each.

    Raises:
        ConfigError: No run of that recipe has decided about an adapter.
    """
    known = recipes_with_log(store)
    if recipe is not None and recipe not in known:
        there = f"There are: {', '.join(known)}." if known else "No recipe has, yet."
        raise ConfigError(f"{recipe}: no run of it in {store.uri} has decided about an adapter. {there}")
    return [_status_of(store, name) for name in ([recipe] if recipe is not None else known)]


def _status_of(store: Store, recipe: str) -> Status:
    log = read_log(store, recipe)
    current = _adapter(store, log.promoted) if log.promoted else None
    return {"recipe": recipe, "current": current, "history": [_decision(event) for event in reversed(log.events)]}


def _adapter(store: Store, promoted: Promoted) -> Status:
    return {
        "run_id": promoted.run_id, "arm": promoted.arm, "since": promoted.restored_at or promoted.promoted_at,
        "adapter": promoted.adapter, "folder": store.link(promoted.adapter, "adapter"),
        "intact": store.weights_digest(promoted.adapter) == promoted.weights,
        "decision": store.link(promoted.decision, "decision.json"),
    }  # fmt: skip


def _decision(event: Event) -> Status:
    before, by_hand = event.before.run_id if event.before else "base", event.outcome == "restored"
    return {
        "number": event.number, "at": event.at, "run_id": event.run_id, "outcome": event.outcome,
        "reasons": event.reasons, "compared_with": None if by_hand else before, "replaced": before if by_hand else None,
    }  # fmt: skip


def status_lines(found: list[Status]) -> Iterator[str]:
    """The status of recipes as lines for the terminal, in rich's markup."""
    if not found:
        yield "no run here has decided about an adapter. A recipe promotes with: promotion: {arm: NAME}"
    for one in found:
        current = one["current"]
        if current is None:
            yield f"[bold]{one['recipe']}[/]  no adapter is promoted yet"
        else:
            yield f"[bold]{one['recipe']}[/]  {current['run_id']} ({current['arm']}) since {current['since'][:19]} UTC"
            yield f"    {escape(current['folder'])}"
        if current and not current["intact"]:
            yield "    [red]the promoted adapter is no longer in the store[/]"
        for event in one["history"]:
            beside = f"in place of {event['replaced']}" if event["replaced"] else f"against {event['compared_with']}"
            yield f"\n{event['at'][:19]}  {event['outcome']:<8}  {event['run_id']}, {beside}"
            yield from (f"    {escape(reason)}" for reason in event["reasons"])
