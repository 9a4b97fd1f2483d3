"""`ssr audit-judge` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import ssr

LABELS = [
    {"question": "1 plus 1?", "gold": "2", "candidate": "2", "label": "accept", "task": "number"},
    {"question": "1 plus 2?", "gold": "3", "candidate": "4", "label": "reject", "task": "number"},
    {"question": "1 plus 3?", "gold": "4", "candidate": "It is 4", "label": "reject", "task": "number"},
]  # fmt: skip


def recipe(folder: Path, **sections: Any) -> str:
    rows = [{"question": f"What is {i} plus 1?", "answer": f"{i + 1}"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "sums", "path": str(folder / "rows.jsonl"), "task": "number"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": {"sources": [source]}, **sections}))
    return str(folder / "recipe.yaml")


def labels(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "labels.jsonl")


def test_agreement_with_labels_is_shown_and_given_as_json(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    arguments = ("audit-judge", recipe(tmp_path), "--labels", labels(tmp_path, LABELS), "--store", store)
    done = ssr(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    (everything,) = json.loads(done.stdout)
    assert everything["agreement"]["value"] == pytest.approx(2 / 3)
    assert (everything["true_accepts"], everything["false_accepts"], everything["true_rejects"]) == (1, 1, 1)
    assert everything["kappa"] == pytest.approx(0.4)
    shown = ssr(*arguments)
    assert shown.returncode == 0
    assert "0.400" in shown.stdout


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**LABELS[0], "label": "fine"}], "label is 'fine'"),
        ([{k: v for k, v in LABELS[0].items() if k != "candidate"}], "no value in column 'candidate'"),
        ([], "no row"),
    ],
)
def test_bad_labels_exit_with_2(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    done = ssr("audit-judge", recipe(tmp_path), "--labels", labels(tmp_path, rows), "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_rules_alone_have_no_audit_without_labels(tmp_path: Path) -> None:
    done = ssr("audit-judge", recipe(tmp_path), "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "rules alone judge" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_judge_of_random_weights_is_caught(tmp_path: Path, tiny_model: Path) -> None:
    llm = {"judges": [{"model": {"base": str(tiny_model)}}], "rubric": "lab.v1", "audit": {"n_probes": 60}}
    judged = recipe(tmp_path, model={"base": str(tiny_model)}, judge={"llm": llm})
    done = ssr("audit-judge", judged, "--store", str(tmp_path / "store"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["from"], found["n_probes"]) == ("probes judged now", 60)
    everything = found["classes"][0]
    assert everything["precision"]["value"] is None or everything["precision"]["low"] < 0.6
    assert found["warnings"]
    again = json.loads(ssr("audit-judge", judged, "--store", str(tmp_path / "store"), "--json").stdout)
    assert again == found
