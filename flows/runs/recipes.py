"""The shipped recipes: where they lie, and what each is for in a line."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).parents[2] / "deployments" / "recipes"


def shipped() -> dict[str, str]:
    """Every shipped recipe by name, with the first line of its file, which says what it is for."""
    files = sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: path.read_text().partition("\n")[0].removeprefix("#").strip() for path in files}
