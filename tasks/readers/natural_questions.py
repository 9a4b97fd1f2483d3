"""Natural Questions: search queries with a page that may contain the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.artifacts.digest import stable_rng
from tasks.readers.registry import Dropped, RawExample, RawRecord, ReaderInput, reader
from tasks.readers.values import as_bool, as_list, as_text, as_texts, member, text_member

_NQ = "Natural Questions"
_MIN_PASSAGE_TOKENS = 20  # shorter candidates of a page are headings and table cells


@reader(
    "nq", title=_NQ, task="grounded_qa",
    files="the simplified JSONL, or flat rows of question, document or context, and answers",
)  # fmt: skip
def nq(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """Natural Questions: the simplified JSONL, or flat rows of question, document (or context), answers."""
    for record in source.records:
        if isinstance(record.value, dict) and "document_text" not in record.value and "question" in record.value:
            yield _nq_flat(record)
        else:
            yield _nq_simplified(record)


def _nq_flat(record: RawRecord) -> RawExample:
    row = record.value
    document = text_member(row, "document" if "document" in row else "context", record, of=_NQ)
    golds = as_texts(
        member(row, "answers" if "answers" in row else "answer", record, object, of=_NQ), record, "answers"
    )
    answerable = as_bool(row.get("answerable"), record, "answerable")
    question = text_member(row, "question", record, of=_NQ)
    return RawExample(question, document, None, golds, [], bool(golds) if answerable is None else answerable, None)


def _nq_simplified(record: RawRecord) -> RawExample | Dropped:
    """The document is the annotated passage. Without one, it is a passage of the page, drawn by the question's text.

    As in the official scoring, two of five annotators must have found an answer. Else they disagree.
    """
    question = text_member(record.value, "question_text", record, of=_NQ)
    tokens = text_member(record.value, "document_text", record, of=_NQ).split(" ")
    annotations = member(record.value, "annotations", record, list, of=_NQ)
    passages = [span for span in (_span(a, "long_answer", record) for a in annotations) if span]
    if not passages:
        document = _words(tokens, _any_passage(record, question, len(tokens)))
        return RawExample(question, document, None, [], [], False, None)
    if len(annotations) >= 5 and len(passages) < 2:
        return Dropped("annotators_disagree")
    start, end = passages[0]
    golds = [gold for a in annotations for gold in _nq_golds(a, tokens, start, end, record)]
    return RawExample(question, _words(tokens, (start, end)), None, list(dict.fromkeys(golds)), [], True, None)


def _nq_golds(annotation: Any, tokens: list[str], start: int, end: int, record: RawRecord) -> list[str]:  # Any: JSON
    if (_span(annotation, "long_answer", record)) != (start, end):
        return []  # this document does not contain an answer from another passage
    shorts = member(annotation, "short_answers", record, list, of=_NQ)
    golds = [_words(tokens, span) for span in (_bounds(short, record) for short in shorts) if span]
    verdict = (as_text(annotation.get("yes_no_answer"), record, "yes_no_answer") or "").lower()
    return [verdict, *golds] if verdict in ("yes", "no") else golds


def _any_passage(record: RawRecord, question: str, n_tokens: int) -> tuple[int, int]:
    listed = as_list(record.value.get("long_answer_candidates"), record, "long_answer_candidates")
    candidates = [_bounds(c, record) for c in listed if not isinstance(c, dict) or c.get("top_level", True)]
    long_enough = [span for span in candidates if span and span[1] - span[0] >= _MIN_PASSAGE_TOKENS]
    return stable_rng("nq-passage", question).choice(long_enough) if long_enough else (0, n_tokens)


def _span(annotation: Any, name: str, record: RawRecord) -> tuple[int, int] | None:  # Any: a JSON value
    return _bounds(member(annotation, name, record, dict, of=_NQ), record)


def _bounds(span: Any, record: RawRecord) -> tuple[int, int] | None:  # Any: a JSON value
    start, end = (member(span, name, record, int, of=_NQ) for name in ("start_token", "end_token"))
    return (start, end) if 0 <= start < end else None


def _words(tokens: list[str], span: tuple[int, int]) -> str:
    """The words of a span without HTML tags, which are separate tokens."""
    inside = tokens[span[0] : span[1]]
    return " ".join(token for token in inside if token and not (token.startswith("<") and token.endswith(">")))
