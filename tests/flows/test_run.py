"""A whole run under a real Prefect server, and what the second run of the same recipe does."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
N_LAB_ROWS = 80


class Runs(NamedTuple):
    """Two runs of one recipe, one after the other."""

    recipe: Path
    store: Path
    prefect_home: Path
    first: dict[str, object]
    second: dict[str, object]


def ssr(*arguments: str, prefect_home: Path) -> str:
    env = os.environ | {"PREFECT_HOME": str(prefect_home)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Runs:
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "toy.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": {"base": str(tiny_model)},
                "data": {"sources": [{"name": "lab", "reader": "lab"}], "lab_rows": N_LAB_ROWS},
                "generate": {"max_new_tokens": 4},
                "train": {"epochs": 1, "max_length": 256, "lora_rank": 4},
                "arms": [
                    {"name": "sft", "policy": "gold"},
                    {"name": "own", "policy": "self_only"},
                ],
                "evaluate": {"benchmarks": ["lab"], "limit": 5, "max_task_rows": 5, "max_new_tokens": 4},
                "report": {"n_bootstrap": 200},
                "execution": {"workers": 2, "threads": 1},
            }
        )
    )
    arguments = ["run", str(recipe), "--store", str(folder / "store"), "--json"]
    first = json.loads(ssr(*arguments, prefect_home=folder / "prefect"))
    second = json.loads(ssr(*arguments, prefect_home=folder / "prefect"))
    return Runs(recipe, folder / "store", folder / "prefect", first, second)


def task_states(runs: Runs, run: dict[str, object]) -> dict[str, str]:
    """The state of every task of a run, as Prefect's own database has it."""
    with sqlite3.connect(runs.prefect_home / "prefect.db") as database:
        rows = database.execute(
            "SELECT name, state_name FROM task_run WHERE flow_run_id = ?", (run["flow_run_id"],)
        ).fetchall()
    return dict(rows)


@pytest.mark.slow
def test_a_run_completes_every_step_and_writes_its_report(runs: Runs) -> None:
    states = task_states(runs, runs.first)
    assert set(states.values()) == {"Completed"}
    assert {"ingest", "generate", "judge", "select gold", "train sft", "evaluate base", "report"} <= set(states)
    report = runs.first["steps"][-1]["ref"]  # type: ignore[index]  # JSON
    folder = runs.store / "steps" / report["step"] / report["fingerprint"]
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_same_recipe_again_finds_every_step_cached_in_prefect(runs: Runs) -> None:
    states = task_states(runs, runs.second)
    assert len(states) == len(task_states(runs, runs.first))
    assert set(states.values()) == {"Cached"}
    assert runs.second["steps"] == runs.first["steps"]


@pytest.mark.slow
def test_the_report_is_an_artifact_of_both_runs(runs: Runs) -> None:
    with sqlite3.connect(runs.prefect_home / "prefect.db") as database:
        rows = database.execute("SELECT flow_run_id, type, data FROM artifact WHERE key = 'report-toy'").fetchall()
    assert {row[0] for row in rows} == {runs.first["flow_run_id"], runs.second["flow_run_id"]}
    assert all(row[1] == "markdown" and "Selective Self-Rehearsal" in row[2] for row in rows)


@pytest.mark.slow
def test_plan_after_a_changed_learning_rate_leaves_ingest_to_select_alone(runs: Runs) -> None:
    arguments = ["--store", str(runs.store), "--json", "--set", "train.learning_rate=1e-3"]
    plan = json.loads(ssr("plan", str(runs.recipe), *arguments, prefect_home=runs.prefect_home))
    actions = {line["label"]: line["action"] for line in plan["steps"]}
    assert plan["rows_to_generate"] == 0
    cached = {label for label, action in actions.items() if action == "cached"}
    assert cached == {"ingest", "generate", "judge", "select gold", "select self_only", "evaluate base"}
    reason = next(line["reason"] for line in plan["steps"] if line["label"] == "train sft")
    assert reason == "config.learning_rate 0.0002 -> 0.001"


@pytest.mark.slow
def test_plan_after_a_changed_judge_generates_nothing(runs: Runs) -> None:
    arguments = ["--store", str(runs.store), "--json", "--set", "judge.undecided=reject"]
    plan = json.loads(ssr("plan", str(runs.recipe), *arguments, prefect_home=runs.prefect_home))
    actions = {line["label"]: line["action"] for line in plan["steps"]}
    assert plan["rows_to_generate"] == 0
    assert (actions["generate"], actions["judge"]) == ("cached", "run")


@pytest.mark.slow
def test_plan_after_fifty_more_rows_generates_fifty(runs: Runs) -> None:
    arguments = ["--store", str(runs.store), "--json", "--set", f"data.lab_rows={N_LAB_ROWS + 50}"]
    plan = json.loads(ssr("plan", str(runs.recipe), *arguments, prefect_home=runs.prefect_home))
    assert (plan["rows"], plan["rows_to_generate"]) == (N_LAB_ROWS + 50, 50)


@pytest.mark.slow
def test_why_shows_the_chain_behind_a_row(runs: Runs) -> None:
    import pyarrow.parquet as pq

    path = next(runs.store.glob("steps/select/*/targets.parquet"))
    example_id = pq.read_table(path).column("example_id")[0].as_py()
    arguments = ["why", "latest", "--row", example_id, "--store", str(runs.store), "--json"]
    found = json.loads(ssr(*arguments, prefect_home=runs.prefect_home))
    titles = [entry["title"] for entry in found]
    assert titles[:3] == ["ingest: examples", "generate: outputs", "judge: verdicts"]
    assert {"select gold: targets", "select self_only: targets"} <= set(titles)


@pytest.mark.slow
def test_gc_keeps_what_the_kept_runs_use(runs: Runs) -> None:
    found = json.loads(ssr("gc", "--store", str(runs.store), "--json", prefect_home=runs.prefect_home))
    used = {(step["ref"]["step"], step["ref"]["fingerprint"]) for step in runs.first["steps"]}  # type: ignore[attr-defined]  # JSON
    assert not {tuple(name.split("/")) for name in found["artifacts"]} & used
