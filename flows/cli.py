"""The `ssr` command. Exit codes: 0 done, 1 failed, 2 bad input.

Prefect, torch and the rest are imported by the commands that need them, so that `ssr --help` and `ssr plan` are fast.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.recipes import RECIPES, shipped
from tasks.errors import ConfigError, SsrError, StepError

if TYPE_CHECKING:
    from flows.price import Line
    from tasks.config import RunConfig
    from tasks.store import Store

app = typer.Typer(
    name="ssr", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Selective Self-Rehearsal: fine-tune language models without making them forget.",
)  # fmt: skip
lab = typer.Typer(help="The embedded lab: a synthetic world and the tiny model trained on it.")
app.add_typer(lab, name="lab")

console = Console()
errors = Console(stderr=True)

RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe (ssr recipes), or a YAML file.")]
RunArgument = Annotated[str, typer.Argument(help="Run id, the beginning of one, or `latest`.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: --set train.epochs=1")]
StoreOption = Annotated[str, typer.Option(envvar="SSR_STORE", help="Folder or s3://bucket/prefix of the artifacts.")]
ForceOption = Annotated[
    list[str] | None,
    typer.Option(help="Run a step again though it is cached: a name (train) or a label ('train ssr')."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def run(
    recipe: RecipeArgument, set_: SetOption = None, store: StoreOption = ".ssr", force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run a recipe, or go on where an earlier run of it stopped."""
    from flows.current import current_for
    from flows.devices import gpu_remarks
    from flows.rehearsal import plan_steps
    from tasks.store import open_store

    config = _load(recipe, set_)
    for remark in gpu_remarks(config):
        errors.print(f"[yellow]{escape(remark)}[/]", soft_wrap=True, highlight=False)
    opened = open_store(store)
    opened.preflight()
    # Finds missing data and models before Prefect starts.
    planned = plan_steps(config, current_for(opened, config))
    _check_forced(force, {name for p in planned for name in (p.step.name, p.label)})
    record = _run_flow(config, opened, force or [], quiet=as_json)
    if as_json:
        _print_json(record)
    else:
        _show_result(opened, record)


def _run_flow(config: RunConfig, store: Store, force: list[str], *, quiet: bool) -> dict[str, Any]:  # Any: JSON values
    from flows.terminal import TerminalListener
    from tasks import progress

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
    from flows.records import load_run
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


