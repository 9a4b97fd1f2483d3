"""The number that an answer gives, as an exact fraction.

An answer may say which of its numbers is meant: behind `####` (GSM8K's form), in `\\boxed{}`, or behind "the answer
is". Else the last one counts. What is not surely one number (a ratio, a time, a date, 1.000.000) is none: two answers
that differ must never become equal by their last piece.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_FRACTION_SIGNS = "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_AS_ASCII = str.maketrans(
    dict.fromkeys("‐‑‒–—−﹣－", "-") | dict.fromkeys("\u00a0\u202f\u2009\u2007", " ") | {"⁄": "/", "’": "'", "：": ":"}
    | {sign: unicodedata.normalize("NFKC", sign).replace("⁄", "/") for sign in _FRACTION_SIGNS}
)  # fmt: skip
_SUPERSCRIPT = re.compile("[⁻⁰¹²³⁴-⁹]+")
_DIGIT_BEFORE_FRACTION = re.compile(rf"(?<=\d)(?=[{_FRACTION_SIGNS}])")
_LATEX = (  # what LaTeX writes, and how it is written plainly
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" \1/\2 "),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:left|right|displaystyle|!|,|;|quad)"), ""),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\(?:times|cdot)"), "×"),
)
_NUMBER = re.compile(
    r"""
    (?<![\w^])(?<!\d[.,:/'])(?<![A-Za-z]\+)  # no piece of a word (CO2, U+2011), an exponent (cm^2), a ratio or a date
    (?P<minus>(?<![\w)] )-|(?<=[=:] )-[ ]?|(?<=[=:])-[ ]?)?
    [$€£¥]?[ ]?(?P<late_minus>-)?
    (?:(?P<whole>\d+)[ ](?=\d+/\d))?     # the 1 of "1 1/2"
    (?P<digits>[1-9]\d{0,2}(?:(?P<mark>[ '_])\d{3})(?:(?P=mark)\d{3})*(?![\d])(?:\.\d+)?|\d+(?:[.,]\d+)*|\.\d+)
    (?:(?:[eE]|\s*[x×*·]\s*10\s*(?:\^|\*\*)\s*\{?)(?P<power>[+-]?\d+)\}?
      |(?:\s?\^\s?\{?|\s\*\*\s|\*\*)(?P<exponent>-?\d+)\}?)?  # no power in "**18** 5"
    (?:[ ]?/[ ]?(?P<below>\d+(?:[.,]\d+)*))?
    (?P<scale>[ -](?:thousand|million|billion|trillion)\b)?
    (?P<rest>(?:\s?:\s?\d|[-/.]\d|'\d|,\d)[\d:/.,'-]*)?      # it goes on: 5:2, 9:30, 2024-01-05, 1.2.3
    """,
    re.VERBOSE | re.IGNORECASE,
)  # fmt: skip
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WELL_FORMED = re.compile(r"(?:\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?")
_LONGEST_POWER = 3  # digits: 1e999999999 would fill the memory
# Where a model runs on with a question of its own, its answer has ended.
_NEXT_QUESTION = re.compile(r"\n\s*(?:question|problem|q|user|human)\s*\d*\s*:", re.IGNORECASE)
_MARKED = re.compile(r"(?P<before>\S?)[ \t]*####[ \t]*(?P<said>[^\n#]*)")
_HEADING = re.compile(r"[-+$€£ ]*\d+[.):]\s+[A-Za-z*]|[^\d]*[A-Za-z]")
_STATED = re.compile(
    r"\banswer\b(?:(?:\s+(?:to|for|of)\b[^.:\n]{0,80}?)?\s+(?:is|was|equals|would be|will be|must be)\b:?|\s*[:=])"
    r"(?=(?P<said>[^\n]*))",
    re.IGNORECASE,
)


def final_number(text: str) -> Fraction | None:
    """The number that an answer gives.

    Read are thousands marks (1,234; 12 000; 1'234; 1_000), decimals, fractions (1/2, 1 1/2, 1½, LaTeX's), powers (10^6,
    1.5e3, 1.5 × 10^3) and scales (1.5 million). Currency and units do not count.

    Returns:
        None without a number, or where what stands in its place is not surely one: 3/0, 5:2, 9:30, 1,5, 1.000.000.
    """
    plain = _plain(text)
    if ended := _NEXT_QUESTION.search(plain, 1):
        plain = plain[: ended.start()]
    for said in (_marked(plain), _boxed(plain), _stated(plain)):
        if said is not None:
            return _first(said)
    found = list(_NUMBER.finditer(plain))
    return _value(found[-1]) if found else None


def _plain(text: str) -> str:
    """With plain minus signs, fractions and LaTeX written out, and no emphasis."""
    text = _SUPERSCRIPT.sub(lambda power: "^" + unicodedata.normalize("NFKC", power[0]), text)
    text = _DIGIT_BEFORE_FRACTION.sub(" ", text).translate(_AS_ASCII)
    for pattern, written in _LATEX:
        text = pattern.sub(written, text)
    return re.sub(r"(?<![\d\s])\*\*|\*\*(?![\d\s])|__", "", re.sub(r"\.{2,}", "… ", text))


def _marked(text: str) -> str | None:
    """What stands behind the first `####` that is not a heading."""
    for found in _MARKED.finditer(text):
        if found["before"] or (found["said"].strip() and not _HEADING.match(found["said"])):
            return found["said"]
    return None


def _boxed(text: str) -> str | None:
    place = text.rfind("\\boxed{")
    if place < 0:
        return None
    depth, start = 0, place + len("\\boxed")
    for i, sign in enumerate(text[start:], start):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return text[start + 1 : i]
    return text[start + 1 :]


def _stated(text: str) -> str | None:
    """What stands behind the last "answer is" or "Answer:", if there is a number."""
    found = [match["said"] for match in _STATED.finditer(text) if _NUMBER.search(match["said"])]
    return found[-1] if found else None


def _first(said: str) -> Fraction | None:
    """The number of a statement: of an equation, its right side."""
    said = re.sub(r"^(\W*)-\s+(?=[\d$.])", r"\1-", said)
    number = _NUMBER.search(said)
    equation = re.match(r"[^A-Za-z=]*(?:[A-Za-z]\s*)?=", said)
    if equation:
        number = _NUMBER.search(said, said.rindex("=") + 1 if "=" in said else 0) or number
    return _value(number) if number else None


def _value(number: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`."""
    if number["rest"]:
        return None
    above, below, whole = (_digits(number[part] or "") for part in ("digits", "below", "whole"))
    power, exponent = number["power"] or "0", number["exponent"] or "1"
    if above is None or max(len(power.lstrip("+-")), len(exponent.lstrip("-"))) > _LONGEST_POWER:
        return None
    if number["exponent"]:
        if above > 10**6 or abs(int(exponent)) > 100 or not above:
            return None
        above = above ** int(exponent)
    value = above * Fraction(10) ** int(power)
    if number["scale"]:
        value *= 10 ** _SCALES[number["scale"][1:].lower()]
    if number["below"]:
        if not below:
            return None
        value /= below
    if number["whole"]:
        if whole is None or value >= 1:  # "room 12 7/2"
            return None
        value += whole
    return -value if number["minus"] or number["late_minus"] else value


def _digits(written: str) -> Fraction | None:
    grouped = re.sub(r"(?<=\d)[ '_](?=\d)", "", written)
    if not _WELL_FORMED.fullmatch(grouped):
        return None
    try:
        return Fraction(grouped.replace(",", "") or "0")
    except ValueError:  # more digits than Python reads
        return None
