"""From the harness's samples to rows of items, and which benchmarks are refused before a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.digest import digest_of
from tasks.config import AbstentionConfig, EvaluateConfig
from tasks.errors import DataError
from tasks.evaluate import benchmarks, check_benchmarks
from tasks.evaluate.benchmarks import LAB_BENCHMARKS, USUAL_BENCHMARKS, task_rows
from tasks.measures.metrics import leaked_refusal

PHRASES = AbstentionConfig().phrases
Row = dict[str, Any]  # Any: values of a table


def sample(doc: str, answer: str | None = None, *, filter_name: str = "none", **metrics: Any) -> dict[str, Any]:
    """A sample as the harness logs it; without an answer, a choice by likelihood."""
    return {
        "doc": {}, "doc_hash": doc, "prompt_hash": f"prompt of {doc}", "filter": filter_name,
        "resps": [[answer]] if answer is not None else [[(-1.0, True)]], "metrics": list(metrics), **metrics,
    }  # fmt: skip


def rows(*samples: dict[str, Any], name: str = "bench", stated: dict[str, bool | None] | None = None) -> list[Row]:
    return list(task_rows(name, "bench", samples, stated or {}, PHRASES))


def test_a_leaked_refusal_is_counted_once_a_document_whatever_filters_there_are() -> None:
    """GSM8K has two filters, and the harness logs each document for both."""
    found = rows(
        *(
            sample(doc, text, filter_name=name, exact_match=1.0)
            for name in ("strict-match", "flexible-extract")
            for doc, text in (("a", "I cannot find this."), ("b", "7"))
        )
    )
    leaked = [row for row in found if row["metric"] == leaked_refusal.name]
    assert [row["score"] for row in leaked] == [1.0, 0.0]
    assert [row["metric"] for row in found if row["metric"] != leaked_refusal.name] == [
        "exact_match,strict-match", "exact_match,strict-match",
        "exact_match,flexible-extract", "exact_match,flexible-extract",
    ]  # fmt: skip


def test_equal_documents_are_items_of_their_own_and_the_others_keep_their_ids() -> None:
    found = rows(*(sample(doc, acc=score) for doc, score in (("a", 1.0), ("b", 1.0), ("a", 0.0), ("a", 1.0))))
    ids = [row["item_id"] for row in found]
    assert len(set(ids)) == 4
    assert ids[:2] == [digest_of(["bench", doc, f"prompt of {doc}"])[:32] for doc in "ab"]


def test_an_equal_document_is_the_same_item_under_every_filter() -> None:
    found = rows(*(sample("a", "7", filter_name=name, em=1.0) for name in ("x", "y") for _ in range(2)))
    by_metric = {metric: [row["item_id"] for row in found if row["metric"] == metric] for metric in ("em,x", "em,y")}
    assert by_metric["em,x"] == by_metric["em,y"]
    grain = [(row["benchmark"], row["metric"], row["item_id"]) for row in found]
    assert len(set(grain)) == len(grain)


def test_a_metric_that_is_no_number_for_each_item_is_unscored_with_a_reason() -> None:
    (strict, loose) = rows(sample("a", prompt_level_strict_acc=True, inst_level_loose_acc=[True, False]))
    assert (strict["score"], strict["problem"]) == (1.0, None)
    assert (loose["score"], loose["problem"]) == (None, "not a number per item: list")


@pytest.mark.parametrize("stated", [True, False, None])
def test_a_row_says_what_the_benchmark_states_of_the_direction_of_its_metric(stated: bool | None) -> None:
    (row,) = rows(sample("a", filter_name="strict", bias=1), stated={"bias": stated})
    assert (row["metric"], row["higher_is_better"]) == ("bias,strict", stated)
    (row,) = rows(sample("a", bias=1))
    assert row["higher_is_better"] is None


def test_an_item_of_one_of_several_tasks_is_clustered_by_its_task() -> None:
    assert rows(sample("a", acc=1.0), name="mmlu")[0]["cluster"] == "bench"
    assert rows(sample("a", acc=1.0))[0]["cluster"] is None


@pytest.fixture
def put_task(tmp_path: Path) -> Callable[[str, str], str]:
    def put(file: str, task: str) -> str:
        path = tmp_path / file
        path.write_text(json.dumps({"task": task, "dataset_path": "json", "output_type": "generate_until"}))
        return str(path)

    return put


def checked(*names: str) -> None:
    check_benchmarks(EvaluateConfig(benchmarks=names))


def test_the_usual_benchmarks_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import would fail
    checked("lab", *LAB_BENCHMARKS, *USUAL_BENCHMARKS)


def test_a_yaml_benchmark_must_be_there_and_be_named_as_its_task(put_task: Callable[[str, str], str]) -> None:
    checked(put_task("mine.yaml", "mine"))
    with pytest.raises(DataError, match=r"other\.yaml: defines no task 'other'\. Name the file as the task"):
        checked(put_task("other.yaml", "mine2"))
    with pytest.raises(DataError, match="no such file"):
        checked("nowhere/task.yaml")


@pytest.mark.slow
def test_a_misspelt_benchmark_is_refused_with_the_nearest_right_one() -> None:
    known = benchmarks._manager(benchmarks.LAB_FOLDER, defaults=True).all_tasks
    assert USUAL_BENCHMARKS.union(LAB_BENCHMARKS).issubset(known)
    checked("leaderboard_ifeval")
    with pytest.raises(DataError, match=r"'hellaswagg': .* Did you mean 'hellaswag'") as caught:
        checked("mmlu", "hellaswagg")
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="lm-eval ls tasks"):
        checked("qqqqqqqqqqqqqqqqqqqqq")
