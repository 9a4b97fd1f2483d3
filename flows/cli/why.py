"""`ssr why`: what the numbers of a run, or one of its training rows, were made from."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from flows.cli.options import JsonOption, RunId, StoreOption, console, print_json


def why(
    run_id: RunId,
    step: Annotated[str | None, typer.Argument(help="Only this step: a name or a label.")] = None,
    row: Annotated[str | None, typer.Option(help="The chain behind one training row: an example_id.")] = None,
    store: StoreOption = ".ssr",
    as_json: JsonOption = False,
) -> None:
    """Show what a run's numbers, or one of its training rows, were made from."""
    from flows.runs.records import load_run
    from flows.runs.why import explain_row, explain_steps
    from tasks.artifacts.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    found = explain_row(opened, record, row) if row else explain_steps(opened, record, step)
    if as_json:
        print_json(found)
        return
    for entry in found:
        console.print(f"[bold]{escape(str(entry.pop('title')))}[/]")
        for name, value in entry.items():
            console.print(f"    {name:<14} {escape(str(value))}", soft_wrap=True)
