"""`ssr runs`: the runs of a store."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, StoreOption, console, print_json


def runs(store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """List the runs in a store, newest first."""
    from flows.runs.records import all_runs
    from tasks.artifacts.store import open_store

    records = all_runs(open_store(store))
    if as_json:
        print_json([{"run_id": r.run_id, "status": r.status, "started": r.started, "ended": r.ended} for r in records])
        return
    table = Table("run", "status", "started (UTC)", "problem", box=None)
    for record in records:
        table.add_row(
            record.run_id, record.status, record.started[:19], escape((record.problem or "").split("\n")[0][:60])
        )
    console.print(table if records else f"no run in {store} yet. Start one: ssr run demo")
