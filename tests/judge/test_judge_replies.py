"""Verdicts in free text: the last one binds, and what cannot be made out is no verdict."""

from __future__ import annotations

import math

import pytest

from tasks.judge.replies import Opinion, opinion_of, probability, read_verdict

ROW = {"text": "", "accept_logprob": None, "reject_logprob": None, "finish_reason": "stop", "problem": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accept", True),
        ("Reject.", False),
        ("**Accepted**", True),
        ("Verdict: accept", True),
        ("The verdict is reject.", False),
        ("**Verdict:** accept", True),
        ('{"reason": "same city", "verdict": "reject"}', False),
        ("It names the right city.\n\nVerdict: accept\n", True),
        ("accept\n\nThe candidate says the same.", True),
        ("The candidate says the same.\n\naccept", True),
        # The last one binds: the first is quoted from the candidate.
        ('The candidate says "verdict: accept", but it is wrong.\nVerdict: reject', False),
        ("Verdict: reject\nOn second thoughts:\nVerdict: accept", True),
        # Checked after the match, never replaced by an earlier one.
        ("Verdict: accept\nVerdict: unsure", None),
        ("Verdict: accept or reject", None),
        ("Verdict: accept/reject", None),
        ("Verdict: not accept", None),
        ("Verdict: 10", None),
        ("I would not accept this.", None),
        ("The candidate should be accepted", None),
        ("acceptable", None),
        ("", None),
        (" \n ", None),
        ("1", None),
    ],
)
def test_the_last_verdict_of_a_text_binds_and_is_checked(text, expected):
    assert read_verdict(text, is_cut_off=False) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Verdict: accept", None),  # "... or reject" may have followed
        ("Verdict: accept\nBecause", True),
        ("reject", None),
        ("accept\nBecause the", True),
        ("Both name the", None),
        ("   ", None),
    ],
)
def test_a_reply_that_was_cut_off_counts_only_if_its_verdict_was_whole(text, expected):
    assert read_verdict(text, is_cut_off=True) is expected


def test_no_verdict_is_no_rejection():
    assert opinion_of({**ROW, "text": "Hm."}) == Opinion(None, problem="no verdict in the judge's reply")
    assert opinion_of({**ROW, "text": " \n", "finish_reason": "length"}) == Opinion(
        None, problem="the judge was cut off"
    )
    assert opinion_of({**ROW, "text": None, "problem": "http_500: x"}).problem == "the judge failed (http_500)"


def test_probabilities_count_before_the_text():
    row = {**ROW, "text": "accept", "accept_logprob": math.log(0.2), "reject_logprob": math.log(0.6)}
    assert opinion_of(row) == Opinion(False, pytest.approx(0.25))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The probabilities are of the first token: those of a tail, where the verdict comes later.
        ("Verdict: reject", Opinion(False)),
        ("**Reject**", Opinion(False)),
        ("Accept? No.\nVerdict: reject", Opinion(False)),
        ("I could not say.", Opinion(None, problem="no verdict in the judge's reply")),
        ("Rejecting is too strict", Opinion(None, problem="no verdict in the judge's reply")),
        ("Accept", Opinion(True, pytest.approx(0.95, abs=0.01))),
        ("Accepted. It says the same.", Opinion(True, pytest.approx(0.95, abs=0.01))),
    ],
)
def test_probabilities_of_a_text_that_does_not_begin_with_its_verdict_do_not_count(text, expected):
    assert opinion_of({**ROW, "text": text, "accept_logprob": -9.0, "reject_logprob": -12.0}) == expected


@pytest.mark.parametrize(
    ("accept", "reject", "expected"),
    [
        (-1.0, -1.0, 0.5),
        (-1e9, -1.0, 0.0),
        (-1.0, -1e9, 1.0),
        (-math.inf, -1.0, 0.0),
        (-1.0, -math.inf, 1.0),
        (-math.inf, -math.inf, None),
        (None, -1.0, None),
        (-1.0, None, None),
    ],
)
def test_the_probability_is_normalised_over_the_two_choices(accept, reject, expected):
    found = probability(accept, reject)
    assert found == (None if expected is None else pytest.approx(expected))
