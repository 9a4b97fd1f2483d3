"""The shipped recipe that does everything on vLLM, through the command as a user gives it, on few rows.

The lab's model answers, the lab's judge judges, adapters are trained and measured, each server started and ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import Manifest, Store, cache_folder, open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
N_LAB_ROWS = 120
FEW = {
    "data.lab_rows": N_LAB_ROWS,
    "evaluate.benchmarks": ["lab_sums"],
    "evaluate.limit": 10,
    "evaluate.max_task_rows": 10,
    "judge.llm.audit.n_probes": 40,
    "engine.extra_args": ["--enforce-eager"],  # to compile a model takes longer than these rows do
    "report.n_bootstrap": 200,
}


class Finished(NamedTuple):
    store: Store
    record: dict[str, Any]  # Any: JSON values, here and below
    again: dict[str, Any]

    def manifest(self, label: str) -> Manifest:
        (step,) = (step for step in self.record["steps"] if step["label"] == label)
        found = self.store.manifest(**step["ref"])
        assert found is not None
        return found

    def rows(self, label: str, table: str) -> list[dict[str, Any]]:
        (step,) = (step for step in self.record["steps"] if step["label"] == label)
        found: list[dict[str, Any]] = pq.read_table(self.store.fetch(step["ref"]) / f"{table}.parquet").to_pylist()
        return found


@pytest.fixture(scope="module")
def finished(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("on-vllm")
    command = [sys.executable, "-m", "flows.cli", "run", "demo-vllm", "--store", str(folder / "store"), "--json"]
    command += [part for key, value in FEW.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    env = os.environ | {"PREFECT_HOME": str(folder / "prefect")}

    def run() -> dict[str, Any]:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return Finished(open_store(str(folder / "store")), run(), run())


def test_answers_verdicts_and_scores_come_from_servers_and_none_stays(finished: Finished) -> None:
    n_train = sum(row["split"] == "train" for row in finished.rows("ingest", "examples"))
    assert finished.manifest("generate").counts["rows_generated"] == n_train
    assert {row["decided_by"] for row in finished.rows("judge", "verdicts")} >= {"llm"}
    labels = [step["label"] for step in finished.record["steps"]]
    assert labels.count("measure") == 1  # base and both adapters on one server
    assert list((cache_folder() / "servers").glob("*.json")) == []


def test_the_model_learns_from_its_own_accepted_answers_and_from_golds(finished: Finished) -> None:
    verdicts = {row["example_id"]: row["verdict"] for row in finished.rows("judge", "verdicts")}
    assert set(verdicts.values()) == {"accept", "reject"}
    targets = finished.rows("select ssr", "targets")
    assert {row["example_id"]: row["target_type"] for row in targets} == {
        example: "self" if verdict == "accept" else "gold" for example, verdict in verdicts.items()
    }


def test_the_report_has_scores_of_all_and_the_audit_of_the_judge(finished: Finished) -> None:
    (step,) = (step for step in finished.record["steps"] if step["label"] == "report")
    report = json.loads((finished.store.fetch(step["ref"]) / "report.json").read_text())
    assert [arm["name"] for arm in report["measured"]["arms"]] == ["sft-1e-3", "ssr-1e-3"]
    (audit,) = report["audits"]
    everything = audit["classes"][0]
    by_llm = [row for row in finished.rows("judge", "verdicts") if row["decided_by"] == "llm"]
    assert (audit["n_probes"], everything["decided"]) == (FEW["judge.llm.audit.n_probes"], len(by_llm))
    assert everything["right_accepted"] > everything["wrong_accepted"], "the lab's judge tells them apart"


def test_the_second_run_starts_no_server(finished: Finished) -> None:
    assert finished.again["steps"] == finished.record["steps"]
