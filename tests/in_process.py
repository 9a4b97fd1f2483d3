"""Whole runs, and the `ssr` command, in the test's own process: a process each costs seconds of imports.

For tests of what steps make together and of what a command says. That each step may have a process of its own is
tested by runs on the command line, that every command starts as a process by `tests/flows/cli/test_processes.py`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flows.cli.main import main
from tasks.artifacts.store import open_store
from tasks.config import RunConfig
from tasks.running.process import Result
from tasks.running.progress import Progress
from tasks.running.step import STEPS, Context


def rehearsed(recipe: RunConfig, store: str, force: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record of a run of this recipe; the test needs the fixture `prefect_server`."""
    from flows.run import rehearsal

    with steps_in_process():
        record: dict[str, Any] = rehearsal(recipe, store=store, force=force)
    return record


@contextmanager
def steps_in_process() -> Iterator[None]:
    """Steps that load a model run in the test's own process, whatever starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.running.step.run_in_process", _run_here)
        yield


def _run_here(spec: Mapping[str, Any], spec_path: Path, *, launcher: list[str], progress: Progress) -> Result:
    store, out = open_store(spec["store"]), Path(spec["out"])
    context = Context(store, spec["ref"], out, spec["inputs"], progress=progress, force=spec["force"])
    STEPS[spec["ref"]["step"]].call(context, spec["sections"])
    return Result(context.counts, context.facts)


def ssr(*arguments: str) -> CompletedProcess[str]:
    """The `ssr` command with these arguments: its exit code and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["ssr", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())
