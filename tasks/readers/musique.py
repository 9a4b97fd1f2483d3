"""MuSiQue: questions that need several paragraphs."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.readers.registry import Dropped, RawExample, ReaderInput, reader
from tasks.readers.values import as_bool, as_text, as_texts, member, text_member

_MUSIQUE = "MuSiQue"


@reader("musique", title=_MUSIQUE, task="grounded_qa", files="the official JSONL, of the answerable or the full set")
def musique(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """MuSiQue, answerable or full; group = id, which an answerable question shares with its unanswerable twin."""
    for record in source.records:
        row = record.value
        question = text_member(row, "question", record, of=_MUSIQUE)
        paragraphs = [
            f"{text_member(p, 'title', record, of=_MUSIQUE)}\n{text_member(p, 'paragraph_text', record, of=_MUSIQUE)}"
            for p in member(row, "paragraphs", record, list, of=_MUSIQUE)
        ]
        answer = text_member(row, "answer", record, of=_MUSIQUE)
        golds = as_texts([answer, *as_texts(row.get("answer_aliases"), record, "answer_aliases")], record, "answer")
        answerable = as_bool(row.get("answerable"), record, "answerable")
        group = as_text(row.get("id"), record, "id")
        yield RawExample(question, "\n\n".join(paragraphs), None, golds, [], answerable is not False, group)
