"""`ssr gc`: remove what no run needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.options import JsonOption, StoreOption, console, print_json


def gc(
    store: StoreOption = ".ssr",
    keep: Annotated[int, typer.Option(min=0, help="Runs to keep, newest first; their artifacts stay.")] = 10,
    days: Annotated[int, typer.Option(min=1, help="Days to keep the checkpoints of runs that are not kept.")] = 7,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that none of the kept runs uses, and what unfinished or killed work left behind.

    That is: checkpoints, claims of dead workers, half-written files, and
    copies of artifacts on this machine. What a worker is working on is kept,
    and so are the last five adapters that a recipe promoted, for
    `ssr current --restore`.

    Generated rows and benchmark items are never removed: they were paid for.
    """
    from flows.runs.gc import collect, collected_lines
    from tasks.artifacts.store import open_store

    found = collect(open_store(store), keep=keep, days=days, remove=yes)
    if as_json:
        print_json(found._asdict())
        return
    for line in collected_lines(found, removed=yes):
        console.print(line, soft_wrap=True)
    if not found.is_nothing and not yes:
        console.print("remove them: ssr gc --yes, with the same options")
