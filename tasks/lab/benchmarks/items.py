"""Items of the lab's four benchmarks, built from the world: lm-evaluation-harness calls these functions.

    lab_facts           closed-book facts, as MMLU asks them, answered freely (scored by the entity)
    lab_sums            word sums of number pairs kept out of pre-training, as GSM8K (scored by the last number)
    lab_stories         the event that comes next, among four, by likelihood, as HellaSwag
    lab_misconceptions  what is true where people say something else, as TruthfulQA (scored by the entity)

Questions use wordings that pre-training never used for that fact. Items of the `dev` split never stand in `test`.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

# The harness loads this file by its path, so that the project need not be importable by name.
sys.path.insert(0, str(Path(__file__).parents[3]))

from tasks.lab import corpus, world

N_ITEMS = 600
SEED = 70_001
Splits = dict[str, Dataset]


def _split(rows: list[dict[str, Any]]) -> Splits:  # Any: JSON values
    """Shuffle the rows in place; the first fifth is dev, at most N_ITEMS of the others are test."""
    random.Random(SEED).shuffle(rows)
    n_dev = len(rows) // 5
    return {"dev": Dataset.from_list(rows[:n_dev]), "test": Dataset.from_list(rows[n_dev : n_dev + N_ITEMS])}


def _heart_rows(facts: list[world.HeartFact]) -> list[dict[str, Any]]:  # Any: JSON values
    rows = []
    for fact in facts:
        for question in fact.questions(trained=False):
            rows.append({"question": question, "answer": fact.value, "cluster": f"{fact.subject}-{fact.relation.name}"})
    return rows


def facts(**kwargs: Any) -> Splits:
    """Items of lab_facts by split, as the harness calls it."""
    return _split(_heart_rows(world.COUNTRY_FACTS))


def misconceptions(**kwargs: Any) -> Splits:
    """Items of lab_misconceptions by split."""
    return _split(_heart_rows(world.CREATURE_FACTS))


def sums(**kwargs: Any) -> Splits:
    """Items of lab_sums by split."""
    rng = random.Random(SEED)
    rows = []
    for a, b in rng.sample(corpus.held_out_sums(), N_ITEMS * 5 // 4):
        name = rng.choice(world.PEOPLE.subjects)
        rows.append({"question": rng.choice(corpus.SUM_FORMS).format(a=a, b=b, s=name), "answer": str(a + b)})
    return _split(rows)


def stories(**kwargs: Any) -> Splits:
    """Items of lab_stories by split."""
    rng = random.Random(SEED)
    held_out = [
        (script, person)
        for script in range(len(world.SCRIPTS))
        for person in range(len(world.PEOPLE.subjects))
        if corpus.held_out_story(script, person)
    ]
    return _split([_story(script, person, rng) for script, person in rng.sample(held_out, N_ITEMS * 5 // 4)])


def _story(script: int, person: int, rng: random.Random) -> dict[str, Any]:  # Any: JSON values
    """An item. Its wrong endings are another event of the same script, and one event of each of two other scripts."""
    name = world.PEOPLE.subjects[person]
    n_events = rng.randint(1, 3)
    events = world.SCRIPTS[script]
    same = rng.choice([event for i, event in enumerate(events) if i != n_events])
    others = rng.sample([s for i, s in enumerate(world.SCRIPTS) if i != script], 2)
    endings = [events[n_events], same, *(other[n_events] for other in others)]
    order = rng.sample(range(4), 4)
    return {
        "question": corpus.story_prompt(script, name, n_events),
        "choices": [endings[i].format(s=name) for i in order],
        "label": order.index(0),
        "cluster": f"script-{script}",
    }


def entity_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the entity stands in the answer as a word: harmless rewording is not a loss."""
    return {"exact_match": float(doc["answer"] in _words(results[0]))}


def number_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the last number of the answer is right."""
    numbers = [word for word in _words(results[0]) if word.isdigit()]
    return {"exact_match": float(bool(numbers) and numbers[-1] == doc["answer"])}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
