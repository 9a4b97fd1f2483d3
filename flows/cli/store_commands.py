"""The commands of `ssr` for the place where runs live: what is promoted, servers, this machine, the store, the lab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, StoreOption, console, print_json
from tasks.errors import ConfigError


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
    from flows.promotion.advance import restore as put_back
    from flows.promotion.status import standing, standing_lines
    from tasks.artifacts.store import open_store

    if (restore is not None and recipe is None) or (reason and restore is None):
        raise ConfigError("ssr current: say which adapter is put back: ssr current NAME --restore RUN_ID")
    opened = open_store(store)
    found = standing(opened, recipe)
    if restore is not None and recipe is not None:
        put_back(opened, recipe, restore, reason=reason)
        found = standing(opened, recipe)
    if as_json:
        print_json(found)
        return
    for shown in standing_lines(found):
        console.print(shown, highlight=False, soft_wrap=True)


def doctor(store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """Say what is missing on this machine, and the command that fixes it."""
    from flows.cli.doctor import examine

    findings = examine(store)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            mark = (
                "[green]ok[/]     " if finding.ok else "[red]missing[/]" if finding.required else "[yellow]absent[/] "
            )
            fix = f"  ->  {finding.fix}" if finding.fix and not finding.ok else ""
            console.print(f"{mark} {finding.what:<22} {escape(finding.found + fix)}", soft_wrap=True, highlight=False)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


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
    from flows.deployment.deploy import deploy as deploy_to
    from flows.deployment.target import Target

    target = Target(infra, store, store_access, image, gpu_image, recipe, gpu_limit, run_limit, dead_after_seconds)
    changes = deploy_to(target, check_store=check_store)
    if as_json:
        print_json([change._asdict() for change in changes])
        return
    table = Table("what", "name", "", box=None)
    for change in changes:
        style = {"unchanged": "dim", "kept": "yellow"}.get(change.outcome, "green")
        table.add_row(change.what, escape(change.name), f"[{style}]{change.outcome}[/]")
    console.print(table)
    # With ours pinned: the worker itself offers to install its package past them.
    install = "" if infra == "process" else f"    pip install -c constraints.txt -e '.[{infra}]'\n"
    console.print(
        f"\nworkers, where steps shall run:\n{install}    prefect worker start --pool ssr-cpu --type {infra}\n"
        f"    prefect worker start --pool ssr-gpu --type {infra}", highlight=False, markup=False,
    )  # fmt: skip


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
    from flows.runs.gc import collect, collected_lines
    from tasks.artifacts.store import open_store

    found = collect(open_store(store), keep=keep, days=days, remove=yes)
    if as_json:
        print_json(found._asdict())
        return
    for line in collected_lines(found, removed=yes):
        console.print(line, highlight=False, soft_wrap=True)
    if not found.is_nothing and not yes:
        console.print("remove them: ssr gc --yes, with the same options")


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
