"""GSM8K: word problems with a number as the answer."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.readers.registry import Dropped, RawExample, ReaderInput, reader
from tasks.readers.values import text_member

_GSM8K = "GSM8K"


@reader("gsm8k", title=_GSM8K, task="number", files="the official JSONL, or its rows on the Hub")
def gsm8k(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """GSM8K: golds are the worked answer, which becomes the target, and the number after `####`."""
    for record in source.records:
        question, answer = (text_member(record.value, name, record, of=_GSM8K) for name in ("question", "answer"))
        _, marker, number = answer.rpartition("####")
        if not marker or not number.strip():
            yield Dropped("no_final_number")
        else:
            yield RawExample(question, None, None, [answer, number.strip()], [], None, None)
