"""Asks a model the questions that no stored row answers yet, and keeps every reply as it arrives.

A killed run therefore resumes, a grown dataset pays only for its new questions, and a repeated question is asked once.

Not covered: what is asked, and what is made of the replies. Each step defines that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.paid_rows import DoneKeys, RowStore
from tasks.config import EngineConfig, ModelConfig
from tasks.engines import Engine, open_engine
from tasks.running.step import Context
from tasks.tables import schema

PROGRESS_SECONDS = 0.2  # the shortest time between two progress reports

Row = dict[str, Any]  # Any: values of a stored row


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


Question = TypeVar("Question", bound=_Keyed)


class Asked(NamedTuple, Generic[Question]):
    """A row of the table that is asked for: the values of its grain, and the question, whose key is its row key."""

    grain: tuple[str | int, ...]
    question: Question


@dataclass(frozen=True)
class Asking(Generic[Question]):
    """What is asked of a model, and where the replies are kept.

    Attributes:
        rows: The store of paid rows.
        questions: Yields the questions in the order of the table. It is called twice and must yield the same.
        ask: Takes an engine, the questions, and the keys that need no answer. Yields rows for the store, in any order.
        label: Stands before the speed in progress reports.
    """

    model: ModelConfig
    engine: EngineConfig
    rows: RowStore
    questions: Callable[[], Iterator[Asked[Question]]]
    ask: Callable[[Engine, Iterator[Question], Container[str]], Iterator[Row]]
    label: str = ""


class QuestionCounts(NamedTuple):
    """How much is asked.

    Attributes:
        n_rows: Number of rows of the table.
        n_missing: Number of distinct questions that no stored row answers yet.
    """

    n_rows: int
    n_missing: int


class Paid(NamedTuple):
    """What asking took. `seconds` is the time without the start of the engine."""

    n_rows: int
    n_generated: int
    n_tokens: int
    seconds: float


def count_questions(asked: Iterator[Asked[Question]], done: DoneKeys) -> QuestionCounts:
    """Count the rows, and the distinct questions that must be paid for."""
    missing: set[str] = set()
    n_rows = 0
    for one in asked:
        n_rows += 1
        if one.question.key not in done.here and one.question.key not in done.elsewhere:
            missing.add(one.question.key)
    return QuestionCounts(n_rows, len(missing))


def get_missing(ctx: Context, asking: Asking[Question], row_keys: Path, grain: pa.Schema) -> Paid:
    """Ask what is missing, and write the row key of each row of the table to the file `row_keys`.

    Where no reply is missing, no engine is started. With --force, every failed row counts as missing, whatever made
    it fail.
    """
    done = asking.rows.done(failures=not ctx.force)
    counts = count_questions(
        _written(asking.questions(), row_keys, grain.append(pa.field("row_key", pa.string()))), done
    )
    n_tokens, n_generated, started, reported = 0, 0, time.monotonic(), 0.0
    if counts.n_missing:
        with open_engine(asking.model, asking.engine, work=ctx.work) as engine:
            started = time.monotonic()
            for row in asking.ask(engine, _distinct(asking.questions(), done.elsewhere), done.here):
                asking.rows.append([row])
                n_generated += 1
                n_tokens += row.get("n_output_tokens") or 0
                if (now := time.monotonic()) - reported > PROGRESS_SECONDS or n_generated == counts.n_missing:
                    reported = now
                    speed = _speed(n_generated, n_tokens, now - started)
                    ctx.progress(n_generated, counts.n_missing, f"{asking.label} {speed}".strip())
    asking.rows.flush()
    return Paid(counts.n_rows, n_generated, n_tokens, time.monotonic() - started)


def _written(asked: Iterator[Asked[Question]], path: Path, columns: pa.Schema) -> Iterator[Asked[Question]]:
    """Yield the same questions, after writing grain and row key of each to a file."""
    with pq.ParquetWriter(path, columns) as writer:
        while batch := list(islice(asked, schema.BATCH_ROWS)):
            rows = [dict(zip(columns.names, (*one.grain, one.question.key), strict=True)) for one in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema=columns))
            yield from batch


def _distinct(asked: Iterator[Asked[Question]], done: Container[str]) -> Iterator[Question]:
    """Each distinct question once, without those whose key is in `done`."""
    seen: set[str] = set()
    for one in asked:
        if one.question.key not in seen and one.question.key not in done:
            seen.add(one.question.key)
            yield one.question


def _speed(n_rows: int, n_tokens: int, seconds: float) -> str:
    n, unit = (n_tokens, "tokens") if n_tokens else (n_rows, "rows")
    return f"{n / max(seconds, 1e-9):,.0f} {unit}/s"
