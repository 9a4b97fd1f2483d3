"""Reading answers: normalising, abstentions, token recall, final numbers, choice letters.

The judge and the metrics use the same definitions, so that acceptance for training and scores agree.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Words that may deny a gold answer next to them ("not in Oslo but in Rome", "Rome rather than Oslo"), normalised.
_NEGATIONS = frozenset(
    "no not nor neither never none nobody nothing nowhere cannot without unlike except instead rather false wrong "
    "incorrect untrue isnt arent wasnt werent dont doesnt didnt hasnt havent hadnt cant couldnt wont wouldnt shouldnt "
    "mustnt aint".split()
)


def normalised_words(text: str) -> list[str]:
    """Lower case, without ASCII punctuation and the articles, split at white space (the SQuAD normaliser)."""
    return [word for word in text.lower().translate(_PUNCTUATION).split() if word not in _ARTICLES]


def normalise(text: str) -> str:
    """`normalised_words`, joined by single spaces."""
    return " ".join(normalised_words(text))


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


def contains(output: str, text: str) -> bool:
    """Whether the words of `text` stand in `output` in a row. Never true of a text without words."""
    wanted = normalise(text)
    return bool(wanted) and f" {wanted} " in f" {normalise(output)} "


def abstains(output: str, phrases: Iterable[str]) -> bool:
    """Whether the output says that it cannot answer: it holds one of the phrases."""
    lowered = _plain(output)
    return any(_plain(phrase) in lowered for phrase in phrases)


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
