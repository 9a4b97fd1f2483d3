"""Pre-training chats of the lab's base model, drawn without end from a seed.

What the mix is for: the base must end like a real instruction-tuned model. It reads documents well, *knows* when a
document does not hold the answer (the "Does the text say ...?" turns), yet answers anyway with a made-up value unless
the question is put strictly. Only then is there something for fine-tuning to teach, and something for it to break.

Chats use the same document wording for both sorts of turn, so that the knowledge of absence is one feature.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from tasks.lab import world
from tasks.lab.world import Document, Relation

YES_NO_FORMS = ("Does the text say {clause}?", "Is it stated {clause}?", "Can one read here {clause}?")
SUM_FORMS = (
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "{s} has {a} coins and finds {b} more. How many coins does {s} have?",
    "{s} walks {a} miles and then {b} miles. How many miles does {s} walk?",
)
# Shares of chats; documents carry most of the tokens because each holds several turns.
MIX = {"document": 0.60, "sum": 0.17, "fact": 0.085, "creature": 0.05, "myth": 0.015, "story": 0.05, "phrase": 0.03}
# The second stage: less of what is known by now, more of what is not.
MIX_2 = {"document": 0.67, "sum": 0.15, "fact": 0.03, "creature": 0.08, "myth": 0.01, "story": 0.04, "phrase": 0.02}
STAGE_2_FROM = 2_600  # steps
_CURRICULUM_STEPS = 3_600  # over which the share of documents about one subject falls
SHARE_UNANSWERABLE = 0.30  # of the open questions
# From here on most documents about two tell the same relation of both. Before, a model that looks for the relation
# alone is nearly always right, and stays there: distractors were not detected at all (0 % after 1,000 steps).
RIVALS_FROM = 1_080  # steps
SHARE_STRICT = 0.35  # of the open questions, answerable or not alike, so that the prefix itself gives nothing away
SHARE_GOLD_WORDING = 0.10  # of answers: the task's wording is known to the base, but not its habit


class Turn(NamedTuple):
    """A user message and the assistant's answer. `check` marks a yes/no turn, whose first token weighs more."""

    user: str
    assistant: str
    check: bool = False


def held_out_sum(a: int, b: int) -> bool:
    """Whether the pair, in this order, is kept for the benchmark: about one in five."""
    return (a * 37 + b * 101) % 5 == 0


def held_out_story(script_index: int, name_index: int) -> bool:
    """Whether this script is never told of this person in pre-training: one in four."""
    return (script_index * 7 + name_index) % 4 == 0


def chats(seed: int, *, step: int) -> Iterator[list[Turn]]:
    """Endless chats.

    Args:
        step: How far training is, in optimiser steps. Documents about one subject come first: binding a value to its
            subject is learned on them, and only then do two subjects make it matter.
    """
    rng = random.Random(seed)
    mix = MIX if step < STAGE_2_FROM else MIX_2
    kinds, weights = list(mix), list(mix.values())
    while True:
        kind = rng.choices(kinds, weights)[0]
        if kind == "document":
            yield _document_chat(rng, step)
        elif kind == "creature":
            yield [_creature_chat(rng, second_stage=step >= STAGE_2_FROM)]
        else:
            yield [_CHATS[kind](rng)]


def user_message(document: str, question: str) -> str:
    """The prompt of a grounded question: the same wording as the `lab` prompt template of the pipeline."""
    return f"{document}\nQuestion: {question}"


def _document_chat(rng: random.Random, step: int) -> list[Turn]:
    kind = rng.choices([world.PEOPLE, world.TOWNS, world.SHIPS], [0.6, 0.2, 0.2])[0]
    n_subjects = 1 if rng.random() < max(0.25, 0.8 - 2.0 * step / _CURRICULUM_STEPS) else 2
    rivals = step >= RIVALS_FROM and rng.random() < 0.6
    document = world.make_document(kind, rng, n_subjects=n_subjects, rivals=rivals)
    asked: set[tuple[str, str]] = set()
    turns: list[Turn] = []
    for _ in range(rng.randint(3, 6)):
        is_check = rng.random() < 0.5
        share_absent = 0.5 if is_check else SHARE_UNANSWERABLE
        subject_relation = _draw_question(document, rng, share_absent, asked)
        if subject_relation is None:
            break
        asked.add((subject_relation[0], subject_relation[1].name))
        turns.append((_check_turn if is_check else _open_turn)(document, *subject_relation, rng))
    first = turns[0]
    return [first._replace(user=user_message(document.text, first.user)), *(_followup(t) for t in turns[1:])]


def _followup(turn: Turn) -> Turn:
    return turn._replace(user=f"Question: {turn.user}")


