"""SQuAD 2.0: questions about a paragraph, some of them unanswerable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.readers.registry import Dropped, RawExample, RawRecord, ReaderInput, reader
from tasks.readers.values import as_bool, as_texts, member, text_member

_SQUAD = "SQuAD 2.0"


@reader(
    "squad2", title=_SQUAD, task="grounded_qa",
    files="the official JSON with articles, or one question a row as on the Hub",
)  # fmt: skip
def squad2(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """SQuAD 2.0: articles as in the official JSON, or one question a row as on the Hub; group = title."""
    for record in source.records:
        if isinstance(record.value, dict) and "paragraphs" in record.value:
            yield from _squad_article(record)
        else:
            title, context = (text_member(record.value, name, record, of=_SQUAD) for name in ("title", "context"))
            member(record.value, "answers", record, dict, of=_SQUAD)
            yield _squad_question(record.value, context, title, record)


def _squad_article(record: RawRecord) -> Iterator[RawExample]:
    title = text_member(record.value, "title", record, of=_SQUAD)
    for paragraph in member(record.value, "paragraphs", record, list, of=_SQUAD):
        context = text_member(paragraph, "context", record, of=_SQUAD)
        for entry in member(paragraph, "qas", record, list, of=_SQUAD):
            yield _squad_question(entry, context, title, record)


def _squad_question(entry: Any, context: str, title: str, record: RawRecord) -> RawExample:  # Any: a JSON value
    question = text_member(entry, "question", record, of=_SQUAD)
    golds = _squad_texts(member(entry, "answers", record, object, of=_SQUAD), record)
    impossible = as_bool(entry.get("is_impossible"), record, "is_impossible")
    if impossible is None:
        impossible = "is_impossible" not in entry and not golds
    plausible = _squad_texts(entry.get("plausible_answers"), record)
    return RawExample(question, context, None, golds, plausible, not impossible, title or None)


def _squad_texts(answers: Any, record: RawRecord) -> list[str]:  # Any: a JSON value
    if isinstance(answers, list):
        answers = [text_member(answer, "text", record, of=_SQUAD) for answer in answers]
    return as_texts(answers, record, "answers")
