"""Which metric stands for a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.measures.scores import keys_of
from tasks.tables.schema import SCORES, TableWriter

STATED = {"f1": True, "brier": False}  # what the benchmark states of metrics that are not declared


def primary(folder: Path, *models: dict[str, int], family: str = "general") -> str | None:
    """The primary metric of one benchmark, given the number of scored items of each metric, for each model."""
    folders = {}
    for i, n_scored in enumerate(models):
        folders[str(i)] = folder / str(i)
        folders[str(i)].mkdir()
        with TableWriter(folders[str(i)] / "scores.parquet", SCORES) as writer:
            writer.write([
                {"benchmark": "bench", "metric": metric, "family": family, "value": 0.5 if n else None, "n": n,
                 "n_unscored": 10 - n, "higher_is_better": STATED.get(metric)}
                for metric, n in n_scored.items()
            ])  # fmt: skip
    keys = keys_of(folders)
    assert {key.metric for key in keys} == {metric for n_scored in models for metric in n_scored}
    found = [key.metric for key in keys if key.primary]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("n_scored", "expected"),
    [
        ({"acc": 9, "acc_norm": 9}, "acc_norm"),
        ({"leaked_refusal": 9, "exact_match,strict-match": 9}, "exact_match,strict-match"),
        ({"leaked_refusal": 9, "f1": 9}, "f1"),
        ({"inst_level_loose_acc": 0, "prompt_level_loose_acc": 9, "prompt_level_strict_acc": 9},
         "prompt_level_strict_acc"),
        ({"exact_match": 0, "f1": 9}, "f1"),
        ({"acc": 0, "acc_norm": 0}, "acc_norm"),
        ({"brier": 9, "f1": 9}, "f1"),
        ({"brier": 9, "leaked_refusal": 9}, None),
        ({"unheard_of": 9}, None),
        ({"unheard_of": 9, "acc": 9}, "acc"),
    ],
)  # fmt: skip
def test_the_primary_metric_has_scores_and_is_known_to_be_better_the_higher_it_is(tmp_path, n_scored, expected):
    assert primary(tmp_path, n_scored) == expected


def test_a_metric_that_one_model_has_scores_of_may_be_primary(tmp_path):
    assert primary(tmp_path, {"acc": 9, "f1": 9}, {"acc": 0, "f1": 9}) == "acc"


def test_a_task_split_has_its_own_metrics(tmp_path):
    n_scored = {"over_refusal": 9, "token_recall": 9, "modified_recall": 9}
    assert primary(tmp_path, n_scored, family="task-in") == "modified_recall"


def test_what_a_benchmark_states_of_a_metric_counts_more_than_what_is_declared(tmp_path, monkeypatch):
    monkeypatch.setitem(STATED, "acc", False)
    assert primary(tmp_path, {"acc": 9, "f1": 9}) == "f1"


def test_precision_of_refusals_never_stands_for_a_task_split(tmp_path):
    assert primary(tmp_path, {"abstention_precision": 9, "over_refusal": 9}, family="task-in") is None
