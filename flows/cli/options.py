"""What several commands of `ssr` use: options, consoles, and recipes by their name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows.runs.recipes import RECIPES, shipped
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from tasks.config import RunConfig

console = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

RecipeName = Annotated[str, typer.Argument(help="Name of a shipped recipe (ssr recipes), or a YAML file.")]
RunId = Annotated[str, typer.Argument(help="Id of a run, the beginning of one, or `latest`.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: --set train.epochs=1")]
StoreOption = Annotated[str, typer.Option(envvar="SSR_STORE", help="Folder or s3://bucket/prefix of the artifacts.")]
ForceOption = Annotated[
    list[str] | None,
    typer.Option(help="Run a step again though it is cached: a name (train) or a label ('train ssr')."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def load_named(recipe: str, overrides: list[str] | None) -> RunConfig:
    """The recipe of a shipped name or a YAML file, with overrides.

    Raises:
        ConfigError: There is no such recipe, or it is wrong.
    """
    from tasks.config import load_recipe

    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    if not is_path and recipe not in shipped():
        names = ", ".join(shipped())
        raise ConfigError(f"{recipe}: no such recipe. Shipped: {names}. A file of your own ends in .yaml.")
    return load_recipe(Path(recipe) if is_path else RECIPES / f"{recipe}.yaml", overrides or [])


def check_forced(force: list[str] | None, known: set[str]) -> None:
    """Refuse a step of `--force` that the run does not have.

    Raises:
        ConfigError: It names the first such step.
    """
    if unknown := sorted(set(force or []) - known):
        raise ConfigError(f"--force {unknown[0]}: no such step. This run has: {', '.join(sorted(known))}")


def print_json(value: Any) -> None:  # Any: JSON values
    """Write a value to the standard output as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
