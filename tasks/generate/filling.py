"""Fills a table with answers of a model: finds the missing rows, asks for them, and writes all rows in order.

Finished rows go to the row store as they arrive, and the table is a sorted view of the store. A killed run therefore
resumes, a grown dataset pays only for its new rows, and a question that occurs twice is asked once.

Not covered: what is asked, and which table is filled. Each step defines that.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.digest import digest_of
from tasks.artifacts.paid_rows import LATEST_SQL, DoneKeys, RowStore
from tasks.config import EngineConfig, ModelConfig
from tasks.engines import Engine, open_engine
from tasks.errors import StepError
from tasks.models import load_tokenizer, model_digest, template_digest
from tasks.running.step import Context
from tasks.tables import schema
from tasks.tables.aligned import GRAIN
from tasks.tables.duckdb_query import query
from tasks.tables.spool import rows_of, sorted_rows

PROGRESS_SECONDS = 0.2  # the shortest time between two progress reports
_ROW_KEYS = pa.schema(
    [("example_id", pa.string()), ("kind", pa.string()), ("sample_index", pa.int32()), ("row_key", pa.string())]
)

Row = dict[str, Any]  # Any: values of a table's row


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


Question = TypeVar("Question", bound=_Keyed)


class RowToFill(NamedTuple, Generic[Question]):
    """One row of the table, and the question that fills it. Every question has a `key`: its row key."""

    example_id: str
    kind: str
    sample_index: int
    question: Question


@dataclass(frozen=True)
class Filling(Generic[Question]):
    """A table to fill.

    Attributes:
        rows: The store of paid rows. Its columns except `row_key` become columns of the table.
        rows_to_fill: Yields the rows of the table, sorted by its grain. It is called twice and must yield the same.
        ask: Takes an engine, the questions, and the keys that need no answer. Yields rows for the store, in any order.
        table: The schema of the table. The file has its name.
    """

    rows: RowStore
    rows_to_fill: Callable[[], Iterator[RowToFill[Question]]]
    ask: Callable[[Engine, Iterator[Question], Container[str]], Iterator[Row]]
    table: pa.Schema


class QuestionCounts(NamedTuple):
    """How much a table asks for.

    Attributes:
        n_rows: Number of rows of the table.
        n_missing: Number of distinct questions that no stored row answers yet.
    """

    n_rows: int
    n_missing: int


def weights_digest(*, model: ModelConfig, **sections: object) -> Mapping[str, str]:
    """The digest of the model's weights, which is part of the fingerprint of every step that asks the model."""
    return {"model": model_digest(model)}


def space_of(model: ModelConfig, engine: EngineConfig, *settings: object) -> str:
    """Digest of what an answer depends on apart from the question: model, engine and settings, but not batching."""
    runs_it = {name: value for name, value in engine.identity().items() if name != "batch_tokens"}
    template = template_digest(load_tokenizer(model))
    return digest_of([model_digest(model), template, model.dtype, runs_it, *settings])[:32]


def count_questions(rows_to_fill: Iterator[RowToFill[Question]], done: DoneKeys) -> QuestionCounts:
    """Count the rows, and the distinct questions that must be paid for."""
    missing: set[str] = set()
    n_rows = 0
    for row in rows_to_fill:
        n_rows += 1
        if row.question.key not in done.here and row.question.key not in done.elsewhere:
            missing.add(row.question.key)
    return QuestionCounts(n_rows, len(missing))


def fill(ctx: Context, filling: Filling[Question], *, model: ModelConfig, engine: EngineConfig) -> QuestionCounts:
    """Ask for the missing rows and write the table. Where none is missing, no engine is started.

    With --force, every failed row counts as missing, whatever made it fail.
    """
    done = filling.rows.done(failures=not ctx.force)
    path = ctx.work / "row-keys.parquet"
    counts = count_questions(_written(filling.rows_to_fill(), path), done)
    _pay(ctx, filling, done, counts, model=model, engine=engine)
    _write_table(ctx, filling, path, counts.n_rows)
    return counts


def _written(rows_to_fill: Iterator[RowToFill[Question]], path: Path) -> Iterator[RowToFill[Question]]:
    """Yield the same rows, after writing the row key of each to `path`."""
    with pq.ParquetWriter(path, _ROW_KEYS) as writer:
        while batch := list(islice(rows_to_fill, schema.BATCH_ROWS)):
            rows = [dict(zip(_ROW_KEYS.names, (*row[:3], row.question.key), strict=True)) for row in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema=_ROW_KEYS))
            yield from batch


