"""The letter of a choice: one reader for gold labels and for what a model says.

Read, in this order: the letter behind the last "answer is" or "ANSWER:"; the label that a single line begins with
("C. Vitamin D"); a letter that is said to be right; one in a box, in bold or in brackets; one at the beginning; one
behind a word that chooses ("it must be B"). A letter anywhere else is none: "Vitamin D" names no choice.
"""

from __future__ import annotations

import re

# A capital letter. A small one counts only where nothing follows that makes it a word: "the answer is a dog" has none.
# "I" before a word in small letters is a word of the sentence, too.
_LETTER = r"(?P<letter>(?!I['’ ]+[a-z])[A-Z](?![\w'’])|[a-z](?=[)\]}.,:;*\"”$]|\s*$)(?!\.[a-z]))"
_OPENING = r"[\s(\[{\"'“*_$:]*(?:\\(?:boxed|text|textbf|mathrm)\s*\{\s*)*(?:\(|\[)?"
_STATED = re.compile(
    r"(?i:\b(?:answer|(?:correct|right|best)[ ](?:option|choice|letter|one|statement))"
    r"(?:\s+(?:to|for|of|here)\b[^.:\n]{0,80}?)?[\s*_]*(?:is|was|would[ ]be|will[ ]be|must[ ]be|should[ ]be|:|=)"
    r"(?:[\s*_:]+(?:option|choice|letter|clearly|thus|therefore|indeed)\b)?)" + _OPENING + _LETTER
)
_LABEL = re.compile(r"^\s*[(\[\"'“*]*(?P<letter>[A-Za-z])[*\"”]*[)\].:][*)\]]*(?=\s|$)", re.MULTILINE)
_SAID_TO_BE_RIGHT = re.compile(
    r"(?i:\b(?:option|choice|statement|letter)?)[\s(*]*(?P<letter>[A-Z])[)*.]*\s+"
    r"(?i:is[ ](?:the[ ])?(?:correct|right|best|true)\b)"
)
_MARKED = re.compile(
    r"""
      \\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm)\s*\{\s*)?\(?(?P<boxed>[A-Za-z])\)?\s*\}
    | \*\*\(?(?P<bold>[A-Za-z])[).:]*\*\*
    | \*\*\(?(?P<bold_label>[A-Z])[).:]\s
    | (?<!\w)\((?P<round>[A-Za-z])\)            # not the s of "parent(s)"
    | \[(?P<square>[A-Za-z])\]
    """,
    re.VERBOSE,
)
_LEADING = re.compile(
    r"""
    \s*[(\[\"'“*]*
    (?: (?P<capital>[A-Z])(?:[)\].:,*\"”]|\s*$|\s+(?=[A-Z(])|(?<![AI])\s)
      | (?P<small>[a-z])(?:[)\].:]+(?!\w)|\s*$))
    """,
    re.VERBOSE,
)
_CHOSEN = re.compile(
    r"(?i:\b(?:option|choice|letter|choose|chose|pick|select|selected|is|be|it's|so|therefore|thus|hence|then|of|with|:"
    r"|say))[\s(\[\"'“*:]+(?P<letter>(?![AI]['’ ]+[a-z])[A-Z])(?![\w'’])(?!\.\s?[A-Z])"
)


def choice_letter(text: str) -> str | None:
    """The letter that an answer or a gold label names, as a capital; None where it names none.

    Of several statements the last one counts: a model that corrects itself means what it says last.
    """
    if stated := list(_STATED.finditer(text)):
        return _letter_of(stated[-1])
    labels = list(_LABEL.finditer(text))
    if len(labels) == 1 and not text[: labels[0].start()].strip():
        return _letter_of(labels[0])  # several labels are a walk through the choices
    if right := list(_SAID_TO_BE_RIGHT.finditer(text)):
        return _letter_of(right[-1])
    marked = list(_MARKED.finditer(text))
    if marked and (marked[-1]["boxed"] or len({_letter_of(match) for match in marked}) == 1):
        return _letter_of(marked[-1])
    if len(labels) < 2 and (leading := _LEADING.match(text)):
        return _letter_of(leading)
    chosen = list(_CHOSEN.finditer(text))
    return _letter_of(chosen[-1]) if chosen else None


def _letter_of(match: re.Match[str]) -> str:
    return next(letter for letter in match.groups() if letter).upper()
