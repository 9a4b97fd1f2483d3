"""`ssr report`: the result of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, RunId, StoreOption, console, print_json
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from flows.runs.records import RunRecord
    from tasks.artifacts.store import Store


def report(run_id: RunId = "latest", store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """Show a run's table and where its report is."""
    from flows.runs.records import load_run
    from tasks.artifacts.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    if as_json:
        print_json(json.loads((_report_folder(opened, record) / "report.json").read_text()))
    else:
        show_result(opened, record)


def _report_folder(store: Store, record: RunRecord) -> Path:
    made = record.step("report")
    if record.status != "completed" or made is None:
        raise ConfigError(f"{record.run_id} is {record.status}, it has no report. Run its recipe again to go on.")
    return store.fetch(made.ref)


def show_result(store: Store, record: RunRecord) -> None:
    """Print the table, the verdict and the promotion of a finished run, and the path of its report.

    Raises:
        ConfigError: The run has no report.
    """
    from tasks.report import summary_rows

    folder = _report_folder(store, record)
    found = json.loads((folder / "report.json").read_text())
    headers, rows = summary_rows(found)
    title = f"{record.name}: what each arm gained and forgot (points, change from base with its interval)"
    table = Table(*headers, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print()
    console.print(table)
    for sentence in found["verdict"]:
        console.print(escape(sentence))
    if decided := record.promotion:
        outcome = f"{decided['outcome']}: {'; '.join(decided['reasons'])}"
        console.print(f"\npromotion  {escape(outcome)}   (ssr current {record.name})")
    console.print(f"\nreport  {folder / 'report.html'}", soft_wrap=True)
    console.print(f"run     {record.run_id}   (ssr why {record.run_id})", soft_wrap=True)
