"""`ssr lab build`: train the models of the embedded lab anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import console
from tasks.errors import ConfigError


def lab_build(
    which: Annotated[str, typer.Argument(help="base, judge, or both.")] = "both",
    out: Annotated[Path | None, typer.Option(help="Folder of the model; default: where it is shipped.")] = None,
    work: Annotated[
        Path, typer.Option(help="Folder of the checkpoints, from which an interrupted build goes on.")
    ] = Path(".ssr/lab"),
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
