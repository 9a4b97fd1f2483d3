"""Neutralises untrusted text in a judge's prompt, so that it stays data whatever it says.

The text stays readable. Only what could pass for a delimiter of the prompt, for a token of a chat template or for a
verdict is written differently. Rules read the original text.

Not covered: persuasion in plain words ("I am certainly right"). A rubric can only ask the judge to ignore it, and the
audit shows how well the judge does.
"""

from __future__ import annotations

import re
import unicodedata

# A model reads a word the same with an invisible character in it, but the patterns below do not match it.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_WIDE = str.maketrans("＜＞［］｜：＿", "<>[]|:_")
_FENCES = "document|dialogue|question|golds?|candidate|answer|verdict|rubric|reasoning|system|user|assistant"
_TAG = re.compile(
    rf"<{{1,2}}\s*[/|]?\s*[A-Za-z_/|][^<>\n]{{0,80}}>{{1,2}}|<\s*/?\s*(?:{_FENCES})\b|<\||\|>", re.IGNORECASE
)
_BRACKETS = re.compile(r"\[(/?[A-Z][A-Z_]{2,})\]")  # [INST], [/INST], [SYSTEM_PROMPT]
_LABEL = re.compile(
    r"^([ \t>*#_\"'`-]*)(document|question|gold(?: answers?)?|candidate(?: answer)?|answer|is the answer right)"
    r"([*_\"'` \t]*)[:?]",
    re.IGNORECASE | re.MULTILINE,
)
_ROLE = re.compile(r"^([ \t>*#_-]*)(system|user|assistant|human)([*_ \t]*):", re.IGNORECASE | re.MULTILINE)
_VERDICT = re.compile(r"\b(verdict|judge?ment|decision)([*_\"'` \t]*)[:=]", re.IGNORECASE)


def neutral(text: str) -> str:
    """The text without delimiters of the prompt around it or of a chat template.

    Angle brackets of tags become ‹ ›, the brackets of tokens such as [INST] become round, and the colon after a label
    such as "Answer:" becomes a comma. Everything else stays as it is.
    """
    text = _LINE_ENDS.sub("\n", _INVISIBLE.sub("", text)).translate(_WIDE)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    text = _TAG.sub(lambda found: found[0].replace("<", "‹").replace(">", "›").replace("|", "¦"), text)
    text = _BRACKETS.sub(r"(\1)", text)
    text = _LABEL.sub(r"\1\2\3,", text)
    text = _ROLE.sub(r"\1\2\3,", text)
    return _VERDICT.sub(r"\1\2,", text)
