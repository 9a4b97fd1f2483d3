"""The lab's judge: chats in which a candidate answer is accepted or rejected, and what the judge must be able to do.

A second tiny model, so that the judge's path (rubric, constrained verdict, probability, audit) has a real judge without
a GPU. It sees what any judge sees (document, question, gold, candidate) in the words of the rubric `lab.v1`. It is
right most of the time, and the audit has to find what it gets wrong.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tasks.lab import corpus, documents, world
from tasks.lab.corpus import Turn
from tasks.lab.documents import Document
from tasks.lab.world import Relation

ACCEPT, REJECT = "accept", "reject"
ACCURACY_GATE = 0.90
SHARE_UNANSWERABLE = 0.4  # as in the task
# Ways to put an answer, and to spoil one, that a judge meets beside those of the base model. The rubric has a label
# "Answer:", which is written "Answer," where it is part of a candidate.
WRAPPED = ("{a}", "{a}", "{a}", "The answer is {a}", "Answer, {a}", "It is {a}", "I think {a}")
NEGATED = ("It is not true that {a}", "It is false that {a}", "It is not {a}")
REFUSALS = (
    world.OWN_REFUSAL, world.GOLD_REFUSAL, "The document does not say.", "I do not know.", "It is not stated.",
    "There is not enough information to answer this.", "The document does not mention this.",
    "I cannot answer this from the document.", "There is no answer in the text.",
)  # fmt: skip


class Case(NamedTuple):
    """A candidate answer to judge, and whether it is acceptable."""

    document: str
    question: str
    gold: str
    candidate: str
    accepted: bool

    @property
    def prompt(self) -> str:
        """The user message, in the words of the rubric `lab.v1`."""
        asked = f"{self.document}\nQuestion: {self.question}\nGold: {self.gold}\nAnswer: {self.candidate}"
        return f"{asked}\nIs the answer right?"

    @property
    def verdict(self) -> str:
        """The right verdict on it."""
        return ACCEPT if self.accepted else REJECT


def cases(seed: int | str) -> Iterator[Case]:
    """Endless cases, about half of them acceptable."""
    rng = random.Random(seed)
    while True:
        kind = rng.choices([world.PEOPLE, world.TOWNS, world.SHIPS], [0.6, 0.2, 0.2])[0]
        document = documents.make_document(kind, rng, rng.choice(["single", "mixed"]))
        absence = rng.choice(["absent", "distractor"]) if rng.random() < SHARE_UNANSWERABLE else None
        if pool := document.questions(absence):
            yield _case(document, *rng.choice(pool), rng)


def _case(document: Document, subject: str, relation: Relation, rng: random.Random) -> Case:
    question = rng.choice(relation.asked).format(s=subject)
    if rng.random() < corpus.SHARE_STRICT:
        question = f"{world.STRICT_PREFIX} {question}"
    value = document.value_of(subject, relation)
    accepted = rng.random() < 0.5
    if value is None and accepted:
        gold, candidate = world.GOLD_REFUSAL, rng.choice(REFUSALS)
    elif value is None:
        gold, candidate = world.GOLD_REFUSAL, _stated(_wrong_value(document, relation, rng), subject, relation, rng)
    else:
        gold, right = relation.gold.format(s=subject, v=value), _stated(value, subject, relation, rng)
        candidate = right if accepted else _spoilt(right, document, subject, relation, rng)
    return Case(document.text, question, gold, candidate, accepted)


def _stated(value: str, subject: str, relation: Relation, rng: random.Random) -> str:
    form = rng.choices([relation.own, relation.gold, "{v}"], [0.6, 0.25, 0.15])[0]
    return rng.choice(WRAPPED).format(a=form.format(s=subject, v=value))


def _wrong_value(document: Document, relation: Relation, rng: random.Random) -> str:
    """One of the document's other values, or any other of the relation."""
    stated = [fact.value for fact in document.facts]
    if rng.random() < 0.5:
        return rng.choice(stated)
    return rng.choice([v for v in relation.values if v not in stated])


def _spoilt(right: str, document: Document, subject: str, relation: Relation, rng: random.Random) -> str:
    way = rng.choices(["value", "refusal", "negated", "cut", "empty"], [0.6, 0.2, 0.1, 0.08, 0.02])[0]
    if way == "refusal":
        return rng.choice(REFUSALS)
    if way == "negated":
        return rng.choice(NEGATED).format(a=right)
    if way == "cut":
        return " ".join(right.split()[: max(1, len(right.split()) // 2)]) if len(right.split()) > 1 else ""
    if way == "empty":
        return ""
    value = document.value_of(subject, relation)
    wrong = next(v for v in iter(lambda: _wrong_value(document, relation, rng), None) if v != value)
    return _stated(wrong, subject, relation, rng)


def chats(seed: int, step: int) -> Iterator[list[Turn]]:
    """Endless chats for `pretrain`: registers retold first, so that words are compared, then cases."""
    yield from (
        corpus.chats(seed, step=step)
        if step < corpus.REGISTERS_ONLY
        else ([Turn(case.prompt, case.verdict, key=case.verdict)] for case in cases(seed))
    )


def accuracy(answer: Callable[[list[str], int], list[str]], *, n: int = 400, seed: int = 0) -> dict[str, float]:
    """The share of fresh cases that the judge gets right: of the acceptable ones, and of the others.

    Args:
        answer: As for `gates.measure`.
    """
    drawn = cases(f"gate-{seed}")
    chosen = [next(drawn) for _ in range(n)]
    said = answer([case.prompt for case in chosen], 2)
    right: dict[str, list[bool]] = {ACCEPT: [], REJECT: []}
    for case, text in zip(chosen, said, strict=True):
        right[case.verdict].append(text.strip() == case.verdict)
    return {verdict: statistics.fmean(found) for verdict, found in right.items()}


def gated(found: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What decides whether a model is shipped, each figure with its gate."""
    return {f"right to {verdict}": (share, ACCURACY_GATE) for verdict, share in found.items()}


def vocabulary() -> list[str]:
    """Every word that a case can hold, sorted."""
    texts = [*WRAPPED, *NEGATED, *REFUSALS, f"{ACCEPT} {REJECT} Gold: Answer: Is the answer right?"]
    words = {word.strip(".,?:") for text in texts for word in text.split() if "{" not in word} - {""}
    return sorted(words | set(corpus.vocabulary()))
