"""What a page tells people to type exists: commands with their options, make targets, files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from flows.cli.main import app

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
