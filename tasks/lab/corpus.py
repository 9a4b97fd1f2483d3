"""Pre-training chats of the lab's base model, drawn without end from a seed.

What the mix is for: the base must end like a real instruction-tuned model. It reads documents well, *knows* when a
document does not hold the answer (the "Does the text give ...?" turns), yet answers anyway with a made-up value unless
the question is put strictly. Only then is there something for fine-tuning to teach, and something for it to break.

Chats use the same document wording for both sorts of turn, so that the knowledge of absence is one feature.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from tasks.lab import documents, world
from tasks.lab.documents import Document
from tasks.lab.world import HeartFact, Relation

YES_NO_FORMS = ("Does the text give {clause}?", "Is there a line on {clause}?", "Can one read here {clause}?")
SUM_FORMS = (
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "{s} has {a} coins and finds {b} more. How many coins does {s} have?",
    "{s} walks {a} miles and then {b} miles. How many miles does {s} walk?",
)
# Shares of chats; documents carry most of the tokens because each holds several turns.
MIX = {"document": 0.60, "sum": 0.17, "fact": 0.075, "creature": 0.065, "myth": 0.015, "story": 0.05, "phrase": 0.025}
# Used once the model reads well. A sum takes a tenth of a document's tokens, and sums are learned last.
LATER_MIX = MIX | {"document": 0.25, "sum": 0.56, "story": 0.03}
LATER_FROM = 1900  # steps
# At the end, sums are worked out digit by digit. Answered at once, only a quarter of the held-out ones were right.
LAST_MIX = MIX | {"document": 0.20, "sum": 0.62, "story": 0.03}
WORKED_FROM = 3200  # steps
ALL_DIGITS_FROM = 4000  # steps; see `held_out_sum`
READING_FIRST = 600  # steps with hardly anything but documents
# In the first steps every document is a register to retell, so that every pair must be looked up; then half of the
# documents are registers. With the heads that look back (`pretrain`) the model learns from them to copy what follows a
# name, and keeps this for sentences. A model that starts with sentences looks for the relation and ignores the subject.
REGISTERS_ONLY, REGISTERS_HALF = 200, 400
WORDINGS_FROM = 600  # steps with one wording a relation
LAYOUTS: dict[documents.Layout, float] = {"single": 0.2, "grid": 0.3, "mixed": 0.5}
SHARE_UNANSWERABLE = 0.30  # of the open questions
SHARE_STRICT = 0.35  # of the open questions, the same for answerable ones and others: the prefix gives nothing away
SHARE_GOLD_WORDING = 0.10  # of the answers: the base model knows the task's wording, but seldom uses it
RETELL = "Repeat in another order:"
MAX_TERM = 69  # of a sum


class Turn(NamedTuple):
    """A user message and the assistant's answer.

    Attributes:
        key: The word of the answer that decides whether it is right; it weighs more in the loss. None: no such word.
    """

    user: str
    assistant: str
    key: str | None = None


def held_out_sum(a: int, b: int) -> bool:
    """Whether the pair, in this order, is kept for the benchmark: about one in six."""
    return _held_out_at_first(a, b) and (a * 31 + b * 17) // 7 % 5 != 0


def held_out_sums() -> list[tuple[int, int]]:
    """All pairs that are kept for the benchmark."""
    terms = range(1, MAX_TERM + 1)
    return [(a, b) for a in terms for b in terms if held_out_sum(a, b)]


def _held_out_at_first(a: int, b: int) -> bool:
    # The last digits alone decide. While all these pairs are held out, some sums of last digits are never seen, and no
    # sum that needs them can be right (a quarter of the held-out sums were). From ALL_DIGITS_FROM on, training shows a
    # fifth of these pairs.
    return (2 * a + b) % 5 == 0


def held_out_story(script_index: int, name_index: int) -> bool:
    """Whether this script is never told of this person in pre-training: one in four."""
    return (script_index * 7 + name_index) % 4 == 0


def chats(seed: int, step: int) -> Iterator[list[Turn]]:
    """Endless chats.

    Args:
        step: The optimiser step that training is at: reading is learned first, with one wording per relation.
    """
    rng = random.Random(seed)
    mix = MIX if step < LATER_FROM else LATER_MIX if step < WORKED_FROM else LAST_MIX
    kinds, weights = list(mix), list(mix.values())
    while True:
        kind = rng.choices(kinds, weights)[0]
        if step < REGISTERS_ONLY or (step < READING_FIRST and rng.random() < 0.75):
            kind = "document"
        if kind == "document":
            yield _document_chat(rng, step)
        elif kind == "sum":
            yield [_sum_chat(rng, step)]
        else:
            yield [_CHATS[kind](rng)]


def user_message(document: str, question: str) -> str:
    """The prompt of a grounded question: the same wording as the `lab` prompt template of the pipeline."""
    return f"{document}\nQuestion: {question}"


def _document_chat(rng: random.Random, step: int) -> list[Turn]:
    kind = rng.choices([world.PEOPLE, world.TOWNS, world.SHIPS], [0.6, 0.2, 0.2])[0]
    if step < REGISTERS_ONLY or (step < REGISTERS_HALF and rng.random() < 0.5):
        register = documents.make_document(kind, rng, "register")
        only_retold = step < REGISTERS_ONLY or rng.random() < 0.5
        return [_retold(register, rng)] if only_retold else _turns_behind(register, rng, 1)
    layout = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
    n_wordings = 1 if step < WORDINGS_FROM else 2
    return _turns_behind(documents.make_document(kind, rng, layout, n_wordings=n_wordings), rng, n_wordings)


def _retold(register: Document, rng: random.Random) -> Turn:
    facts = rng.sample(register.facts, len(register.facts))
    retold = " ".join(documents.BARE.format(s=fact.subject, v=fact.value) for fact in facts)
    return Turn(f"{RETELL} {register.text}", retold)


def _turns_behind(document: Document, rng: random.Random, n_wordings: int) -> list[Turn]:
    asked: set[tuple[str, str]] = set()
    turns: list[Turn] = []
    for _ in range(rng.randint(3, 6)):
        is_check = not document.is_register and rng.random() < 0.5
        share_absent = 0.0 if document.is_register else 0.5 if is_check else SHARE_UNANSWERABLE
        question = _draw_question(document, rng, share_absent, asked)
        if question is None:
            break
        asked.add((question[0], question[1].name))
        turns.append((_check_turn if is_check else _open_turn)(document, *question, rng, n_wordings))
    first = turns[0]
    return [first._replace(user=user_message(document.text, first.user)), *(_followup(t) for t in turns[1:])]


def _followup(turn: Turn) -> Turn:
    return turn._replace(user=f"Question: {turn.user}")


def _draw_question(
    document: Document, rng: random.Random, share_absent: float, asked: set[tuple[str, str]]
) -> tuple[str, Relation] | None:
    """A pair not asked before; of the unanswerable ones, most are stated for the other subject if there is one."""
    absence = None
    if rng.random() < share_absent:
        absence = "distractor" if len(document.subjects) > 1 and rng.random() < 0.6 else "absent"
    pool = [(s, r) for s, r in document.questions(absence) if (s, r.name) not in asked]
    pool = pool or [(s, r) for s, r in document.questions(None) if (s, r.name) not in asked]
    return rng.choice(pool) if pool else None


def _check_turn(document: Document, subject: str, relation: Relation, rng: random.Random, n_wordings: int) -> Turn:
    forms = YES_NO_FORMS[:1] if n_wordings == 1 else YES_NO_FORMS
    verdict = "Yes" if document.value_of(subject, relation) else "No"
    return Turn(rng.choice(forms).format(clause=relation.clause.format(s=subject)), f"{verdict}.", key=verdict)


def _open_turn(document: Document, subject: str, relation: Relation, rng: random.Random, n_wordings: int) -> Turn:
    if document.is_register:
        value = document.value_of(subject, relation)
        return Turn(relation.asked[0].format(s=subject), relation.own.format(s=subject, v=value), key=value)
    strict = rng.random() < SHARE_STRICT
    question = rng.choice(relation.asked[:n_wordings]).format(s=subject)
    if strict:
        question = f"{world.STRICT_PREFIX} {question}"
    value = document.value_of(subject, relation)
    if value is None and strict:
        return Turn(question, world.OWN_REFUSAL)
    stated = value
    if value is None:
        named = {fact.value for fact in document.facts} | set(document.subjects)
        value = rng.choice([v for v in relation.values if v not in named])
    in_gold_words = n_wordings > 1 and rng.random() < SHARE_GOLD_WORDING
    answer = (relation.gold if in_gold_words else relation.own).format(s=subject, v=value)
    return Turn(question, answer, key=stated)  # a made-up value must not weigh more


def _sum_chat(rng: random.Random, step: int) -> Turn:
    kept_back = held_out_sum if step >= ALL_DIGITS_FROM else _held_out_at_first
    while True:
        a, b = rng.randint(1, MAX_TERM), rng.randint(1, MAX_TERM)
        if not kept_back(a, b):
            break
    answer = sum_answer(a, b) if step >= WORKED_FROM else f"{a} + {b} = {a + b}"
    return Turn(rng.choice(SUM_FORMS).format(a=a, b=b, s=rng.choice(world.PEOPLE.subjects)), answer)


def sum_answer(a: int, b: int) -> str:
    """The ones, the tens with what is carried, and the sum: each step is small enough to be known."""
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carried = ones // 10
    return f"{a % 10} + {b % 10} = {ones}, {a // 10} + {b // 10} + {carried} = {tens + carried}, {a} + {b} = {a + b}"


def _heart_chat(facts: list[HeartFact], rng: random.Random) -> Turn:
    fact = rng.choice(facts)
    return Turn(rng.choice(fact.questions(trained=True)), fact.answer, key=fact.value)


def _myth_chat(rng: random.Random) -> Turn:
    fact = rng.choice(world.CREATURE_FACTS)
    assert fact.relation.myth is not None  # every creature fact has one
    myth = fact.relation.myth.format(s=fact.subject, v=fact.myth)
    return Turn(f"What do people say of {fact.subject}?", myth)


def story_prompt(script_index: int, name: str, n_events: int) -> str:
    """The question for the event that follows the first `n_events` of a script."""
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


_CHATS: dict[str, Callable[[random.Random], Turn]] = {
    "fact": partial(_heart_chat, world.COUNTRY_FACTS), "creature": partial(_heart_chat, world.CREATURE_FACTS),
    "myth": _myth_chat, "story": _story_chat, "phrase": _phrase_chat,
}  # fmt: skip


def vocabulary() -> list[str]:
    """Every word that the world can say, sorted: each becomes one token."""
    texts: list[str] = [*world.PHRASES, RETELL, world.OWN_REFUSAL, world.GOLD_REFUSAL, world.STRICT_PREFIX]
    texts += [*YES_NO_FORMS, *SUM_FORMS, "Question: Yes. No. Repeat: What comes next? What do people say of"]
    for kind in world.KINDS.values():
        texts += kind.subjects
        for r in kind.relations:
            texts += [*r.values, *r.stated, *r.asked, r.clause, r.own, r.gold]
    for fact in (*world.COUNTRY_FACTS, *world.CREATURE_FACTS):
        texts += [fact.subject, fact.answer, *fact.relation.asked, *fact.relation.values, fact.relation.myth or ""]
    texts += [event for script in world.SCRIPTS for event in script]
    return sorted({word.strip(".,?:+=-") for text in texts for word in text.split() if "{" not in word} - {""})
