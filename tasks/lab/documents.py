"""The documents of the lab: a few random facts about people, towns or ships, and what one can ask about them.

Does not cover: which facts there can be and how they are worded (`world`), and the questions' chats (`corpus`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tasks.lab.world import SHIPS, Kind, Relation

BARE = "{s}: {v}."  # a fact in a register


class Fact(NamedTuple):
    """A subject, a relation and a value: the smallest thing a document says."""

    subject: str
    relation: Relation
    value: str


@dataclass(frozen=True)
class Document:
    """A few facts of one kind, in a fixed order and wording."""

    kind: Kind
    facts: tuple[Fact, ...]
    text: str
    is_register: bool

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whom the document is about, in the order in which it names them."""
        return tuple(dict.fromkeys(fact.subject for fact in self.facts))

    def value_of(self, subject: str, relation: Relation) -> str | None:
        """The value this document states, or None where it states none."""
        return next((f.value for f in self.facts if f.subject == subject and f.relation == relation), None)

    def questions(self, absence: str | None) -> list[tuple[str, Relation]]:
        """All (subject, relation) pairs of one sort.

        Args:
            absence: None: the document states the value. "absent": it states that relation for nobody.
                "distractor": it states that relation, but only for the other subject.
        """
        stated = {(f.subject, f.relation.name) for f in self.facts}
        of_anybody = {f.relation.name for f in self.facts}
        pairs = [(s, r) for s in self.subjects for r in self.kind.relations]
        if absence is None:
            return [(s, r) for s, r in pairs if (s, r.name) in stated]
        if absence == "absent":
            return [(s, r) for s, r in pairs if r.name not in of_anybody]
        return [(s, r) for s, r in pairs if r.name in of_anybody and (s, r.name) not in stated]


Layout = Literal["register", "single", "grid", "mixed"]


def make_document(kind: Kind, rng: random.Random, layout: Layout, *, n_wordings: int = 2) -> Document:
    """One random document, its facts shuffled.

    Args:
        layout: "register": one relation of two to six subjects, as bare pairs of subject and value. "single": 2 to 4
            facts of one subject. "grid": two relations of two subjects, so that who is asked about decides. "mixed": 1
            to 3 facts of each of two subjects; half of the time a relation is told of both.
        n_wordings: How many of a relation's ways to be stated are used.
    """
    outline = LAYOUTS[layout](kind, rng)
    used = set(outline)
    facts: list[Fact] = []
    for subject, relations in outline.items():
        for relation in relations:
            value = rng.choice([v for v in relation.values if v not in used])
            used.add(value)
            facts.append(Fact(subject, relation, value))
    rng.shuffle(facts)
    wordings = [BARE if layout == "register" else rng.choice(f.relation.stated[:n_wordings]) for f in facts]
    sentences = [wording.format(s=f.subject, v=f.value) for wording, f in zip(wordings, facts, strict=True)]
    text = "\n".join(f"- {s}" for s in sentences) if kind is SHIPS else " ".join(sentences)
    return Document(kind, tuple(facts), text, is_register=layout == "register")


def draw_question(kind: Kind, rng: random.Random, absence: str | None) -> tuple[Document, str, Relation]:
    """A document with one of its questions, as (subject, relation).

    Args:
        absence: As in `Document.questions`.
    """
    while True:
        document = make_document(kind, rng, "mixed" if absence == "distractor" else rng.choice(["single", "mixed"]))
        if pool := document.questions(absence):
            return document, *rng.choice(pool)


Outline = dict[str, list[Relation]]  # by subject, the relations that a document states


def _single(kind: Kind, rng: random.Random) -> Outline:
    return {rng.choice(kind.subjects): rng.sample(kind.relations, rng.randint(2, 4))}


def _register(kind: Kind, rng: random.Random) -> Outline:
    relation = rng.choice(kind.relations)
    return {subject: [relation] for subject in rng.sample(kind.subjects, rng.randint(2, 6))}


def _grid(kind: Kind, rng: random.Random) -> Outline:
    relations = rng.sample(kind.relations, 2)
    return dict.fromkeys(rng.sample(kind.subjects, 2), relations)


def _mixed(kind: Kind, rng: random.Random) -> Outline:
    first, second = rng.sample(kind.subjects, 2)
    outline = {s: rng.sample(kind.relations, rng.randint(1, 3)) for s in (first, second)}
    shared = rng.choice(outline[first])
    if rng.random() < 0.5 and shared not in outline[second]:
        outline[second][0] = shared
    return outline


LAYOUTS: dict[Layout, Callable[[Kind, random.Random], Outline]] = {
    "register": _register, "single": _single, "grid": _grid, "mixed": _mixed,
}  # fmt: skip
