"""Comparing an answer with a gold answer: token recall, containment, denial.

The judge and the metrics use the same definitions, so that acceptance for training and scores agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tasks.measures.words import normalise, normalised_words

# Words that may deny a gold answer next to them ("not in Oslo but in Rome", "Rome rather than Oslo"), normalised.
_NEGATIONS = frozenset(
    "no not nor neither never none nobody nothing nowhere cannot without unlike except instead rather false wrong "
    "incorrect untrue isnt arent wasnt werent dont doesnt didnt hasnt havent hadnt cant couldnt wont wouldnt shouldnt "
    "mustnt aint".split()
)


def token_recall(output: str, golds: Sequence[str]) -> float:
    """Share of the gold's words that the output holds, each counted as often as it occurs; the best of the golds.

    A gold without a word counts 0.
    """
    found = Counter(normalised_words(output))
    best = 0.0
    for gold in golds:
        wanted = Counter(normalised_words(gold))
        if total := wanted.total():
            best = max(best, (wanted & found).total() / total)
    return best


def contains(output: str, text: str, *, apart_from: Sequence[str] = ()) -> bool:
    """Whether the words of `text` stand in `output` in a row. Never true of a text without words.

    Args:
        apart_from: Where `text` is a part of one of these, it does not count: New York in "New York City".
    """
    wanted, found = f" {normalise(text)} ", f" {normalise(output)} "
    for whole in (f" {normalise(one)} " for one in apart_from):
        if wanted in whole:
            found = found.replace(whole, " | ")
    return bool(wanted.strip()) and wanted in found


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")


def denies(output: str, gold: str) -> bool:
    """Whether an output that holds the gold's words may say the opposite, because its other words include a negation.

    A gold of negations alone ("no", "never") always counts as denied, because "no doubt: yes" holds it, too. English
    only.
    """
    words = Counter(normalised_words(_plain(gold)))
    beside = Counter(normalised_words(_plain(output))) - words
    return _NEGATIONS.issuperset(words) or not _NEGATIONS.isdisjoint(beside)
