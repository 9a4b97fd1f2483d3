"""`ssr recipes`: the recipes that are shipped."""

from __future__ import annotations

from rich.markup import escape

from flows.cli.options import console
from flows.runs.recipes import shipped


def recipes() -> None:
    """List the shipped recipes."""
    for name, purpose in shipped().items():
        console.print(f"{name:<20} {escape(purpose)}")
