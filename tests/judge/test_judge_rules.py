"""Each rule, their order, and the three states."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import pytest

from tasks.config import AbstentionConfig, JudgeConfig
from tasks.judge.rules import Candidate, Verdict, first_rule, undecided

REFUSAL = "I cannot find this in the document."


def judged(text: str | None, *golds: str, config: JudgeConfig | None = None, **known: Any) -> Verdict:
    candidate = Candidate(
        text, known.get("finish_reason", "stop"), known.get("problem"), known.get("task", "open"),
        list(golds or ("Oslo",)), known.get("incorrect", []), known.get("answerable"),
    )  # fmt: skip
    config = config or JudgeConfig()
    return first_rule(candidate, config, AbstentionConfig().phrases) or undecided(config)


def state(*args: Any, **known: Any) -> tuple[str, str | None]:
    verdict = judged(*args, **known)
    return verdict.verdict, verdict.decided_by


ACCEPTED = ("accept", "exact_match")


@pytest.mark.parametrize("text", ["Oslo", " oslo. ", "The Oslo!"])
def test_what_the_gold_says_is_accepted(text):
    assert state(text, "Oslo") == ACCEPTED


def test_one_of_several_golds_is_enough():
    assert state("Rome", "Oslo", "Rome") == ACCEPTED


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_answer_is_rejected(text):
    assert state(text) == ("reject", "empty")
    assert state(text, "") == ("reject", "empty")
    assert state(text, "the") == ("reject", "empty")


def test_an_answer_cut_off_at_the_limit_is_rejected_though_it_is_right():
    assert state("Oslo", finish_reason="length") == ("reject", "cut_off")


def test_a_failed_output_is_unjudged_with_its_sort_of_problem():
    verdict = judged(None, problem="context_overflow: 900 > 512")
    assert verdict == Verdict("unjudged", None, "no output (context_overflow)")
    assert judged(None).reason == "no output (unknown)"


@pytest.mark.parametrize(
    ("text", "answerable", "expected"),
    [
        ("The text does not say.", False, ("accept", "answerability")),
        (REFUSAL, False, ACCEPTED),
        ("She lives in Oslo.", False, ("reject", "answerability")),
        ("The text does not say.", True, ("reject", "answerability")),
        ("She lives in Oslo.", True, ("accept", "contains_gold")),
        ("The text does not say.", None, ("unjudged", None)),
    ],
)
def test_refusing_is_right_exactly_where_there_is_no_answer(text, answerable, expected):
    golds = [REFUSAL] if answerable is False else ["Oslo"]
    assert state(text, *golds, answerable=answerable) == expected


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        ("5 + 2 = 7", "7", "accept"),
        ("The answer is $1,234.00", "1234", "accept"),
        ("7", "... so she has\n#### 7", "accept"),
        ("0.5", "1/2", "accept"),
        ("7 or rather 8", "7", "reject"),
        ("seven", "7", "reject"),
        ("5:2", "3:2", "reject"),
        ("x = - 3", "3", "reject"),
        # All of these are the same once punctuation is dropped.
        ("-3", "3", "reject"),
        ("−3", "3", "reject"),
        ("1.5", "15", "reject"),
        ("1,5", "15", "reject"),
        ("1.000.000", "1000000", "reject"),
        ("10", "1", "reject"),
    ],
)
def test_a_number_task_compares_the_final_number(text, gold, verdict):
    assert state(text, gold, task="number") == (verdict, "number")


# A form of writing a number, and the number it is.
NUMBERS = {
    "1,234": Fraction(1234), "$12.00": Fraction(12), "12 dollars": Fraction(12), "-3": Fraction(-3),
    "1/2": Fraction(1, 2), "#### 7": Fraction(7), "The answer is 7.": Fraction(7), "1,234.50": Fraction(2469, 2),
    "-$3": Fraction(-3), "0.5": Fraction(1, 2), "7.0": Fraction(7), "12": Fraction(12), "1234": Fraction(1234),
    "3": Fraction(3), "15": Fraction(15), "1.5": Fraction(3, 2), "1, then 2, so 3": Fraction(3),
    "#### 7\nThat was 8 less": Fraction(7), "5 - 3 = 2": Fraction(2), "12%": Fraction(12), "0": Fraction(0),
    "−3": Fraction(-3), ".5": Fraction(1, 2), "$.50": Fraction(1, 2), "1.5e3": Fraction(1500), "1 1/2": Fraction(3, 2),
}  # fmt: skip


def test_the_number_rule_is_exact_equality_of_the_numbers():
    said = {(text, gold): state(text, gold, task="number") for text, gold in product(NUMBERS, NUMBERS)}
    wrong = {
        pair: found
        for pair, found in said.items()
        if found != ("accept" if NUMBERS[pair[0]] == NUMBERS[pair[1]] else "reject", "number")
    }
    assert wrong == {}


def test_a_number_elsewhere_is_not_compared():
    assert state("In 1814 it was Oslo, 7 miles off", "Oslo", task="open") == ("accept", "contains_gold")


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("(B)", "B", ("accept", "choice")),
        ("C. Vitamin D", "C", ("accept", "choice")),
        ("A. George W. Bush", "A. George W. Bush", ("accept", "choice")),
        ("The answer is B. A, C and D are wrong.", "D", ("reject", "choice")),
        ("d) none", "D", ("accept", "choice")),
        ("First A, then B.", "B", ("accept", "choice")),
        ("C", "B", ("reject", "choice")),
        # Normalised, the letter A is the article: nothing.
        ("A", "A", ("accept", "choice")),
        ("the", "A", ("unjudged", None)),
        ("...", "A", ("unjudged", None)),
        ("B", "A", ("reject", "choice")),
        ("it is oslo", "oslo", ("accept", "contains_gold")),
        ("it is rome", "B", ("unjudged", None)),
    ],
)
def test_multiple_choice_compares_the_letter(text, gold, expected):
    assert state(text, gold, task="multiple_choice") == expected


def test_an_answer_that_holds_a_known_wrong_one_is_rejected_though_it_holds_the_gold():
    assert state("Oslo or Rome.", incorrect=["Rome"]) == ("reject", "known_wrong")
    assert state("Oslo or Romeo.", incorrect=["Rome"]) == ("accept", "contains_gold")


def test_a_known_wrong_answer_inside_the_gold_does_not_reject_the_gold():
    assert state("It is New York City.", "New York City", incorrect=["New York"]) == ("accept", "contains_gold")
    assert state("It is New York.", "New York City", incorrect=["New York"]) == ("reject", "known_wrong")


@pytest.mark.parametrize(("n_extra", "expected"), [(2, ("accept", "contains_gold")), (3, ("unjudged", None))])
def test_an_answer_that_holds_the_gold_may_be_longer_by_so_many_words(n_extra, expected):
    assert state("Oslo " + "word " * n_extra, config=JudgeConfig(max_extra_words=2)) == expected


DENIALS = [
    ("It is not in Oslo but in Rome.", "Oslo"),
    ("She didn’t move to Oslo.", "Oslo"),
    ("Rome rather than Oslo.", "Oslo"),
    ("No, there is no doubt about it: yes.", "no"),
    ("No doubt about it: yes.", "no"),
]


@pytest.mark.parametrize(("text", "gold"), DENIALS)
def test_what_may_deny_the_gold_is_not_accepted_for_holding_it(text, gold):
    assert state(text, gold) == ("unjudged", None)
    assert state(text, gold, config=JudgeConfig(min_token_recall=1.0)) == ("unjudged", None)


def test_a_denied_gold_leaves_the_other_golds_their_chance():
    assert state("He was found not guilty.", "guilty", "not guilty") == ("accept", "contains_gold")


def test_holding_the_gold_counts_only_where_the_recipe_says_so():
    assert state("It is Oslo.", config=JudgeConfig(contains_gold=False)) == ("unjudged", None)


@pytest.mark.parametrize(
    ("least", "expected"), [(0.5, ("accept", "token_recall")), (0.51, ("unjudged", None)), (None, ("unjudged", None))]
)
def test_token_recall_accepts_from_its_threshold_on(least, expected):
    assert state("old Oslo", "new Oslo", config=JudgeConfig(min_token_recall=least)) == expected


def test_what_no_rule_decides_is_unjudged_or_rejected_as_the_recipe_says():
    assert judged("Rome") == Verdict("unjudged", None, "no rule decides it")
    assert judged("Rome", config=JudgeConfig(undecided="reject")) == Verdict(
        "reject", "undecided", "no rule accepts it"
    )


def test_a_failed_output_stays_unjudged_where_undecided_ones_are_rejected():
    assert state(None, config=JudgeConfig(undecided="reject")) == ("unjudged", None)
