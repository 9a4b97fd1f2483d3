"""`ssr deploy`: what the Prefect server needs to run recipes by schedule and on workers."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.options import JsonOption, console, print_json


def deploy(
    infra: Annotated[
        Literal["process", "docker", "kubernetes", "ecs"], typer.Option(help="What the workers start for a step.")
    ] = "process",
    store: Annotated[
        str | None,
        typer.Option(
            envvar="SSR_STORE",
            help="Folder or s3://bucket/prefix of the artifacts; default: what the server has, at first .ssr.",
        ),
    ] = None,
    store_access: Annotated[
        str | None,
        typer.Option(help="Save the AWS_* variables of this shell in a block of this name, for the workers."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="What the schedules run: a shipped recipe, or a YAML file. It replaces what people have set "
            "there; default: what the server has, at first nightly."
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of the CPU pool's containers; without a tag: that of this commit.")
    ] = None,
    gpu_image: Annotated[str | None, typer.Option(help="Image of the GPU pool's containers, likewise.")] = None,
    gpu_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Steps on the GPU pool at a time; default: what the server has, at first 1."),
    ] = None,
    run_limit: Annotated[
        int | None, typer.Option(min=1, help="Runs of the pipeline at a time; others wait; default: likewise.")
    ] = None,
    dead_after_seconds: Annotated[
        int, typer.Option(help="Seconds without a heartbeat after which a run is crashed; at least three heartbeats.")
    ] = 540,
    check_store: Annotated[bool, typer.Option(help="First check that this machine can write to the store.")] = True,
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
    # With the pins of constraints.txt: the worker itself would offer to install its package without them.
    install = "" if infra == "process" else f"    pip install -c constraints.txt -e '.[{infra}]'\n"
    console.print(
        f"\nstart workers where steps are to run:\n{install}    prefect worker start --pool ssr-cpu --type {infra}\n"
        f"    prefect worker start --pool ssr-gpu --type {infra}", markup=False,
    )  # fmt: skip
