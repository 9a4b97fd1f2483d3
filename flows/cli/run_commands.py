"""The commands of `ssr` that start runs and look at them."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.cli.options import (
    ForceOption,
    JsonOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    StoreOption,
    check_forced,
    console,
    errors,
    load_named,
    print_json,
)
from flows.runs.recipes import shipped
from tasks.errors import ConfigError, StepError

if TYPE_CHECKING:
    from flows.planning.price import Line
    from tasks.artifacts.store import Store
    from tasks.config import RunConfig


def run(
    recipe: RecipeArgument, set_: SetOption = None, store: StoreOption = ".ssr", force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run a recipe, or go on where an earlier run of it stopped."""
    from flows.execution.devices import gpu_remarks
    from flows.promotion.advance import current_for
    from flows.rehearsal import plan_steps
    from tasks.artifacts.store import open_store

    config = load_named(recipe, set_)
    for remark in gpu_remarks(config):
        errors.print(f"[yellow]{escape(remark)}[/]", soft_wrap=True, highlight=False)
    opened = open_store(store)
    opened.preflight()
    # Finds missing data and models before Prefect starts.
    planned = plan_steps(config, current_for(opened, config))
    check_forced(force, {name for p in planned for name in (p.step.name, p.label)})
    record = _run_flow(config, opened, force or [], quiet=as_json)
    if as_json:
        print_json(record)
    else:
        _show_result(opened, record)


def _run_flow(config: RunConfig, store: Store, force: list[str], *, quiet: bool) -> dict[str, Any]:  # Any: JSON values
    from flows.execution.terminal import TerminalListener
    from tasks.running import progress

    _prepare_prefect(store)
    out = errors if quiet else console
    with out.status("starting Prefect"):
        from flows.run import rehearsal
    listener = TerminalListener(out)
    with listener, progress.listening(listener):
        return rehearsal(config, store=store.uri, force=tuple(force))


def _prepare_prefect(store: Store) -> None:
    """Settings that must stand before Prefect is imported; what the user has set stays."""
    defaults = {
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(store.cache / "prefect"),
        # Prefect's server keeps the whole log; the terminal shows steps, and an error once.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,flows",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _show_result(store: Store, record: dict[str, Any]) -> None:  # Any: JSON values
    from flows.runs.records import load_run
    from tasks.report import summary_rows

    report = load_run(store, record["run_id"]).step("report")
    if report is None:
        raise StepError(f"{record['run_id']}: the run has no report")
    folder = store.fetch(report.ref)
    found = json.loads((folder / "report.json").read_text())
    headers, rows = summary_rows(found)
    title = f"{record['name']}: what each arm gained and forgot (points, change from base with its interval)"
    table = Table(*headers, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print()
    console.print(table)
    for sentence in found["verdict"]:
        console.print(escape(sentence), highlight=False)
    if decided := record.get("promotion"):
        told = f"{decided['outcome']}: {'; '.join(decided['reasons'])}"
        console.print(f"\npromotion  {escape(told)}   (ssr current {record['name']})", highlight=False)
    console.print(f"\nreport  {folder / 'report.html'}", soft_wrap=True, highlight=False)
    console.print(f"run     {record['run_id']}   (ssr why {record['run_id']})", soft_wrap=True, highlight=False)


def plan(
    recipe: RecipeArgument, set_: SetOption = None, store: StoreOption = ".ssr", force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a run would do, and why, before any GPU is touched. Ingests new data, so that rows can be counted."""
    from flows.planning.price import assumptions, price
    from flows.planning.questions import questions
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
    answers, rewrites = questions(opened, config, planned, examples)
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
    console.print(f"\nrows to generate: {answers.n_missing:,} of {answers.n_rows:,}", highlight=False)
    if config.reads("rewrites"):
        known = f"{rewrites.n_missing:,} of {rewrites.n_rows:,}" if rewrites else "decided after judging"
        console.print(f"rows to rewrite: {known}", highlight=False)
    _show_prices(prices)


def _show_prices(prices: list[Line]) -> None:
    from flows.planning.price import assumptions

    table = Table("estimate", "rows", "prompt tokens", "new tokens", "GPU hours", box=None)
    for line in prices:
        hours = "size unknown" if line.gpu_hours is None else f"{line.gpu_hours:,.2f}"
        table.add_row(line.work, f"{line.rows:,}", f"{line.prompt_tokens:,}", f"{line.new_tokens:,}", hours)
    console.print()
    console.print(table)
    for note in dict.fromkeys(line.note for line in prices if line.note):
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True, highlight=False)
    console.print(f"[dim]{escape(' '.join(assumptions()))}[/]", highlight=False)


def why(
    run_id: RunArgument,
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
        console.print(f"[bold]{escape(str(entry.pop('title')))}[/]", highlight=False)
        for name, value in entry.items():
            console.print(f"    {name:<14} {escape(str(value))}", soft_wrap=True, highlight=False)


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


def report(run_id: RunArgument = "latest", store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """Show a run's table and where its report is."""
    from flows.runs.records import load_run
    from tasks.artifacts.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    made = record.step("report")
    if record.status != "completed" or made is None:
        raise ConfigError(f"{record.run_id} is {record.status}, it has no report. Run its recipe again to go on.")
    if as_json:
        print_json(json.loads((opened.fetch(made.ref) / "report.json").read_text()))
    else:
        _show_result(opened, record.to_json())


def merge(
    run_id: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not be there yet.")],
    arm: Annotated[
        str | None, typer.Option(help="Arm whose adapter is meant; needed where the run has several.")
    ] = None,
    store: StoreOption = ".ssr",
) -> None:
    """Write base model and an arm's adapter as one model, in safetensors. Needs the model's size in memory."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries to each other
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from flows.runs.merging import merge_arm
    from flows.runs.records import load_run
    from tasks.artifacts.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    with errors.status("merging"):
        merged = merge_arm(opened, record, arm, out)
    console.print(f"{merged.label} of {record.run_id}, merged: {out}", soft_wrap=True, highlight=False)


def recipes() -> None:
    """List the shipped recipes."""
    for name, purpose in shipped().items():
        console.print(f"{name:<20} {escape(purpose)}", highlight=False)


def audit_judge(
    recipe: RecipeArgument,
    labels: Annotated[
        Path | None, typer.Option(help="JSONL or Parquet with question, gold, candidate and label (accept or reject).")
    ] = None,
    set_: SetOption = None, store: StoreOption = ".ssr", as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a recipe's judge is worth: against labelled answers, or else against probes whose truth is known."""
    from flows.runs.audit_judge import against_labels, against_probes, agreement_table, audit_tables
    from tasks.artifacts.store import open_store

    config = load_named(recipe, set_)
    opened = open_store(store)
    opened.preflight()
    with errors.status("judging"):
        found = against_labels(opened, config, labels) if labels else against_probes(opened, config)
    if as_json:
        print_json(found)
    elif isinstance(found, list):
        console.print(agreement_table(found))
    else:
        for shown in audit_tables(found):
            console.print(shown, highlight=False)
