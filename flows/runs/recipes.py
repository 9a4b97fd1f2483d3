"""The shipped recipes: their folder, and a line about each."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).parents[2] / "deployments" / "recipes"


def shipped() -> dict[str, str]:
    """Every shipped recipe by name, with the first comment of its file that says what it is for.

    The line above it names the schema for editors.
    """
    files = sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: path.read_text().split("\n", 2)[1].removeprefix("#").strip() for path in files}
