"""What `ssr current` shows: the adapter that is promoted for a recipe, and the decisions that led there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from flows.promotion.advance import is_intact
from flows.promotion.log import Event, Promoted, history, names, promoted_now
from tasks.artifacts.store import Store
from tasks.errors import ConfigError

Found = dict[str, Any]  # Any: JSON values


def standing(store: Store, recipe: str | None) -> list[Found]:
    """A value for each recipe, or for one.

    Raises:
        ConfigError: No run of that recipe has decided about an adapter.
    """
    known = names(store)
    if recipe is not None and recipe not in known:
        there = f"There are: {', '.join(known)}." if known else "No recipe has, yet."
        raise ConfigError(f"{recipe}: no run of it in {store.uri} has decided about an adapter. {there}")
    return [_of(store, name) for name in ([recipe] if recipe is not None else known)]


def _of(store: Store, name: str) -> Found:
    now = promoted_now(store, name)
    return {
        "recipe": name,
        "current": _shown(store, now) if now else None,
        "history": [_decision(event) for event in history(store, name)],
    }


def _shown(store: Store, now: Promoted) -> Found:
    return {
        "run_id": now.run_id, "arm": now.arm, "since": now.restored_at or now.promoted_at, "adapter": now.adapter,
        "folder": store.link(now.adapter, "adapter"), "intact": is_intact(store, now),
        "decision": store.link(now.decision, "decision.json"),
    }  # fmt: skip


def _decision(event: Event) -> Found:
    before, by_hand = event.before.run_id if event.before else "base", event.outcome == "restored"
    return {
        "number": event.number, "at": event.at, "run_id": event.run_id, "outcome": event.outcome,
        "reasons": event.reasons, "compared_with": None if by_hand else before, "replaced": before if by_hand else None,
    }  # fmt: skip


def standing_lines(found: list[Found]) -> Iterator[str]:
    """The same for people."""
    if not found:
        yield "no adapter was ever up for promotion here. A recipe promotes with: promotion: {arm: NAME}"
    for one in found:
        now = one["current"]
        if now is None:
            yield f"[bold]{one['recipe']}[/]  nothing is promoted yet"
        else:
            yield f"[bold]{one['recipe']}[/]  {now['run_id']} ({now['arm']}) since {now['since'][:19]} UTC"
            yield f"    {escape(now['folder'])}"
        if now and not now["intact"]:
            yield "    [red]its weights are no longer those that were promoted[/]: it was removed, or made again"
        for event in one["history"]:
            beside = f"in place of {event['replaced']}" if event["replaced"] else f"against {event['compared_with']}"
            yield f"\n{event['at'][:19]}  {event['outcome']:<8}  {event['run_id']}, {beside}"
            yield from (f"    {escape(reason)}" for reason in event["reasons"])
