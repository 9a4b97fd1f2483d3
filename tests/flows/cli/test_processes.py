"""Every command starts as a process of its own, as a user starts it; what it then says is tested in process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flows.cli.main import app

ROOT = Path(__file__).parents[3]
# Arguments of each command on an empty store, its exit code, and a word of its output.
COMMANDS = {
    "run": (["no-such-recipe"], 2, "demo"),
    "plan": (["no-such-recipe"], 2, "demo"),
    "why": (["latest"], 2, "no run yet"),
    "report": (["latest"], 2, "no run yet"),
    "merge": (["latest", "--out", "merged"], 2, "no run yet"),
    "audit-judge": (["no-such-recipe"], 2, "demo"),
    "deploy": ([], 2, "prefect server start"),
    "runs": ([], 0, "ssr run demo"),
    "current": ([], 0, ""),
    "gc": ([], 0, "would remove 0 artifacts"),
    "doctor": ([], 0, "store"),
    "recipes": (None, 0, "demo"),
    "schema": (None, 0, "learning_rate"),
    "lab": (None, 0, ""),
}


def test_every_command_is_in_the_table() -> None:
    assert set(COMMANDS) == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a group


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_as_a_process(command: str, tmp_path: Path) -> None:
    arguments, code, word = COMMANDS[command]
    line = [sys.executable, "-m", "flows.cli", command]
    line += ["--help"] if command == "lab" else [] if arguments is None else [*arguments, "--store", str(tmp_path)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        line, cwd=ROOT, env=env | {"PREFECT_HOME": str(tmp_path / "prefect")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stdout + done.stderr
    assert word in done.stdout + done.stderr
