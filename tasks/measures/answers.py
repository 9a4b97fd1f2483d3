"""Reading answers: normalising, abstentions, token recall, final numbers, choice letters.

The judge and the metrics use the same definitions, so that acceptance for training and scores agree.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Words that may deny a gold answer next to them ("not in Oslo but in Rome", "Rome rather than Oslo"), normalised.
_NEGATIONS = frozenset(
    "no not nor neither never none nobody nothing nowhere cannot without unlike except instead rather false wrong "
    "incorrect untrue isnt arent wasnt werent dont doesnt didnt hasnt havent hadnt cant couldnt wont wouldnt shouldnt "
    "mustnt aint".split()
)
_FRACTION_SIGNS = "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_AS_ASCII = str.maketrans(
    {"−": "-", "–": "-", "⁄": "/"}  # the minus sign, the en dash, the fraction slash
    | {sign: unicodedata.normalize("NFKC", sign).replace("⁄", "/") for sign in _FRACTION_SIGNS}
)
_DIGIT_BEFORE_FRACTION = re.compile(rf"(?<=\d)(?=[{_FRACTION_SIGNS}])")
_NUMBER = re.compile(
    r"""
    (?P<minus>(?<![\w)])-)?             # behind a word or a digit it joins: "pages 5-7", "COVID-19"
    \$?
    (?:(?P<whole>\d+)[ ](?=\d+/\d))?    # the 1 of "1 1/2"
    (?P<digits>(?:\d|(?<![\w.])\.\d)\d*(?:[.,]\d+)*)
    (?:(?:[eE]|\s*(?:[x×*·]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?)(?P<power>[+-]?\d+))?
    (?:\s*/\s*(?P<below>\d+(?:[.,]\d+)*))?
    """,
    re.VERBOSE,
)
_WELL_FORMED = re.compile(r"(?:\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?")
_LONGEST_POWER = len("-999")  # 1e999999999 would fill the memory
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


def denies(output: str, gold: str) -> bool:
    """Whether an output that holds the gold's words may say the opposite, because its other words include a negation.

    A gold of negations alone ("no", "never") always counts as denied, because "no doubt: yes" holds it, too. English
    only.
    """
    words = Counter(normalised_words(_plain(gold)))
    beside = Counter(normalised_words(_plain(output))) - words
    return _NEGATIONS.issuperset(words) or not _NEGATIONS.isdisjoint(beside)


def final_number(text: str) -> Fraction | None:
    """The number an answer ends on: the first after the last `####` if there is one, else the last in the text.

    Thousands commas, a dollar sign, decimals (.5), fractions (1/2, 1 1/2, 1½) and powers of ten (1.5e3, 1.5 × 10^3)
    are read. None where there is no number, or none that can be read in one way only: 3/0, 1.000.000, 1,5.
    """
    _, marker, tail = text.rpartition("####")
    plain = _DIGIT_BEFORE_FRACTION.sub(" ", tail if marker else text).translate(_AS_ASCII)
    found = list(_NUMBER.finditer(plain))
    if not found:
        return None
    return _value(found[0] if marker else found[-1])


def _value(number: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`."""
    above, below, whole = (_plain_value(number[part] or "") for part in ("digits", "below", "whole"))
    power = number["power"] or "0"
    if above is None or len(power) > _LONGEST_POWER:
        return None
    value = above * Fraction(10) ** int(power)
    if number["below"]:
        if not below:
            return None
        value /= below
    if number["whole"]:
        if whole is None or value >= 1:  # "room 12 7/2"
            return None
        value += whole
    return -value if number["minus"] else value


def _plain_value(digits: str) -> Fraction | None:
    if not _WELL_FORMED.fullmatch(digits):
        return None
    try:
        return Fraction(digits.replace(",", ""))
    except ValueError:  # more digits than Python reads
        return None


def choice_letter(text: str) -> str | None:
    """The last free-standing capital letter, e.g. B in "The answer is (B)."; None without one.

    "A" and "I" are also words: "I" counts only where there is no other letter, "A" only beside "I".
    """
    letters: list[str] = _LETTER.findall(text)
    marked = [letter for letter in letters if letter not in "AI"] or [x for x in letters if x != "I"] or letters
    return marked[-1] if marked else None


def gold_letter(gold: str) -> str | None:
    """The letter that a gold answer begins with, as in "C", "(C)" or "C. Vitamin D"; else `choice_letter`."""
    marked = _LEADING_LETTER.match(gold)
    return marked.group(1) if marked else choice_letter(gold)
