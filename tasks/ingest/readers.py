"""Records in the public formats of question-answering datasets -> raw examples.

Each reader takes records one at a time and yields, for each question in them, an example or why it is left out.
MultiDoc2Dial stands in `md2d.py`, plain tables in `rows.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tasks.artifacts.digest import stable_rng
from tasks.ingest.raw import Dropped, RawExample, Record, as_bool, as_list, as_text, as_texts, member, text_member
from tasks.lab.task import task_rows

RecordReader = Callable[[Iterable[Record]], Iterator[RawExample | Dropped]]

_SQUAD, _NQ, _MUSIQUE, _GSM8K = "SQuAD 2.0", "Natural Questions", "MuSiQue", "GSM8K"
_MIN_PASSAGE_TOKENS = 20  # shorter candidates of a page are headings and table cells


def squad2(records: Iterable[Record]) -> Iterator[RawExample | Dropped]:
    """SQuAD 2.0: articles as in the official JSON, or one question a row as on the Hub; group = title."""
    for record in records:
        if isinstance(record.value, dict) and "paragraphs" in record.value:
            yield from _squad_article(record)
        else:
            title, context = (text_member(record.value, name, record, of=_SQUAD) for name in ("title", "context"))
            member(record.value, "answers", record, dict, of=_SQUAD)
            yield _squad_question(record.value, context, title, record)


def _squad_article(record: Record) -> Iterator[RawExample]:
    title = text_member(record.value, "title", record, of=_SQUAD)
    for paragraph in member(record.value, "paragraphs", record, list, of=_SQUAD):
        context = text_member(paragraph, "context", record, of=_SQUAD)
        for entry in member(paragraph, "qas", record, list, of=_SQUAD):
            yield _squad_question(entry, context, title, record)


def _squad_question(entry: Any, context: str, title: str, record: Record) -> RawExample:  # Any: a JSON value
    question = text_member(entry, "question", record, of=_SQUAD)
    golds = _squad_texts(member(entry, "answers", record, object, of=_SQUAD), record)
    impossible = as_bool(entry.get("is_impossible"), record, "is_impossible")
    if impossible is None:
        impossible = "is_impossible" not in entry and not golds
    plausible = _squad_texts(entry.get("plausible_answers"), record)
    return RawExample(question, context, None, golds, plausible, not impossible, title or None)


def _squad_texts(answers: Any, record: Record) -> list[str]:  # Any: a JSON value
    if isinstance(answers, list):
        answers = [text_member(answer, "text", record, of=_SQUAD) for answer in answers]
    return as_texts(answers, record, "answers")


def nq(records: Iterable[Record]) -> Iterator[RawExample | Dropped]:
    """Natural Questions: the simplified JSONL, or flat rows of question, document (or context), answers."""
    for record in records:
        if isinstance(record.value, dict) and "document_text" not in record.value and "question" in record.value:
            yield _nq_flat(record)
        else:
            yield _nq_simplified(record)


def _nq_flat(record: Record) -> RawExample:
    row = record.value
    document = text_member(row, "document" if "document" in row else "context", record, of=_NQ)
    golds = as_texts(
        member(row, "answers" if "answers" in row else "answer", record, object, of=_NQ), record, "answers"
    )
    answerable = as_bool(row.get("answerable"), record, "answerable")
    question = text_member(row, "question", record, of=_NQ)
    return RawExample(question, document, None, golds, [], bool(golds) if answerable is None else answerable, None)


def _nq_simplified(record: Record) -> RawExample | Dropped:
    """The document is the annotated passage; without one, a passage of the page drawn by the question's text.

    As in the official scoring, of five annotators two must have found an answer; fewer is a disagreement.
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


def _nq_golds(annotation: Any, tokens: list[str], start: int, end: int, record: Record) -> list[str]:  # Any: JSON
    if (_span(annotation, "long_answer", record)) != (start, end):
        return []  # an answer in another passage is none in this document
    shorts = member(annotation, "short_answers", record, list, of=_NQ)
    golds = [_words(tokens, span) for span in (_bounds(short, record) for short in shorts) if span]
    verdict = (as_text(annotation.get("yes_no_answer"), record, "yes_no_answer") or "").lower()
    return [verdict, *golds] if verdict in ("yes", "no") else golds


def _any_passage(record: Record, question: str, n_tokens: int) -> tuple[int, int]:
    listed = as_list(record.value.get("long_answer_candidates"), record, "long_answer_candidates")
    candidates = [_bounds(c, record) for c in listed if not isinstance(c, dict) or c.get("top_level", True)]
    long_enough = [span for span in candidates if span and span[1] - span[0] >= _MIN_PASSAGE_TOKENS]
    return stable_rng("nq-passage", question).choice(long_enough) if long_enough else (0, n_tokens)


def _span(annotation: Any, name: str, record: Record) -> tuple[int, int] | None:  # Any: a JSON value
    return _bounds(member(annotation, name, record, dict, of=_NQ), record)


def _bounds(span: Any, record: Record) -> tuple[int, int] | None:  # Any: a JSON value
    start, end = (member(span, name, record, int, of=_NQ) for name in ("start_token", "end_token"))
    return (start, end) if 0 <= start < end else None


def _words(tokens: list[str], span: tuple[int, int]) -> str:
    """The words of a span, without the page's HTML tags, which are tokens of their own."""
    inside = tokens[span[0] : span[1]]
    return " ".join(token for token in inside if token and not (token.startswith("<") and token.endswith(">")))


def musique(records: Iterable[Record]) -> Iterator[RawExample | Dropped]:
    """MuSiQue, answerable or full; group = id, which an answerable question shares with its unanswerable twin."""
    for record in records:
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


def gsm8k(records: Iterable[Record]) -> Iterator[RawExample | Dropped]:
    """GSM8K: golds are the worked answer, which becomes the target, and the number after `####`."""
    for record in records:
        question, answer = (text_member(record.value, name, record, of=_GSM8K) for name in ("question", "answer"))
        _, marker, number = answer.rpartition("####")
        if not marker or not number.strip():
            yield Dropped("no_final_number")
        else:
            yield RawExample(question, None, None, [answer, number.strip()], [], None, None)


def lab(n_rows: int, *, seed: int) -> Iterator[RawExample | Dropped]:
    """The lab's task, with the split, domain and source that its rows bring."""
    for row in task_rows(n_rows, seed=seed):
        yield RawExample(
            row.question, row.document, None, row.golds, row.incorrect, row.answerable, row.group,
            source=row.source, split=row.split, domain=row.domain,
        )  # fmt: skip


READERS: dict[str, RecordReader] = {"squad2": squad2, "nq": nq, "musique": musique, "gsm8k": gsm8k}