@app.command()
def plan(
    recipe: RecipeArgument, set_: SetOption = None, store: StoreOption = ".ssr", force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a run would do, and why, before any GPU is touched. Ingests new data, so that rows can be counted."""
    from flows.current import current_for
    from flows.needed import questions
    from flows.price import assumptions, price
    from flows.reasons import plan_lines
    from flows.rehearsal import plan_steps
    from tasks.store import open_store

    config = _load(recipe, set_)
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
        _print_json({"steps": [line._asdict() for line in lines], **counts, "price": priced})
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
    from flows.price import assumptions

    table = Table("estimate", "rows", "prompt tokens", "new tokens", "GPU hours", box=None)
    for line in prices:
        hours = "size unknown" if line.gpu_hours is None else f"{line.gpu_hours:,.2f}"
        table.add_row(line.work, f"{line.rows:,}", f"{line.prompt_tokens:,}", f"{line.new_tokens:,}", hours)
    console.print()
    console.print(table)
    for note in dict.fromkeys(line.note for line in prices if line.note):
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True, highlight=False)
    console.print(f"[dim]{escape(' '.join(assumptions()))}[/]", highlight=False)


@app.command()
def why(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Argument(help="Only this step: a name or a label.")] = None,
    row: Annotated[str | None, typer.Option(help="The chain behind one training row: an example_id.")] = None,
    store: StoreOption = ".ssr",
    as_json: JsonOption = False,
) -> None:
    """Show what a run's numbers, or one of its training rows, were made from."""
    from flows.records import load_run
    from flows.why import explain_row, explain_steps
    from tasks.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    found = explain_row(opened, record, row) if row else explain_steps(opened, record, step)
    if as_json:
        _print_json(found)
        return
    for entry in found:
        console.print(f"[bold]{escape(str(entry.pop('title')))}[/]", highlight=False)
        for name, value in entry.items():
            console.print(f"    {name:<14} {escape(str(value))}", soft_wrap=True, highlight=False)


@app.command()
def runs(store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """List the runs in a store, newest first."""
    from flows.records import all_runs
    from tasks.store import open_store

    records = all_runs(open_store(store))
    if as_json:
        _print_json([{"run_id": r.run_id, "status": r.status, "started": r.started, "ended": r.ended} for r in records])
        return
    table = Table("run", "status", "started (UTC)", "problem", box=None)
    for record in records:
        table.add_row(
            record.run_id, record.status, record.started[:19], escape((record.problem or "").split("\n")[0][:60])
        )
    console.print(table if records else f"no run in {store} yet. Start one: ssr run demo")


@app.command()
def report(run_id: RunArgument = "latest", store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """Show a run's table and where its report is."""
    from flows.records import load_run
    from tasks.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    made = record.step("report")
    if record.status != "completed" or made is None:
        raise ConfigError(f"{record.run_id} is {record.status}, it has no report. Run its recipe again to go on.")
    if as_json:
        _print_json(json.loads((opened.fetch(made.ref) / "report.json").read_text()))
    else:
        _show_result(opened, record.to_json())


@app.command()
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
    from flows.merging import merge_arm
    from flows.records import load_run
    from tasks.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    with errors.status("merging"):
        merged = merge_arm(opened, record, arm, out)
    console.print(f"{merged.label} of {record.run_id}, merged: {out}", soft_wrap=True, highlight=False)


@app.command()
def current(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe; without it, all that promote.")] = None,
    restore: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Put back the adapter that this run had promoted.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why it is put back; stays in the history.")] = "",
    store: StoreOption = ".ssr",
    as_json: JsonOption = False,
) -> None:
    """Show which adapter is promoted, since when, and every decision about it, newest first.

    With --restore, first put back one that was promoted before. The next run
    compares with it, and no run promotes the replaced weights again. A run that
    is going on is kept back. `ssr gc` leaves the last five that were promoted.
    """
    from flows.current import restore as put_back
    from flows.standing import standing, standing_lines
    from tasks.store import open_store

    if (restore is not None and recipe is None) or (reason and restore is None):
        raise ConfigError("ssr current: say which adapter is put back: ssr current NAME --restore RUN_ID")
    opened = open_store(store)
    found = standing(opened, recipe)
    if restore is not None and recipe is not None:
        put_back(opened, recipe, restore, reason=reason)
        found = standing(opened, recipe)
    if as_json:
        _print_json(found)
        return
    for shown in standing_lines(found):
        console.print(shown, highlight=False, soft_wrap=True)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    for name, purpose in shipped().items():
        console.print(f"{name:<20} {escape(purpose)}", highlight=False)


@app.command()
def doctor(store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """Say what is missing on this machine, and the command that fixes it."""
    from flows.doctor import examine

    findings = examine(store)
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            mark = (
                "[green]ok[/]     " if finding.ok else "[red]missing[/]" if finding.required else "[yellow]absent[/] "
            )
            fix = f"  ->  {finding.fix}" if finding.fix and not finding.ok else ""
            console.print(f"{mark} {finding.what:<22} {escape(finding.found + fix)}", soft_wrap=True, highlight=False)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command("audit-judge")
def audit_judge(
    recipe: RecipeArgument,
    labels: Annotated[
        Path | None, typer.Option(help="JSONL or Parquet with question, gold, candidate and label (accept or reject).")
    ] = None,
    set_: SetOption = None, store: StoreOption = ".ssr", as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a recipe's judge is worth: against labelled answers, or else against probes whose truth is known."""
    from flows.auditing import against_labels, against_probes, agreement_table, audit_tables
    from tasks.store import open_store

    config = _load(recipe, set_)
    opened = open_store(store)
    opened.preflight()
    with errors.status("judging"):
        found = against_labels(opened, config, labels) if labels else against_probes(opened, config)
    if as_json:
        _print_json(found)
    elif isinstance(found, list):
        console.print(agreement_table(found))
    else:
        for shown in audit_tables(found):
            console.print(shown, highlight=False)


@app.command()
def deploy(
    infra: Annotated[
        Literal["process", "docker", "kubernetes", "ecs"], typer.Option(help="What the workers start for a step.")
    ] = "process",
    store: Annotated[
        str | None,
        typer.Option(
            envvar="SSR_STORE",
            help="Folder or s3://bucket/prefix of the artifacts; default: as it is on the server, at first .ssr.",
        ),
    ] = None,
    store_access: Annotated[
        str | None, typer.Option(help="Keep the AWS_* variables of here in a block of this name, for the workers.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="What the schedules run: a shipped recipe, or a YAML file. It replaces what people filled in "
            "there; default: as it is on the server, at first nightly."
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Containers of the CPU pool; without a tag: this commit's.")] = None,
    gpu_image: Annotated[str | None, typer.Option(help="Containers of the GPU pool, likewise.")] = None,
    gpu_limit: Annotated[
        int | None, typer.Option(min=1, help="Steps on the GPU pool at a time; default: as it is, at first 1.")
    ] = None,
    run_limit: Annotated[
        int | None, typer.Option(min=1, help="Runs of the pipeline at a time, more wait; default: likewise.")
    ] = None,
    dead_after_seconds: Annotated[
        int, typer.Option(help="Silence after which a run counts as crashed; at least three heartbeats.")
    ] = 540,
    check_store: Annotated[bool, typer.Option(help="Write to the store from here first.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Put pools, deployments, schedules and the rest on the Prefect server, or bring them up to date.

    What people have set there stays (defaults of a pool, what a schedule runs
    and when) unless an option here names it. It is listed as kept.
    """
    from flows.deploy import deploy as deploy_to
    from flows.target import Target

    target = Target(infra, store, store_access, image, gpu_image, recipe, gpu_limit, run_limit, dead_after_seconds)
    changes = deploy_to(target, check_store=check_store)
    if as_json:
        _print_json([change._asdict() for change in changes])
        return
    table = Table("what", "name", "", box=None)
    for change in changes:
        style = {"unchanged": "dim", "kept": "yellow"}.get(change.outcome, "green")
        table.add_row(change.what, escape(change.name), f"[{style}]{change.outcome}[/]")
    console.print(table)
    console.print(
        f"\nworkers, where steps shall run:\n    prefect worker start --pool ssr-cpu --type {infra}\n"
        f"    prefect worker start --pool ssr-gpu --type {infra}", highlight=False,
    )  # fmt: skip


@app.command()
def gc(
    store: StoreOption = ".ssr",
    keep: Annotated[int, typer.Option(min=0, help="Runs to keep, newest first; their artifacts stay.")] = 10,
    days: Annotated[int, typer.Option(min=1, help="Days that checkpoints of a run which is not kept stay.")] = 7,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that none of the kept runs uses, and what unfinished or killed work left behind.

    That is: checkpoints, claims of dead workers, half-written files, and
    copies of artifacts on this machine. What a worker is at stays. So do the
    last five adapters promoted for a recipe, for `ssr current --restore`.

    Generated rows and benchmark items are never removed: they were paid for.
    """
    from flows.gc import collect, collected_lines
    from tasks.store import open_store

    found = collect(open_store(store), keep=keep, days=days, remove=yes)
    if as_json:
        _print_json(found._asdict())
        return
    for line in collected_lines(found, removed=yes):
        console.print(line, highlight=False, soft_wrap=True)
    if not found.is_nothing and not yes:
        console.print("remove them: ssr gc --yes, with the same options")


@lab.command("build")
def lab_build(
    which: Annotated[str, typer.Argument(help="base, judge, or both.")] = "both",
    out: Annotated[Path | None, typer.Option(help="Where a model goes; default: where it is shipped.")] = None,
    work: Annotated[Path, typer.Option(help="Checkpoints; an interrupted build goes on from here.")] = Path(".ssr/lab"),
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="torch.compile: needs a C++ compiler.")
    ] = True,
) -> None:
    """Train the lab's models from nothing (40 minutes on two cores), check their gates, write them."""
    from tasks.lab.build import base_recipe, build, judge_recipe
    from tasks.models import LAB_JUDGE, LAB_MODEL

    recipes = {"base": (base_recipe, LAB_MODEL), "judge": (judge_recipe, LAB_JUDGE)}
    if which not in (*recipes, "both"):
        raise ConfigError(f"ssr lab build {which}: the lab's models are base and judge.")
    if out and which == "both":
        raise ConfigError(f"--out {out}: say which model goes there: ssr lab build base --out {out}")
    for name in recipes if which == "both" else (which,):
        recipe, shipped = recipes[name]
        with console.status(f"building the lab's {name} model") as status:

            def tell(step: int, total: int, loss: float, speed: float) -> None:
                status.update(f"step {step:,}/{total:,}   loss {loss:.3f}   {speed:,.0f} tokens/s")

            figures = build(recipe(), out or shipped, work / name, compile_model=compile_, on_progress=tell)
        table = Table(f"probe of {name}", "passed", box=None)
        for probe, share in figures.items():
            table.add_row(probe, f"{share:.3f}")
        console.print(table)


def _load(recipe: str, overrides: list[str] | None) -> RunConfig:
    from tasks.config import load_recipe

    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    if not is_path and recipe not in shipped():
        names = ", ".join(shipped())
        raise ConfigError(f"{recipe}: no such recipe. Shipped: {names}. A file of your own ends in .yaml.")
    return load_recipe(Path(recipe) if is_path else RECIPES / f"{recipe}.yaml", overrides or [])


def _check_forced(force: list[str] | None, known: set[str]) -> None:
    if unknown := sorted(set(force or []) - known):
        raise ConfigError(f"--force {unknown[0]}: no such step. This run has: {', '.join(sorted(known))}")


def _print_json(value: Any) -> None:  # Any: JSON values
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def main() -> None:
    """Entry point: turns this project's errors into a message and an exit code."""
    try:
        app(standalone_mode=True)
    except SsrError as error:
        errors.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped. What was finished is kept: the same command goes on from there.")
        sys.exit(130)


if __name__ == "__main__":
    main()
