"""Reading answers: normalising, abstentions, token recall, final numbers, choice letters.

One definition for the judge and for the metrics, so that what is accepted for training and what is scored agree.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A hyphen behind a word or a digit joins ("pages 5-7", "COVID-19"): it is no minus.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")
_LEADING_LETTER = re.compile(r"\s*\(?([A-Z])(?:[).:]|\s*$)")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z'])")


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


def final_number(text: str) -> Fraction | None:
    """The number an answer ends on: the first after the last `####` if there is one, else the last in the text.

    Thousands commas, a dollar sign, decimals and simple fractions are read; None without a number.
    """
    _, marker, tail = text.rpartition("####")
    found = _NUMBER.findall(tail if marker else text)
    if not found:
        return None
    return _fraction(found[0] if marker else found[-1])


def _fraction(number: str) -> Fraction | None:
    plain = re.sub(r"[,$\s]", "", number)
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def choice_letter(text: str) -> str | None:
    """The last free-standing capital letter, e.g. B in "The answer is (B)."; None without one.

    "A" and "I" are words of a sentence, too: "I" counts only where nothing else does, "A" only before "I".
    """
    letters: list[str] = _LETTER.findall(text)
    marked = [letter for letter in letters if letter not in "AI"] or [x for x in letters if x != "I"] or letters
    return marked[-1] if marked else None


def gold_letter(gold: str) -> str | None:
    """The letter that a gold answer begins with, as in "C", "(C)" or "C. Vitamin D"; else `choice_letter`."""
    marked = _LEADING_LETTER.match(gold)
    return marked.group(1) if marked else choice_letter(gold)
