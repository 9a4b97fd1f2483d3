"""`ssr audit-judge`: how good the judge of a recipe is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import JsonOption, RecipeName, SetOption, StoreOption, console, load_named, print_json, stderr


def audit_judge(
    recipe: RecipeName,
    labels: Annotated[
        Path | None, typer.Option(help="Data file with question, gold, candidate and label (accept or reject).")
    ] = None,
    set_: SetOption = None, store: StoreOption = ".ssr", as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure how good a recipe's judge is, by labelled answers, or else by probes whose truth is known."""
    from flows.runs.audit_judge import against_labels, against_probes, agreement_table, audit_tables
    from tasks.artifacts.store import open_store

    config = load_named(recipe, set_)
    opened = open_store(store)
    opened.preflight()
    with stderr.status("judging"):
        found = against_labels(opened, config, labels) if labels else against_probes(opened, config)
    if as_json:
        print_json(found)
    elif isinstance(found, list):
        console.print(agreement_table(found))
    else:
        for shown in audit_tables(found):
            console.print(shown)
