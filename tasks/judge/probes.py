"""Probes: answers whose right verdict is known, made from training rows by rules that need no model.

An acceptable probe says what a gold answer says in another form. A wrong one is spoilt in a way in which answers go
wrong. Probes measure how precise a judge's `accept` is. Real mistakes can be subtler, so this is an upper bound.

A maker returns None where it does not fit a row, or where the right verdict on what it makes would not be certain.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tasks.artifacts.digest import digest_of, stable_rng, stable_seed
from tasks.judge.rubrics import JudgeCase
from tasks.measures.answers import contains, token_recall
from tasks.measures.choice_letters import choice_letter
from tasks.measures.final_numbers import final_number
from tasks.measures.refusals import refuses
from tasks.measures.words import normalise
from tasks.tables.aligned import training_batches

COLUMNS = ["task", "question", "dialogue", "document", "golds", "incorrect", "answerable"]
REFUSALS = (
    "The text does not say.", "The document does not say.", "I do not know.",
    "There is not enough information to answer this.", "The document does not mention this.",
    "I cannot answer this from the document.",
)  # fmt: skip
_BY_RULE = ("number", "multiple_choice")  # these tasks compare a number or a letter, not a statement
_MANY_WORDS, _SENTENCE = 4, range(3, 26)
_SAME_WORDS = 0.8  # token recall from which two answers may mean the same

Row = dict[str, Any]  # Any: values of a row of `examples`


class JudgeProbe(NamedTuple):
    """An answer whose right verdict is known: accept if `acceptable`, else reject."""

    probe_id: str
    kind: str
    example_id: str
    acceptable: bool
    case: JudgeCase


Maker = Callable[[Row, Sequence[Row], Random], str | None]


def draw(examples: Path, n: int, *, seed: int, tasks: Container[str] | None = None) -> list[Row]:
    """Choose at most n training rows by a hash of their ids, so that other rows hardly change the choice.

    Args:
        tasks: Only rows of these tasks; None: rows of any task.
    """

    def found() -> Iterator[Row]:
        for batch in training_batches(examples, COLUMNS):
            yield from (row for row in batch.to_pylist() if tasks is None or row["task"] in tasks)

    return heapq.nsmallest(n, found(), key=lambda row: (stable_seed(seed, row["example_id"]), row["example_id"]))


def make_probes(rows: Sequence[Row], n: int, *, seed: int, phrases: Sequence[str]) -> list[JudgeProbe]:
    """Make at most n probes: every second one is acceptable, and all kinds are about equally frequent.

    Args:
        phrases: Phrases that mark an answer as a refusal.
    """
    used: Counter[str] = Counter()
    made: dict[str, JudgeProbe] = {}
    for turn in range(len(_ACCEPTABLE) + len(_NOT_ACCEPTABLE)):
        for place, row in enumerate(rows):
            if len(made) >= n:
                return list(made.values())
            makers = _ACCEPTABLE if (place + turn) % 2 == 0 else _NOT_ACCEPTABLE
            # The rarest kind comes first, so that every kind is made.
            for kind in sorted(makers, key=lambda kind: (used[kind], kind)):
                probe = _probe(kind, makers[kind], row, rows, seed, acceptable=makers is _ACCEPTABLE)
                if probe and probe.probe_id not in made and _is_certain(probe, phrases):
                    made[probe.probe_id] = probe
                    used[kind] += 1
                    break
    return list(made.values())


def _probe(kind: str, maker: Maker, row: Row, rows: Sequence[Row], seed: int, *, acceptable: bool) -> JudgeProbe | None:
    candidate = maker(row, rows, stable_rng(seed, row["example_id"], kind))
    if candidate is None:
        return None
    case = JudgeCase(
        row["task"], row["question"], row["document"], row["golds"], row["answerable"], candidate, row["dialogue"]
    )  # fmt: skip
    probe_id = digest_of([row["example_id"], candidate])[:32]
    return JudgeProbe(probe_id, kind, row["example_id"], acceptable, case)


def _is_certain(probe: JudgeProbe, phrases: Sequence[str]) -> bool:
    """Whether the recipe's phrases tell refusal from answer as the probe means it."""
    is_refusal = probe.kind in ("refused", "refusal_reworded")
    if not probe.case.candidate or (probe.case.answerable is None and not is_refusal):
        return True
    must_refuse = is_refusal or (probe.case.answerable is False and probe.acceptable)
    return refuses(probe.case.candidate, phrases) is must_refuse


