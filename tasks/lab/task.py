"""The lab's task as a dataset: grounded questions about people, and the same about towns and ships for transfer.

Gold answers use the task's wording and its own refusal. Half of the documents are about two subjects. A third of the
unanswerable questions ask for what the document states of the other subject only; some answerable ones ask for what it
states of both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from tasks.lab import corpus, documents, world
from tasks.lab.world import Kind

VERSION = 2  # raise it when the same seed gives other rows

SHARE_UNANSWERABLE = 0.4
SHARE_DISTRACTORS = 0.33  # of the unanswerable questions
TEST_ROWS = 500  # of each kind of document; towns and ships together are the out-of-domain test
TEST_SEED = 90_001  # fixed: every run is measured on the same held-out rows


class LabRow(NamedTuple):
    """One question of the task; `source`, `split` and `domain` as in the examples table."""

    source: str
    split: str
    domain: str
    question: str
    document: str
    golds: list[str]
    incorrect: list[str]
    answerable: bool
    group: str | None


def task_rows(n_train: int, *, seed: int) -> Iterator[LabRow]:
    """Training rows drawn from `seed`, then the fixed test rows."""
    yield from _rows(world.PEOPLE, n_train, seed=seed, source="lab-people", split="train", domain="in")
    yield from _rows(world.PEOPLE, TEST_ROWS, seed=TEST_SEED, source="lab-people", split="test", domain="in")
    for kind in (world.TOWNS, world.SHIPS):
        yield from _rows(kind, TEST_ROWS // 2, seed=TEST_SEED, source=f"lab-{kind.name}", split="test", domain="out")


def _rows(kind: Kind, n: int, *, seed: int, source: str, split: str, domain: str) -> Iterator[LabRow]:
    # Each row is drawn from its number, so that a longer draw begins with the rows of a shorter one.
    for index in range(n):
        rng = random.Random(f"{kind.name}-{seed}-{index}")
        absence = None
        if rng.random() < SHARE_UNANSWERABLE:
            absence = "distractor" if rng.random() < SHARE_DISTRACTORS else "absent"
        document, subject, relation = documents.draw_question(kind, rng, absence)
        strict = rng.random() < corpus.SHARE_STRICT
        question = rng.choice(relation.asked).format(s=subject)
        value = document.value_of(subject, relation)
        golds = [world.GOLD_REFUSAL] if value is None else [relation.gold.format(s=subject, v=value), value]
        yield LabRow(
            source, split, domain, f"{world.STRICT_PREFIX} {question}" if strict else question, document.text, golds,
            sorted({f.value for f in document.facts} - {value}), absence is None, None,
        )  # fmt: skip
