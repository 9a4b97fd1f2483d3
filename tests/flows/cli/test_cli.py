"""The `ssr` command as a user meets it: exit codes and messages. No Prefect server is started here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from in_process import ssr


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Callable[..., str]:
    """Write a small recipe over a JSONL file of forty rows; keywords replace whole sections."""
    rows = [{"question": f"What is {i} plus 1?", "answer": f"{i + 1}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**sections: object) -> str:
        raw = {
            "model": {"base": str(tiny_model)},
            "data": {"sources": [{"name": "sums", "path": str(tmp_path / "rows.jsonl"), "task": "number"}]},
            "generate": {"max_new_tokens": 4},
            "evaluate": {"benchmarks": []},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(raw | sections))
        return str(path)

    return write


def source(path: Path | str, **fields: object) -> dict[str, object]:
    return {"sources": [{"name": "sums", "path": str(path), "task": "number", **fields}]}


def refused(recipe: str, store: Path, *extra: str) -> str:
    """Run a recipe that must be refused; the message. Nothing may be half-written."""
    done = ssr("run", recipe, "--store", str(store), *extra)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    left = [p for p in store.rglob("*") if p.is_file()] if store.is_dir() else []
    assert left == []
    return " ".join(done.stderr.split())


def test_a_missing_file_is_named(recipe: Callable[..., str], tmp_path: Path) -> None:
    message = refused(recipe(data=source(tmp_path / "nowhere.jsonl")), tmp_path / "store")
    assert "nowhere.jsonl" in message


def test_a_model_that_is_not_there_is_named(recipe: Callable[..., str], tmp_path: Path) -> None:
    message = refused(recipe(model={"base": "./no-such-model"}), tmp_path / "store")
    assert "no-such-model" in message
    assert "no such folder" in message


def test_an_unknown_key_comes_with_the_nearest_right_one(recipe: Callable[..., str], tmp_path: Path) -> None:
    message = refused(recipe(train={"learning_rte": 1e-3}), tmp_path / "store")
    assert "'train.learning_rte': did you mean 'learning_rate'?" in message


def test_an_unknown_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    message = refused("no-such-recipe", tmp_path / "store")
    assert "demo" in message


def test_a_store_below_a_file_cannot_be_written(recipe: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ssr("run", recipe(), "--store", str(tmp_path / "file" / "store"))
    assert done.returncode == 2
    assert "the store cannot be used" in " ".join(done.stderr.split())


def test_forcing_a_step_that_does_not_exist_is_refused(recipe: Callable[..., str], tmp_path: Path) -> None:
    message = refused(recipe(), tmp_path / "store", "--force", "trian")
    assert "trian" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"question": "a", "answer": "1"}\n{"question": \n', "line 2"),
        ("", "there is no row in it"),
        ('{"question": "a"}\n', "answer"),
        ('{"question": "a", "answer": {"x": 1}}\n', "answer"),
        ('{"question": "", "answer": "1"}\n', "no_question"),
    ],
    ids=["broken JSON", "empty file", "missing column", "wrong type", "no row left"],
)
def test_bad_rows_exit_with_2_and_say_where(
    recipe: Callable[..., str], tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    done = ssr("plan", recipe(data=source(tmp_path / "bad.jsonl")), "--store", str(tmp_path / "store"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert not list((tmp_path / "store").rglob("*.parquet"))


def test_plan_counts_rows_and_gives_reasons(recipe: Callable[..., str], tmp_path: Path) -> None:
    done = ssr("plan", recipe(), "--store", str(tmp_path / "store"), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["rows_to_generate"] == plan["rows"] > 0
    assert {line["action"] for line in plan["steps"]} == {"run"}
    again = json.loads(ssr("plan", recipe(), "--store", str(tmp_path / "store"), "--json").stdout)
    assert [line["label"] for line in again["steps"] if line["action"] == "cached"] == ["ingest"]


def test_runs_of_an_empty_store_say_how_to_start_one(tmp_path: Path) -> None:
    done = ssr("runs", "--store", str(tmp_path / "store"))
    assert done.returncode == 0
    assert "ssr run demo" in done.stdout


def test_doctor_finds_what_a_run_needs(tmp_path: Path) -> None:
    done = ssr("doctor", "--store", str(tmp_path / "store"), "--json")
    assert done.returncode == 0, done.stdout
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["prefect's pins"]["ok"]
    assert found["store"]["ok"]
