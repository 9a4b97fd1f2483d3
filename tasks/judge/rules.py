"""Rules that give a verdict without a language model.

The first rule that applies decides. An answer that no rule decides stays undecided. It is no error and no rejection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tasks.config import JudgeConfig
from tasks.measures.answers import (
    contains,
    denies,
    token_recall,
)
from tasks.measures.choice_letters import choice_letter
from tasks.measures.final_numbers import final_number
from tasks.measures.refusals import refuses
from tasks.measures.words import normalise, normalised_words

ACCEPT, REJECT, UNJUDGED = "accept", "reject", "unjudged"


class Candidate(NamedTuple):
    """An answer of the base model, with what is known about its question.

    Attributes:
        text: None when generation failed; `problem` then says why.
    """

    text: str | None
    finish_reason: str | None
    problem: str | None
    task: str
    golds: list[str]
    incorrect: list[str]
    answerable: bool | None


class Verdict(NamedTuple):
    """The verdict on a candidate. `decided_by` is None for an unjudged one."""

    verdict: str
    decided_by: str | None
    reason: str


class Answer(NamedTuple):
    """The text to judge, and whether it is a refusal; None where only a reader can tell."""

    text: str
    refuses: bool | None


Rule = Callable[[Candidate, Answer, JudgeConfig], Verdict | None]


def first_rule(candidate: Candidate, config: JudgeConfig, abstentions: Sequence[str]) -> Verdict | None:
    """The verdict of the first rule that applies; None where none does."""
    if candidate.text is None:
        return Verdict(UNJUDGED, None, f"no output ({(candidate.problem or 'unknown').partition(':')[0]})")
    answer = Answer(candidate.text, refuses(candidate.text, abstentions))
    found = (rule(candidate, answer, config) for rule in RULES)
    return next((verdict for verdict in found if verdict), None)


def undecided(config: JudgeConfig) -> Verdict:
    """The verdict on an answer that no rule decides, where no language model judges."""
    if config.undecided == "reject":
        return Verdict(REJECT, "undecided", "no rule accepts it")
    return Verdict(UNJUDGED, None, "no rule decides it")


def _finished(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if not answer.text.strip():
        return Verdict(REJECT, "empty", "empty")
    if candidate.finish_reason == "length":
        return Verdict(REJECT, "cut_off", "cut off at the token limit")
    return None


def _exact_match(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    # Normalising turns -3 into 3 and 1,5 into 15, and drops the letter A as an article; the rules below do not.
    if candidate.task == "number" and re.search(r"\d", answer.text):
        return None
    if candidate.task == "multiple_choice" and choice_letter(answer.text) is not None:
        return None
    words = normalise(answer.text)
    if any(words == normalise(gold) if words else answer.text.strip() == gold.strip() for gold in candidate.golds):
        return Verdict(ACCEPT, "exact_match", "says what the gold says")
    return None


def _answerability(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if candidate.answerable is None or answer.refuses is None:
        return None
    if not candidate.answerable:
        if answer.refuses:
            return Verdict(ACCEPT, "answerability", "refuses, and there is no answer")
        return Verdict(REJECT, "answerability", "answers what cannot be answered")
    return Verdict(REJECT, "answerability", "refuses, though there is an answer") if answer.refuses else None


def _number(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if candidate.task != "number":
        return None
    found = final_number(answer.text)
    if found is None:
        return Verdict(REJECT, "number", "no number in it")
    if found in {final_number(gold) for gold in candidate.golds}:
        return Verdict(ACCEPT, "number", "the final number is right")
    return Verdict(REJECT, "number", "the final number is wrong")


def _choice(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if candidate.task != "multiple_choice":
        return None
    found = choice_letter(answer.text)
    if found is None:
        return None  # it may name the option in words, which `_contains_gold` finds
    if found in {choice_letter(gold) for gold in candidate.golds}:
        return Verdict(ACCEPT, "choice", "the letter is right")
    return Verdict(REJECT, "choice", "the letter is wrong")


def _known_wrong(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if any(contains(answer.text, wrong, apart_from=candidate.golds) for wrong in candidate.incorrect):
        return Verdict(REJECT, "known_wrong", "holds a known wrong answer")
    return None


def _contains_gold(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if not config.contains_gold:
        return None
    n_words = len(normalised_words(answer.text))
    for gold in candidate.golds:
        is_short = n_words - len(normalised_words(gold)) <= config.max_extra_words
        # "It is not in Oslo but in Rome" contains Oslo. What may be a denial is left undecided.
        if is_short and contains(answer.text, gold) and not denies(answer.text, gold):
            return Verdict(ACCEPT, "contains_gold", "holds a gold answer")
    return None


def _recalls_gold(candidate: Candidate, answer: Answer, config: JudgeConfig) -> Verdict | None:
    if config.min_token_recall is None:
        return None
    for gold in candidate.golds:
        if token_recall(answer.text, [gold]) >= config.min_token_recall and not denies(answer.text, gold):
            return Verdict(ACCEPT, "token_recall", "recalls the gold's words")
    return None


RULES: tuple[Rule, ...] = (
    _finished, _exact_match, _answerability, _number, _choice, _known_wrong, _contains_gold, _recalls_gold,
)  # fmt: skip
