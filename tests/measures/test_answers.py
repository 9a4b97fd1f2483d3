"""Reading answers: the tables here are computed by hand."""

from __future__ import annotations

import pytest

from tasks.measures.answers import (
    contains,
    denies,
    token_recall,
)


@pytest.mark.parametrize(
    ("output", "golds", "recall"),
    [
        ("Oslo", ["Oslo"], 1.0),
        ("She lives in Oslo.", ["The home of Ada is in Oslo."], 2 / 6),  # of home, of, ada, is, in, oslo: in, oslo
        ("a b b", ["b b b"], 2 / 3),
        ("the the the", ["the end"], 0.0),
        ("one two", ["three", "two three", "one two"], 1.0),
        ("one", ["one two", "one two three"], 1 / 2),
        ("anything", ["the", "!"], 0.0),
        ("anything", [], 0.0),
        ("", ["Oslo"], 0.0),
        ("U.S.A.", ["usa"], 1.0),
        ("他住在东京。", ["东京"], 1.0),
        ("京都", ["东京"], 1 / 2),
    ],
)
def test_token_recall_is_the_share_of_the_gold_words_in_the_output(output, golds, recall):
    assert token_recall(output, golds) == pytest.approx(recall)


@pytest.mark.parametrize(
    ("output", "text", "expected"),
    [
        ("She lives in Oslo.", "oslo", True),
        ("The home is in the old town.", "in old town", True),
        ("Osloer", "Oslo", False),
        ("new big York", "New York", False),
        ("anything", "the", False),
        ("anything", "", False),
    ],
)
def test_containing_means_whole_words_in_a_row(output, text, expected):
    assert contains(output, text) is expected


@pytest.mark.parametrize(
    ("output", "gold", "expected"),
    [
        ("It is not in Oslo but in Rome.", "Oslo", True),
        ("It isn't Oslo.", "Oslo", True),
        ("Oslo isn’t it", "Oslo", True),
        ("Rome rather than Oslo", "Oslo", True),
        ("She never lived in Oslo", "Oslo", True),
        ("She lives in Oslo.", "Oslo", False),
        ("He was found not guilty.", "not guilty", False),
        ("He was not found not guilty.", "not guilty", True),
        ("not guilty", "guilty", True),
        ("No, there is no doubt about it: yes.", "no", True),
        ("No doubt about it: yes.", "no", True),
        ("No, it is in Rome.", "yes", True),
        ("Yes, it is in Rome.", "yes", False),
        ("Nottingham", "Nottingham", False),
    ],
)
def test_a_negation_beside_the_gold_may_deny_it(output, gold, expected):
    assert denies(output, gold) is expected


def test_a_text_inside_a_longer_one_may_not_count():
    assert not contains("It is New York City.", "New York", apart_from=["New York City"])
    assert contains("It is New York, not New York City.", "New York", apart_from=["New York City"])
    assert contains("It is New York.", "New York", apart_from=["York"])
