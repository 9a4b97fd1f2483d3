"""Metrics: each is scored on the items it is defined on, and a declaration that lacks something is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.artifacts.digest import digest_of
from tasks.config import AbstentionConfig
from tasks.errors import StepError
from tasks.measures import metrics
from tasks.measures.metrics import FAMILIES, TASK, Answered, Metric, declare, item_scores, metric
from tasks.measures.refusals import refuses

PHRASES = AbstentionConfig().phrases
REFUSAL = "The text does not say."


def scores(output: str, *golds: str, task: str = "grounded_qa", answerable: bool | None = True) -> dict[str, float]:
    return item_scores(Answered(task, golds, answerable, output, refuses(output, PHRASES) is True), "task-in")


def test_a_right_answer_to_an_answerable_question():
    assert scores("She lives in Oslo.", "Oslo") == {
        "answerability_accuracy": 1.0, "over_refusal": 0.0, "token_recall": 1.0, "modified_recall": 1.0,
    }  # fmt: skip


def test_half_an_answer_counts_by_its_share_of_the_gold():
    found = scores("She lives in Oslo.", "New Oslo")
    assert found["token_recall"] == found["modified_recall"] == 0.5


def test_the_best_of_several_golds_counts():
    assert scores("Oslo", "The home is in Oslo.", "Oslo")["token_recall"] == 1.0


def test_refusing_an_answerable_question_scores_nothing_whatever_words_it_shares():
    assert scores(REFUSAL, "The text says so.") == {
        "answerability_accuracy": 0.0, "abstention_precision": 0.0, "over_refusal": 1.0, "token_recall": 0.0,
        "modified_recall": 0.0,
    }  # fmt: skip


def test_refusing_an_unanswerable_question_is_right():
    assert scores(REFUSAL, "I cannot find this in the document.", answerable=False) == {
        "answerability_accuracy": 1.0, "abstention_precision": 1.0, "abstention_recall": 1.0, "modified_recall": 1.0,
    }  # fmt: skip


def test_answering_an_unanswerable_question_is_wrong_and_says_nothing_of_precision():
    assert scores("Oslo", "I cannot find this in the document.", answerable=False) == {
        "answerability_accuracy": 0.0, "abstention_recall": 0.0, "modified_recall": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "output", "gold", "exact"),
    [
        ("number", "5 + 2 = 7", "#### 7", 1.0),
        ("number", "it is 10", "1", 0.0),
        ("number", "-3", "3", 0.0),
        ("number", "none", "none at all", 0.0),
        ("multiple_choice", "The answer is (B).", "B", 1.0),
        ("multiple_choice", "A", "A", 1.0),
        ("multiple_choice", "C", "B", 0.0),
        ("multiple_choice", "oslo", "rome", 0.0),
        ("open", "The Oslo.", "oslo", 1.0),
        ("open", "in Oslo", "oslo", 0.0),
    ],
)
def test_exact_match_reads_the_answer_as_its_task_says(task, output, gold, exact):
    assert scores(output, gold, task=task, answerable=None)["exact_match"] == exact


def test_without_answerability_only_match_and_recall_are_defined():
    assert scores("in Oslo", "Oslo", task="open", answerable=None) == {"exact_match": 0.0, "token_recall": 1.0}


def test_every_score_lies_between_0_and_1():
    for output in ("", REFUSAL, "Oslo", "x " * 500):
        for answerable in (True, False, None):
            assert all(0 <= score <= 1 for score in scores(output, "Oslo", answerable=answerable).values())


def test_an_item_without_an_answer_counts_as_unscored_for_the_primary_metric_of_its_task():
    found = {
        answerable: {metrics.primary_on(answerable, family) for family in TASK} for answerable in (True, False, None)
    }
    assert found == {True: {"modified_recall"}, False: {"modified_recall"}, None: {"exact_match"}}


# A digest of every score on `_grid`. Where one differs, the metric scores the same answer differently than before:
# raise its version, so that scores made before are stale, and write down both.
PINNED = {
    "modified_recall": (2, "6044ba0d"),
    "exact_match": (2, "29404ba9"),
    "token_recall": (2, "630e2c08"),
    "answerability_accuracy": (2, "afc7af37"),
    "abstention_precision": (2, "f9f96e4d"),
    "abstention_recall": (2, "3ec70ecf"),
    "over_refusal": (2, "e12db29a"),
    "leaked_refusal": (2, "13a6c904"),
}


def _grid() -> Iterator[Answered]:
    outputs = (
        "", REFUSAL, "Oslo", "She lives in Oslo, not in Rome.", "#### 7", "It is 1,007.5", "The answer is (B).", "b",
        "7:5", "The answer is 7, as in step 2.", "(-7)",
    )  # fmt: skip
    golds = (["Oslo"], ["7"], ["B. Rome"], ["She lives in Oslo", "Rome"], ["A"])
    for task in ("grounded_qa", "open", "number", "multiple_choice"):
        for output in outputs:
            for gold in golds:
                for answerable in (True, False, None):
                    yield Answered(task, gold, answerable, output, refuses(output, PHRASES) is True)


def test_a_metric_that_scores_the_same_answers_differently_has_another_version():
    scored = [item_scores(item, family) for family in FAMILIES for item in _grid()]
    versions = {name: version for family in FAMILIES for name, version in metrics.scored_versions(family).items()}
    found = {
        name: (version, digest_of([scores.get(name) for scores in scored])[:8]) for name, version in versions.items()
    }
    assert found == PINNED


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(metrics, "_DECLARED", list(metrics._DECLARED))


def toy(**changes: Any) -> Metric:
    fields = {"name": "toy", "title": "", "higher_is_better": True, "families": TASK, "score": lambda item: 1.0}
    return declare(Metric(**(fields | changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "over_refusal"}, "'over_refusal' is declared twice for task-in and task-out. Rename one"),
        ({"name": "acc", "families": ("general",)}, "'acc' is declared twice for general"),
        ({"primary_rank": 2}, "'toy' and 'exact_match' both have primary_rank 2 for task-in and task-out"),
        ({"primary_rank": 9, "higher_is_better": False}, "higher is better. Remove primary_rank"),
        ({"primary_rank": 9, "own_items": True}, "compared in pairs"),
        ({"families": ()}, "Name some of task-in, task-out, general"),
        ({"families": ("tasks",)}, "Name some of task-in, task-out, general"),
        ({"score": None}, "nothing scores it"),
    ],
)
def test_a_declaration_that_contradicts_itself_or_another_fails(declared, changes, message):
    with pytest.raises(ValueError, match=message):
        toy(**changes)


@pytest.mark.parametrize("forgotten", ["title", "higher_is_better", "families"])
def test_a_declaration_that_forgets_a_part_fails(declared, forgotten):
    complete = {"title": "", "higher_is_better": True, "families": TASK}
    with pytest.raises(TypeError, match=forgotten):
        metric(**{name: value for name, value in complete.items() if name != forgotten})(lambda item: 1.0)


def test_one_name_may_be_a_metric_of_the_task_and_another_of_the_benchmarks(declared):
    toy(), toy(families=("general",), higher_is_better=False)
    found = [metrics.find("toy", family) for family in ("task-in", "general")]
    assert [one.higher_is_better for one in found if one] == [True, False]


def test_a_score_outside_0_and_1_is_refused(declared):
    toy(score=lambda item: 7.0)
    with pytest.raises(StepError, match=r"'toy': the score 7\.0 is not between 0 and 1"):
        scores("Oslo", "Oslo")
