"""The words of an open answer, for comparing it with a gold answer.

The SQuAD normaliser (lower case, no punctuation, no articles), where that cannot change what is said: a sign, a decimal
point, a unit and an operator stay, so that 5 is not -5, 15 not 1.5, 50 % not $50, and C++ not C. How a text is encoded
makes no difference: composed or decomposed letters, typographic quotes, zero-width characters. Scripts that put no
spaces between words are compared character by character.
"""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = frozenset(("a", "an", "the"))
_PLAIN_SIGNS = str.maketrans(dict.fromkeys("‐‑‒–—−﹣－", "-") | dict.fromkeys("’‘ʼ′´`", "'") | {"×": "*", "÷": "/"})
_FORMATTING = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")  # zero-width
# Thai, Lao, Burmese, Khmer, kana, Han: no spaces between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(
    rf"""
      [{_UNSPACED}]
    | [^\W\d_{_UNSPACED}](?:[-.'&]?[^\W_{_UNSPACED}])*(?:\+\+|\#)?              # a word; C++ and C# are not C
    | (?<![\w)])[-+]?(?:\d|(?=\.\d))(?:[.,:/-]?\d)*(?:(?:st|nd|rd|th|s)\b)?   # a number, a time, a date, with its sign
    | \d+
    | [$¢£¥%‰°<>=±\u20a0-\u20cf\u2190-\u22ff]                                      # what stands beside a number
    | (?<=\d)\s*[-+*/^]\s*(?=[\d(])                                              # an operator between numbers
    """,
    re.VERBOSE,
)  # fmt: skip
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_INSIDE_A_WORD = re.compile(r"(?<=[^\W\d])[-.'&]|[-.'&](?=[^\W\d])")


def normalised_words(text: str) -> list[str]:
    """The words that count, in order: in lower case, without articles and without punctuation that says nothing."""
    if not text.isascii():
        text = _FORMATTING.sub("", unicodedata.normalize("NFKC", text)).translate(_PLAIN_SIGNS)
    found = _WORD.findall(_THOUSANDS.sub("", text.casefold()))
    words = (word.strip() if word.isalnum() else _INSIDE_A_WORD.sub("", word).strip() for word in found)
    return [word for word in words if word not in _ARTICLES]


def normalise(text: str) -> str:
    """`normalised_words`, joined by single spaces."""
    return " ".join(normalised_words(text))
