"""A whole run under a real Prefect server, and what the second run of the same recipe does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import yaml
from in_process import rehearsed, ssr
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId

from tasks.config import load_recipe

N_LAB_ROWS = 80
Record = dict[str, Any]  # Any: JSON values


class Runs(NamedTuple):
    """Two runs of one recipe, one after the other."""

    recipe: Path
    store: Path
    first: Record
    second: Record

    def asked(self, command: str, *arguments: str) -> Any:  # Any: JSON values
        """What a command says of them."""
        done = ssr(command, *arguments, "--store", str(self.store), "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_server: None) -> Runs:
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
                "execution": {"workers": 1, "threads": 1},
            }
        )
    )
    store = folder / "store"
    first, second = (rehearsed(load_recipe(recipe), str(store)) for _ in range(2))
    return Runs(recipe, store, first, second)


def task_states(run: Record) -> dict[str, str]:
    """The state of every task of a run, as Prefect's server has it."""
    with get_client(sync_client=True) as client:
        one = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run["flow_run_id"])]))
        tasks = client.read_task_runs(flow_run_filter=one)
    return {task.name: str(task.state_name) for task in tasks}


@pytest.mark.slow
def test_a_run_completes_every_step_and_writes_its_report(runs: Runs) -> None:
    states = task_states(runs.first)
    assert set(states.values()) == {"Completed"}
    assert {"ingest", "generate", "judge", "select gold", "train sft", "evaluate base", "report"} <= set(states)
    report = runs.first["steps"][-1]["ref"]
    folder = runs.store / "steps" / report["step"] / report["fingerprint"]
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_same_recipe_again_finds_every_step_cached_in_prefect(runs: Runs) -> None:
    states = task_states(runs.second)
    assert len(states) == len(task_states(runs.first))
    assert set(states.values()) == {"Cached"}
    assert runs.second["steps"] == runs.first["steps"]


@pytest.mark.slow
def test_the_report_is_an_artifact_of_both_runs(runs: Runs) -> None:
    with get_client(sync_client=True) as client:
        shown = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["report-toy"])))
    assert {str(one.flow_run_id) for one in shown} == {runs.first["flow_run_id"], runs.second["flow_run_id"]}
    assert all(one.type == "markdown" and "Selective Self-Rehearsal" in str(one.data) for one in shown)


@pytest.mark.slow
def test_plan_after_a_changed_learning_rate_leaves_ingest_to_select_alone(runs: Runs) -> None:
    plan = runs.asked("plan", str(runs.recipe), "--set", "train.learning_rate=1e-3")
    actions = {line["label"]: line["action"] for line in plan["steps"]}
    assert plan["rows_to_generate"] == 0
    cached = {label for label, action in actions.items() if action == "cached"}
    assert cached == {"ingest", "generate", "judge", "select gold", "select self_only", "evaluate base"}
    reason = next(line["reason"] for line in plan["steps"] if line["label"] == "train sft")
    assert reason == "config.learning_rate 0.0002 -> 0.001"


@pytest.mark.slow
def test_plan_after_a_changed_judge_generates_nothing(runs: Runs) -> None:
    plan = runs.asked("plan", str(runs.recipe), "--set", "judge.undecided=reject")
    actions = {line["label"]: line["action"] for line in plan["steps"]}
    assert plan["rows_to_generate"] == 0
    assert (actions["generate"], actions["judge"]) == ("cached", "run")


@pytest.mark.slow
def test_plan_after_fifty_more_rows_generates_fifty(runs: Runs) -> None:
    plan = runs.asked("plan", str(runs.recipe), "--set", f"data.lab_rows={N_LAB_ROWS + 50}")
    assert (plan["rows"], plan["rows_to_generate"]) == (N_LAB_ROWS + 50, 50)


@pytest.mark.slow
def test_why_shows_the_chain_behind_a_row(runs: Runs) -> None:
    import pyarrow.parquet as pq

    path = next(runs.store.glob("steps/select/*/targets.parquet"))
    example_id = pq.read_table(path).column("example_id")[0].as_py()
    found = runs.asked("why", "latest", "--row", example_id)
    titles = [entry["title"] for entry in found]
    assert titles[:3] == ["ingest: examples", "generate: outputs", "judge: verdicts"]
    assert {"select gold: targets", "select self_only: targets"} <= set(titles)


@pytest.mark.slow
def test_gc_keeps_what_the_kept_runs_use(runs: Runs) -> None:
    found = runs.asked("gc")
    used = {(step["ref"]["step"], step["ref"]["fingerprint"]) for step in runs.first["steps"]}
    assert not {tuple(name.split("/")) for name in found["artifacts"]} & used