def _pay(
    ctx: Context, filling: Filling[Question], done: DoneKeys, counts: QuestionCounts, *, model: ModelConfig,
    engine: EngineConfig,
) -> None:  # fmt: skip
    n_tokens, n_paid, started, reported = 0, 0, time.monotonic(), 0.0
    if counts.n_missing:
        with open_engine(model, engine, work=ctx.work) as opened:
            started = time.monotonic()
            for row in filling.ask(opened, _distinct(filling.rows_to_fill(), done.elsewhere), done.here):
                filling.rows.append([row])
                n_paid += 1
                n_tokens += row.get("n_output_tokens") or 0
                if (now := time.monotonic()) - reported > PROGRESS_SECONDS or n_paid == counts.n_missing:
                    reported = now
                    ctx.progress(n_paid, counts.n_missing, _speed(n_paid, n_tokens, now - started))
    filling.rows.flush()
    ctx.counts |= {"rows_generated": n_paid, "rows_reused": counts.n_rows - n_paid}
    if "n_output_tokens" in filling.rows.schema.names:
        ctx.counts["tokens_generated"] = n_tokens
    ctx.facts["generating_seconds"] = round(time.monotonic() - started, 3)  # without the start of the engine


def _distinct(rows_to_fill: Iterator[RowToFill[Question]], done: Container[str]) -> Iterator[Question]:
    """Each distinct question once, without those whose key is in `done`."""
    seen: set[str] = set()
    for row in rows_to_fill:
        if row.question.key not in seen and row.question.key not in done:
            seen.add(row.question.key)
            yield row.question


def _speed(n_rows: int, n_tokens: int, seconds: float) -> str:
    n, unit = (n_tokens, "tokens") if n_tokens else (n_rows, "rows")
    return f"{n / max(seconds, 1e-9):,.0f} {unit}/s"


def _write_table(ctx: Context, filling: Filling[Question], row_keys: Path, n_rows: int) -> None:
    name = filling.table.metadata[b"table"].decode()
    problems: Counter[str] = Counter()
    with schema.TableWriter(ctx.out / f"{name}.parquet", filling.table) as writer:
        found = _in_order(ctx, filling, row_keys) if n_rows else iter(())
        while batch := list(islice(found, schema.BATCH_ROWS)):
            writer.write(batch)
            problems.update(row["problem"].partition(":")[0] for row in batch if row["problem"])
    ctx.account(n_rows, writer.n_rows, {})
    n_retryable = _count_retryable(ctx, filling, row_keys) if problems else 0
    ctx.counts |= {"rows_failed": problems.total(), "rows_retryable": n_retryable}
    ctx.facts["problems"] = dict(sorted(problems.items()))


def refuse_failed(ctx: Context, n_rows: int, share: float, *, without: str, setting: str) -> None:
    """Fail the step when more than a share of its rows failed.

    Args:
        without: What a failed row lacks, for the message.
        setting: The field of the recipe that sets the share, for the message.

    Raises:
        StepError: More than `share` of the rows failed.
    """
    n_failed, name = ctx.counts["rows_failed"], ctx.ref["step"]
    if n_failed > share * n_rows:
        raise StepError(
            f"{name}: {n_failed} of {n_rows} rows have no {without} ({ctx.facts['problems']}), more than {setting} "
            "allows. Finished rows are kept: the same command retries those that a retry may repair, and "
            f"--force {name} retries all that failed."
        )


def _count_retryable(ctx: Context, filling: Filling[Question], row_keys: Path) -> int:
    sql = f"SELECT count(*) FROM ({LATEST_SQL}) AS paid JOIN {{row_keys}} AS asked USING (row_key) WHERE paid.retryable"
    tables: dict[str, Path | list[Path]] = {"row_keys": row_keys, "rows": filling.rows.parts()}
    with query(sql, tables, spill=ctx.work) as reader:
        return int(reader.read_all().column(0)[0].as_py())


def _in_order(ctx: Context, filling: Filling[Question], row_keys: Path) -> Iterator[Row]:
    """The rows of the table in order. Rows with the same question get the same answer."""
    columns = ", ".join(f"{'asked' if n in _ROW_KEYS.names else 'paid'}.{n}" for n in filling.table.names)
    sql = f"SELECT {columns} FROM ({LATEST_SQL}) AS paid JOIN {{row_keys}} AS asked USING (row_key)"
    tables: dict[str, Path | list[Path]] = {"row_keys": row_keys, "rows": filling.rows.parts()}
    shutil.rmtree(ctx.work / "sort", ignore_errors=True)
    with query(sql, tables, spill=ctx.work) as reader:
        yield from sorted_rows(rows_of(reader), ctx.work / "sort", filling.table.remove_metadata(), key=GRAIN)
