"""What a page tells people to type exists: commands with their options, make targets, files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from reference_page import held_section

from flows.cli.main import app
from flows.cli.schema import Schema, recipe_schema
from tasks.config import RunConfig

ROOT = Path(__file__).parents[1]
_OTHER_PROGRAMS = {"source", "export", "cp", "docker", "prefect", "pip", "hf"}


def commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of each command line, without comments."""
    yield from filter(None, (shlex.split(line, comments=True) for line in lines))


def require_commands(lines: Iterable[str]) -> None:
    """Fail for a command, an option or a make target that is not there; nothing is run."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    group = typer.main.get_command(app)
    for program, *words in commands(lines):
        if program == "ssr":
            _require_ssr(group, words)
        elif program == "make":
            assert set(words) <= targets, words
        else:
            assert program in _OTHER_PROGRAMS or (ROOT / program).exists(), program


def _require_ssr(group: object, words: list[str]) -> None:
    while hasattr(group, "commands"):
        assert words[0] in group.commands, words
        group, words = group.commands[words[0]], words[1:]
    group.make_context("ssr", words)  # type: ignore[attr-defined]  # typer's own copy of click


def require_paths(text: str) -> None:
    """Fail for a path or a link in the page that leads nowhere."""
    named = re.findall(r"`((?:flows|tasks|tests|deployments|docker|\.github|\.ci)/[\w./-]*|[A-Z]+\.md|Makefile)`", text)
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in target]
    for path in {*named, *linked} - {"docker/.env"}:  # the user makes it
        assert (ROOT / path).exists(), path


def require_fields(text: str) -> None:
    """Fail for a field of the recipe, such as `train.epochs`, that the page names and the config lacks."""
    section = "|".join(RunConfig.model_fields)
    for path in set(re.findall(rf"[`\s]((?:{section})(?:\.[a-z_0-9]+)+)[`\s=:,;)]", text)):
        if path.endswith((".json", ".html", ".md", ".parquet", ".py")):
            continue  # a file of that name
        schema: Schema = recipe_schema()
        for part in path.split("."):
            if not part.isdigit():
                assert part in schema["properties"], f"{path}: no field {part}"
                field = schema["properties"][part]
                schema = schema | recipe_schema()["$defs"].get(held_section(field), {"properties": {}})
