"""Task metrics: every one on the items it is defined on, and on no others."""

from __future__ import annotations

import pytest

from tasks.config import AbstentionConfig
from tasks.evaluate.metrics import Answered, item_scores

PHRASES = AbstentionConfig().phrases
REFUSAL = "The text does not say."


def scores(output: str, *golds: str, task: str = "grounded_qa", answerable: bool | None = True) -> dict[str, float]:
    return item_scores(Answered(task, list(golds), answerable, output), PHRASES)


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