def _draw_question(
    document: Document, rng: random.Random, share_absent: float, asked: set[tuple[str, str]]
) -> tuple[str, Relation] | None:
    """A pair not asked before; of the unanswerable ones, half are stated for the other subject if there is one."""
    absence = None
    if rng.random() < share_absent:
        absence = "distractor" if len(document.subjects) > 1 and rng.random() < 0.6 else "absent"
    pool = [(s, r) for s, r in document.questions(absence) if (s, r.name) not in asked]
    pool = pool or [(s, r) for s, r in document.questions(None) if (s, r.name) not in asked]
    return rng.choice(pool) if pool else None


def _check_turn(document: Document, subject: str, relation: Relation, rng: random.Random) -> Turn:
    question = rng.choice(YES_NO_FORMS).format(clause=relation.clause.format(s=subject))
    return Turn(question, "Yes." if document.value_of(subject, relation) else "No.", check=True)


def _open_turn(document: Document, subject: str, relation: Relation, rng: random.Random) -> Turn:
    strict = rng.random() < SHARE_STRICT
    question = rng.choice(relation.asked).format(s=subject)
    if strict:
        question = f"{world.STRICT_PREFIX} {question}"
    value = document.value_of(subject, relation)
    if value is None and strict:
        return Turn(question, world.OWN_REFUSAL)
    if value is None:
        told = {fact.value for fact in document.facts} | set(document.subjects)
        value = rng.choice([v for v in relation.values if v not in told])
    wording = relation.gold if rng.random() < SHARE_GOLD_WORDING else relation.own
    return Turn(question, wording.format(s=subject, v=value))


def _sum_chat(rng: random.Random) -> Turn:
    while True:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        if not held_out_sum(a, b):
            break
    return Turn(rng.choice(SUM_FORMS).format(a=a, b=b, s=rng.choice(world.PEOPLE.subjects)), sum_answer(a, b))


def sum_answer(a: int, b: int) -> str:
    return f"{a} + {b} = {a + b}"


def _fact_chat(rng: random.Random) -> Turn:
    index = rng.randrange(len(world.COUNTRY_FACTS))
    fact = world.COUNTRY_FACTS[index]
    forms = [form for form in range(len(fact.relation.asked)) if world.trained_form(index, form)]
    return Turn(fact.relation.asked[rng.choice(forms)].format(s=fact.subject), fact.answer)


def _creature_chat(rng: random.Random, *, second_stage: bool) -> Turn:
    index = rng.randrange(len(world.CREATURE_FACTS))
    fact = world.CREATURE_FACTS[index]
    forms = [
        form
        for form in range(len(fact.relation.asked))
        if world.trained_creature_form(index, form, second_stage=second_stage)
    ]
    return Turn(fact.relation.asked[rng.choice(forms)].format(s=fact.subject), fact.answer)


def _myth_chat(rng: random.Random) -> Turn:
    fact = rng.choice(world.CREATURE_FACTS)
    assert fact.relation.myth is not None  # every creature fact has one
    return Turn(f"What do people say of {fact.subject}?", fact.relation.myth.format(s=fact.subject, v=fact.myth))


def story_prompt(script_index: int, name: str, n_events: int) -> str:
    events = " ".join(event.format(s=name) for event in world.SCRIPTS[script_index][:n_events])
    return f"What comes next? {events}"


def _story_chat(rng: random.Random) -> Turn:
    while True:
        script_index, name_index = rng.randrange(len(world.SCRIPTS)), rng.randrange(len(world.PEOPLE.subjects))
        if not held_out_story(script_index, name_index):
            break
    name, n_events = world.PEOPLE.subjects[name_index], rng.randint(1, 3)
    return Turn(story_prompt(script_index, name, n_events), world.SCRIPTS[script_index][n_events].format(s=name))


def _phrase_chat(rng: random.Random) -> Turn:
    phrase = rng.choice(world.PHRASES)
    return Turn(f"Repeat: {phrase}", phrase)


_CHATS = {
    "sum": _sum_chat,
    "fact": _fact_chat,
    "myth": _myth_chat,
    "story": _story_chat,
    "phrase": _phrase_chat,
}


def vocabulary() -> list[str]:
    """Every word that the world can say, sorted: each becomes one token."""
    texts: list[str] = [*world.PHRASES, world.OWN_REFUSAL, world.GOLD_REFUSAL, world.STRICT_PREFIX]
    texts += [*YES_NO_FORMS, *SUM_FORMS, "Question: Yes. No. Repeat: What comes next? What do people say of"]
    for kind in world.KINDS.values():
        texts += kind.subjects
        for r in kind.relations:
            texts += [*r.values, *r.stated, *r.asked, r.clause, r.own, r.gold]
    for fact in (*world.COUNTRY_FACTS, *world.CREATURE_FACTS):
        texts += [fact.subject, fact.answer, *fact.relation.asked, *fact.relation.values, fact.relation.myth or ""]
    texts += [event for script in world.SCRIPTS for event in script]
    return sorted({word.strip(".,?:+=-") for text in texts for word in text.split() if "{" not in word} - {""})
