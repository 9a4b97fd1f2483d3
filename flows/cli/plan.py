"""`ssr plan`: what a run would do, why, and what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from flows.cli.options import (
    ForceOption,
    JsonOption,
    RecipeName,
    SetOption,
    StoreOption,
    console,
    load_named,
    print_json,
)

if TYPE_CHECKING:
    from flows.planning.price import WorkEstimate


def plan(
    recipe: RecipeName, set_: SetOption = None, store: StoreOption = ".ssr", force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a run would do, and why, before any GPU is touched. Ingests new data, so that rows can be counted."""
    from flows.planning.price import assumptions, price
    from flows.planning.questions import count_questions
    from flows.planning.reasons import plan_lines
    from flows.promotion.advance import current_for
    from flows.rehearsal import plan_steps
    from tasks.artifacts.store import open_store

    config = load_named(recipe, set_)
    opened = open_store(store)
    opened.preflight()
    planned = plan_steps(config, current_for(opened, config))
    lines = plan_lines(opened, planned, set(force or []))
    examples = opened.fetch(planned[0].execute(opened)) / "examples.parquet"
    answers, rewrites = count_questions(opened, config, planned, examples)
    prices = price(config, examples, n_missing=answers.n_missing)
    if as_json:
        counts: dict[str, int | None] = {"rows": answers.n_rows, "rows_to_generate": answers.n_missing}
        if config.reads("rewrites"):
            counts["rows_to_rewrite"] = rewrites.n_missing if rewrites else None
        priced = {"lines": [line._asdict() for line in prices], "assumptions": assumptions()}
        print_json({"steps": [line._asdict() for line in lines], **counts, "price": priced})
        return
    table = Table("step", "", "why", "fingerprint", box=None)
    for line in lines:
        style = "cyan" if line.action == "cached" else "yellow"
        table.add_row(line.label, f"[{style}]{line.action}[/]", escape(line.reason), line.fingerprint[:12])
    console.print(table)
    console.print(f"\nrows to generate: {answers.n_missing:,} of {answers.n_rows:,}")
    if config.reads("rewrites"):
        known = f"{rewrites.n_missing:,} of {rewrites.n_rows:,}" if rewrites else "decided after judging"
        console.print(f"rows to rewrite: {known}")
    _show_prices(prices)


def _show_prices(prices: list[WorkEstimate]) -> None:
    from flows.planning.price import assumptions

    table = Table("estimate", "rows", "prompt tokens", "new tokens", "GPU hours", box=None)
    for line in prices:
        hours = "size unknown" if line.gpu_hours is None else f"{line.gpu_hours:,.2f}"
        table.add_row(line.work, f"{line.rows:,}", f"{line.prompt_tokens:,}", f"{line.new_tokens:,}", hours)
    console.print()
    console.print(table)
    for note in dict.fromkeys(line.note for line in prices if line.note):
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    console.print(f"[dim]{escape(' '.join(assumptions()))}[/]")
