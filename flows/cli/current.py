"""`ssr current`: which adapters are promoted, and how to put an earlier one back."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.options import JsonOption, StoreOption, console, print_json
from tasks.errors import ConfigError


def current(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe; without it, all recipes that promote.")
    ] = None,
    restore: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Put back the adapter that this run had promoted.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why it is put back; the history keeps the reason.")] = "",
    store: StoreOption = ".ssr",
    as_json: JsonOption = False,
) -> None:
    """Show which adapter is promoted, since when, and every decision about it, newest first.

    With --restore, first put back an adapter that was promoted before. The next
    run compares with it, and no run promotes the replaced weights again. A run
    that is in progress does not promote. `ssr gc` keeps the last five adapters
    that were promoted.
    """
    from flows.promotion.advance import restore as put_back
    from flows.promotion.status import promotion_status, status_lines
    from tasks.artifacts.store import open_store

    if (restore is not None and recipe is None) or (reason and restore is None):
        raise ConfigError("ssr current: say which adapter is put back: ssr current NAME --restore RUN_ID")
    opened = open_store(store)
    found = promotion_status(opened, recipe)
    if restore is not None and recipe is not None:
        put_back(opened, recipe, restore, reason=reason)
        found = promotion_status(opened, recipe)
    if as_json:
        print_json(found)
        return
    for shown in status_lines(found):
        console.print(shown, soft_wrap=True)
