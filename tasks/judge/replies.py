"""A judge's reply as it is stored, and the opinion parsed from it.

The raw text of a reply is kept, so a better parser needs no new reply. A reply without a clear verdict gives no
opinion: it never counts as a rejection or as 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from tasks.engines import Reply
from tasks.judge.rules import ACCEPT, REJECT

CHOICES = (ACCEPT, REJECT)
STORED = pa.schema([
    ("row_key", pa.string()), ("text", pa.string()), ("accept_logprob", pa.float64()), ("reject_logprob", pa.float64()),
    ("finish_reason", pa.string()), ("n_prompt_tokens", pa.int32()), ("n_output_tokens", pa.int32()),
    ("reasoning", pa.string()), ("problem", pa.string()), ("retryable", pa.bool_()),
])  # fmt: skip
_WORDS = {"accept": True, "accepted": True, "reject": False, "rejected": False}
_MARKUP = " \t*_`\"'.!()[]{}"
_LABELLED = re.compile(r"\bverdict\b[\s\"'*_`]*(?:[:=]|\bis\b)[\s\"'*_`(\[{]*([a-z]+)([^\n]*)(\n?)", re.IGNORECASE)
_CHOICE_WORD = re.compile(r"\b(?:accept|reject)(?:ed)?\b", re.IGNORECASE)

Row = dict[str, Any]  # Any: values of a stored row


class Opinion(NamedTuple):
    """The opinion of one judge on one answer.

    Attributes:
        accepts: Its verdict; None where the reply has none, and `problem` says why.
        p_accept: Probability of accept against reject; None where the engine gave none.
    """

    accepts: bool | None
    p_accept: float | None = None
    problem: str | None = None

    @property
    def value(self) -> float | None:
        """Its vote for accept from 0 to 1; a verdict in words counts as 0 or 1. None without a verdict."""
        if self.p_accept is not None:
            return self.p_accept
        return None if self.accepts is None else float(self.accepts)


def stored(reply: Reply, *, reasoning: str | None = None) -> Row:
    """A reply as a row of the store."""
    logprobs = reply.choice_logprobs or {}
    return {
        "row_key": reply.key, "text": reply.text, "accept_logprob": logprobs.get(ACCEPT),
        "reject_logprob": logprobs.get(REJECT), "finish_reason": reply.finish_reason,
        "n_prompt_tokens": reply.n_prompt_tokens, "n_output_tokens": reply.n_output_tokens, "reasoning": reasoning,
        "problem": reply.problem, "retryable": reply.retryable,
    }  # fmt: skip


def opinion_of(row: Mapping[str, Any]) -> Opinion:  # Any: values of a stored row
    """The opinion in a stored reply: from its probabilities where they belong to the verdict, else from its text."""
    if row["problem"] is not None:
        return Opinion(None, problem=f"the judge failed ({row['problem'].partition(':')[0]})")
    text, is_cut_off = row["text"] or "", row["finish_reason"] == "length"
    p_accept = probability(row["accept_logprob"], row["reject_logprob"])
    if p_accept is not None and _begins_with_its_verdict(text):
        return Opinion(p_accept >= 0.5, p_accept)
    accepts = read_verdict(text, is_cut_off=is_cut_off)
    if accepts is None:
        return Opinion(None, problem="the judge was cut off" if is_cut_off else "no verdict in the judge's reply")
    return Opinion(accepts)


def probability(accept_logprob: float | None, reject_logprob: float | None) -> float | None:
    """P(accept), normalised over the two choices; None where one of the two is unknown."""
    if accept_logprob is None or reject_logprob is None:
        return None
    difference = reject_logprob - accept_logprob
    if math.isnan(difference):  # both choices are impossible
        return None
    return 1 / (1 + math.exp(difference)) if difference < 700 else 0.0


def read_verdict(text: str, *, is_cut_off: bool) -> bool | None:
    """Whether a reply in free text accepts; None where it has no clear verdict.

    The last "verdict: ..." counts. Where that one is unclear, no earlier one counts in its place, because it may be
    quoted from the candidate. In a reply without "verdict:", the last or the first line must be the bare word.
    """
    labelled = list(_LABELLED.finditer(text))
    if labelled:
        word, rest, line_end = labelled[-1].groups()
        if _CHOICE_WORD.search(rest) or (is_cut_off and not line_end):
            return None  # the line says "accept or reject", or was cut off where it may have said so
        return _WORDS.get(word.lower())
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    # The last line of a reply that was cut off may be the start of a longer word.
    last = None if is_cut_off else _bare(lines[-1])
    first = None if is_cut_off and len(lines) == 1 else _bare(lines[0])
    return first if last is None else last


def _begins_with_its_verdict(text: str) -> bool:
    """Whether a text begins with a choice and names no other. The probabilities are those of its first token."""
    named = {_WORDS[word.lower()] for word in _CHOICE_WORD.findall(text)}
    return len(named) == 1 and _CHOICE_WORD.match(text) is not None


def _bare(line: str) -> bool | None:
    return _WORDS.get(line.strip(_MARKUP).lower())
