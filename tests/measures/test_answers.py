"""Reading answers: the tables here are computed by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tasks.config import AbstentionConfig
from tasks.measures.answers import (
    abstains,
    choice_letter,
    contains,
    denies,
    final_number,
    gold_letter,
    normalise,
    token_recall,
)

PHRASES = AbstentionConfig().phrases


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", "1234"),
        ("1,234.5", "2469/2"),
        ("$12.00", "12"),
        ("12 dollars", "12"),
        ("-3", "-3"),
        ("-$3", "-3"),
        ("= -3", "-3"),
        ("1/2", "1/2"),
        ("1 / 2", "1/2"),
        ("3.50", "7/2"),
        ("10", "10"),
        ("#### 7", "7"),
        ("5 + 2 = 7\n#### 7 apples out of 12", "7"),
        ("#### 3\nWait.\n#### 4", "4"),
        ("The answer is 7.", "7"),
        ("7, as I said", "7"),
        ("12 - 5 = 7", "7"),
        ("pages 5-7", "7"),
        ("COVID-19", "19"),
        ("−3", "-3"),
        ("5 − 2 = −3", "-3"),
        ("–3", "-3"),
        ("5–7", "7"),
        (".5", "1/2"),
        ("-.5", "-1/2"),
        ("−.5", "-1/2"),
        ("$.50", "1/2"),
        ("-$.50", "-1/2"),
        ("It is .5.", "1/2"),
        ("so...5", "5"),
        ("v.5", "5"),
        ("1.5e3", "1500"),
        ("2E+2.", "200"),
        ("-1.5e-3", "-3/2000"),
        ("1.5 × 10^3", "1500"),
        ("1.5 x 10^{3}", "1500"),
        (r"$1.5 \times 10^{-2}$", "3/200"),
        ("3 x 10 = 30", "30"),
        ("5 eggs", "5"),
        ("1 1/2", "3/2"),
        ("-1 1/2 cups", "-3/2"),
        ("1½", "3/2"),
        ("3 ½", "7/2"),
        ("½", "1/2"),
        ("-½", "-1/2"),
        ("1.5/2", "3/4"),
        ("1/1,000", "1/1000"),
        ("1/2 or 3", "3"),
        ("1,234,567.", "1234567"),
        ("no number", None),
        ("", None),
        ("3/0", None),
        ("1.000.000", None),
        ("3 or 1.000.000", None),
        ("#### 1.000.000 or 3", None),
        ("1,5", None),
        ("0,500", None),
        ("1,2,3", None),
        ("12,34", None),
        ("room 12 7/2", None),
        ("1e999999999", None),
        ("1" * 5000, None),
        (f"{'1' * 5000} 1/2", None),
        (f"1/{'1' * 5000}", None),
        ("I counted 3 apples. #### none", None),
    ],
)
def test_the_final_number_is_read(text, number):
    assert final_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(("one", "other"), [("1,234", "1234.0"), ("$3.50", "7/2"), ("0.5", "1/2"), (".5", "½")])
def test_a_number_is_the_same_however_it_is_written(one, other):
    assert final_number(one) == final_number(other)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B) Paris", "B"),
        ("The answer is (C).", "C"),
        ("First I thought B, but it is D.", "D"),
        ("A", "A"),
        ("A, as I said", "A"),
        ("I choose (A)", "A"),
        ("A bird has wings, so B.", "B"),
        ("I'm sure of C", "C"),
        ("Paris", None),
        ("NATO", None),
        ("b", None),
        ("", None),
    ],
)
def test_the_chosen_letter_is_read(text, letter):
    assert choice_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I cannot find this in the document.", True),
        ("The text DOES NOT SAY.", True),
        ("I don’t know.", True),
        ("I don't know.", True),
        ("Oslo", False),
        ("It says so in the text.", False),
        ("", False),
    ],
)
def test_a_refusal_is_recognised(text, expected):
    assert abstains(text, PHRASES) is expected


@pytest.mark.parametrize("phrase", ["Keine Angabe", "don’t know"])
def test_a_phrase_of_the_users_counts_in_any_case_and_with_any_apostrophe(phrase):
    assert abstains(f"Sorry, {phrase.upper()}!", [phrase])
    assert abstains(f"Sorry, {phrase.replace('’', chr(39))}!", [phrase])


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


def test_normalising_drops_case_punctuation_articles_and_spaces():
    assert normalise("  The  Answer, is:\n a Dog! ") == "answer is dog"


@pytest.mark.parametrize(
    ("gold", "letter"), [("C. Vitamin D", "C"), ("(B)", "B"), ("A", "A"), ("The answer is D.", "D"), ("none", None)]
)
def test_a_golds_letter_is_the_one_it_begins_with(gold: str, letter: str | None) -> None:
    assert gold_letter(gold) == letter