# --- acceptable ---


def _other_gold(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    others = [gold for gold in row["golds"][1:] if normalise(gold) and normalise(gold) != normalise(row["golds"][0])]
    return rng.choice(others) if others else None


def _wrapped(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    if row["answerable"] is False:
        return None
    return rng.choice(["The answer is {}", "Answer: {}"]).format(_shortest(row))


def _respelled(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    gold = row["golds"][0].strip()
    if row["task"] == "multiple_choice":
        return f"({gold})" if len(gold) == 1 else None
    unended = gold.rstrip(".") if gold.endswith(".") else f"{gold}."
    return str(rng.choice([unended, gold.lower(), gold.upper()]))


def _refusal_reworded(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    return rng.choice(REFUSALS) if row["answerable"] is False else None


# --- not acceptable ---


def _other_answer(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    """The gold of another answerable example of the same task, also for an unanswerable question."""
    start = rng.randrange(len(rows))
    for other in (*rows[start:], *rows[:start]):
        is_answer = other["answerable"] is not False
        if other["task"] == row["task"] and other["example_id"] != row["example_id"] and is_answer:
            gold: str = other["golds"][0]
            if gold.strip() and not _may_be_right(gold, row):
                return gold
    return None


def _known_wrong(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    wrong = [text for text in row["incorrect"] if text.strip() and not _may_be_right(text, row)]
    return rng.choice(wrong) if wrong else None


def _negated(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    if row["answerable"] is False or row["task"] in _BY_RULE:
        return None
    for gold in row["golds"]:
        if len(gold.split()) in _SENTENCE:
            return f"It is not true that {gold}"
    return f"It is not {_shortest(row)}"


def _emptied(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    return ""


def _truncated(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    """The first half of the first gold, unless that half already says what a gold says."""
    words = row["golds"][0].split()
    if row["answerable"] is False or row["task"] in _BY_RULE or len(words) < _MANY_WORDS:
        return None
    half = " ".join(words[: len(words) // 2])
    says_it = any(contains(half, gold) for gold in row["golds"]) or token_recall(half, row["golds"]) >= _SAME_WORDS
    return None if says_it else half


def _refused(row: Row, rows: Sequence[Row], rng: Random) -> str | None:
    return rng.choice(REFUSALS) if row["answerable"] is True else None


def _may_be_right(text: str, row: Row) -> bool:
    """Whether the text might be an acceptable answer to the row. In doubt, it might."""
    if row["task"] == "number":
        return final_number(text) in {final_number(gold) for gold in row["golds"]}
    if row["task"] == "multiple_choice":
        return choice_letter(text) in {choice_letter(gold) for gold in row["golds"]}
    return any(
        contains(text, gold) or contains(gold, text) or token_recall(text, [gold]) >= _SAME_WORDS
        for gold in row["golds"]
    )


def _shortest(row: Row) -> str:
    golds = [gold for gold in row["golds"] if gold.strip()] or row["golds"]
    return str(min(golds, key=lambda gold: (len(gold), gold)))


_ACCEPTABLE: dict[str, Maker] = {
    "other_gold": _other_gold, "wrapped": _wrapped, "respelled": _respelled, "refusal_reworded": _refusal_reworded,
}  # fmt: skip
_NOT_ACCEPTABLE: dict[str, Maker] = {
    "other_answer": _other_answer, "known_wrong": _known_wrong, "negated": _negated, "emptied": _emptied,
    "truncated": _truncated, "refused": _refused,
}  # fmt: skip
