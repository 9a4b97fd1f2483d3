"""Task metrics, one score per item. Definitions: REFERENCES of the project (SSR, arXiv 2409.04787, and SQuAD).

Every metric says which items it is defined on; an item without an output has no score and a reason, never a 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tasks.measures.answers import abstains, choice_letter, final_number, gold_letter, normalise, token_recall


class Answered(NamedTuple):
    """A test item and what the model said."""

    task: str
    golds: list[str]
    answerable: bool | None
    output: str


def item_scores(item: Answered, abstentions: Sequence[str]) -> dict[str, float]:
    """Every metric that is defined on this item, by name.

    modified_recall: answerable -> token recall, 0 if it abstains; unanswerable -> 1 if it abstains, else 0.
    over_refusal: on answerable items, 1 if it abstains (lower is better).
    abstention_precision: on items where it abstains, 1 if there is no answer.
    abstention_recall: on unanswerable items, 1 if it abstains.
    """
    if item.answerable is None:
        return {"exact_match": _exact(item), "token_recall": token_recall(item.output, item.golds)}
    refuses = abstains(item.output, abstentions)
    scores = {"answerability_accuracy": float(refuses != item.answerable)}
    if refuses:
        scores["abstention_precision"] = float(not item.answerable)
    if not item.answerable:
        return scores | {"abstention_recall": float(refuses), "modified_recall": float(refuses)}
    recall = 0.0 if refuses else token_recall(item.output, item.golds)
    return scores | {"over_refusal": float(refuses), "token_recall": recall, "modified_recall": recall}


def _exact(item: Answered) -> float:
    if item.task == "number":
        found = final_number(item.output)
        return float(found is not None and found in {final_number(gold) for gold in item.golds})
    if item.task == "multiple_choice":
        found_letter = choice_letter(item.output)
        return float(found_letter is not None and found_letter in {gold_letter(gold) for gold in item.golds})
    # A gold without a word, such as "A", must not make an empty answer right.
    said = normalise(item.output)
    return float(bool(said) and said in {normalise(gold) for gold in item.golds})
