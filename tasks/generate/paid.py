"""Filling a table by asking a model: which rows are missing, get them, put all of them in order.

Finished rows go to the row store as they come; what is written at the end is only a sorted view of it. So a killed run
goes on, a grown dataset pays for its new rows, and what is asked twice is paid for once.

Not covered: what is asked and which table it fills; that is each step's own.
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

TOLD_SECONDS = 0.2  # between two words on progress
_NEEDED = pa.schema(
    [("example_id", pa.string()), ("kind", pa.string()), ("sample_index", pa.int32()), ("row_key", pa.string())]
)

Row = dict[str, Any]  # Any: values of a table's row


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


Asked = TypeVar("Asked", bound=_Keyed)


class RowToFill(NamedTuple, Generic[Asked]):
    """One row of the table, and what to ask for it."""

    example_id: str
    kind: str
    sample_index: int
    asked: Asked


@dataclass(frozen=True)
class Filling(Generic[Asked]):
    """A table to fill.

    Attributes:
        rows: Where paid rows are; its columns beside `row_key` go to the table.
        needs: The table's rows, sorted by its grain; called more than once, always with the same result.
        ask: From an engine, what to ask and the keys that need no answer, to rows for the store, in any order.
        table: The table's schema; its name is the file's.
    """

    rows: RowStore
    needs: Callable[[], Iterator[RowToFill[Asked]]]
    ask: Callable[[Engine, Iterator[Asked], Container[str]], Iterator[Row]]
    table: pa.Schema


class QuestionCounts(NamedTuple):
    """What a table asks for.

    Attributes:
        n_rows: Rows of the table.
        n_missing: Distinct questions among them that nobody has paid for yet.
    """

    n_rows: int
    n_missing: int


def weights(*, model: ModelConfig, **sections: object) -> Mapping[str, str]:
    """What enters a step from outside when it asks the model."""
    return {"model": model_digest(model)}


def space_of(model: ModelConfig, engine: EngineConfig, *settings: object) -> str:
    """What decides a row apart from what is asked. The engine is part of it; how rows are batched is not."""
    runs_it = {name: value for name, value in engine.identity().items() if name != "batch_tokens"}
    template = template_digest(load_tokenizer(model))
    return digest_of([model_digest(model), template, model.dtype, runs_it, *settings])[:32]


def count_questions(needs: Iterator[RowToFill[Asked]], done: DoneKeys) -> QuestionCounts:
    """How many rows there are, and how many of them must be paid for."""
    missing: set[str] = set()
    n_rows = 0
    for need in needs:
        n_rows += 1
        if need.asked.key not in done.here and need.asked.key not in done.elsewhere:
            missing.add(need.asked.key)
    return QuestionCounts(n_rows, len(missing))


def fill(ctx: Context, filling: Filling[Asked], *, model: ModelConfig, engine: EngineConfig) -> QuestionCounts:
    """Get the rows that are missing and write the table; a table without rows starts no engine.

    By force, rows that failed are missing, too, whatever made them fail.
    """
    done = filling.rows.done(failures=not ctx.force)
    path = ctx.work / "needed.parquet"
    needed = count_questions(_written(filling.needs(), path), done)
    _pay(ctx, filling, done, needed, model=model, engine=engine)
    _write_table(ctx, filling, path, needed.n_rows)
    return needed


def _written(needs: Iterator[RowToFill[Asked]], path: Path) -> Iterator[RowToFill[Asked]]:
    """The same needs, after writing which row of the store each is."""
    with pq.ParquetWriter(path, _NEEDED) as writer:
        while batch := list(islice(needs, schema.BATCH_ROWS)):
            rows = [dict(zip(_NEEDED.names, (*need[:3], need.asked.key), strict=True)) for need in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema=_NEEDED))
            yield from batch


def _pay(
    ctx: Context,
    filling: Filling[Asked],
    done: DoneKeys,
    needed: QuestionCounts,
    *,
    model: ModelConfig,
    engine: EngineConfig,
) -> None:
    n_tokens, n_paid, started, told = 0, 0, time.monotonic(), 0.0
    if needed.n_missing:
        with open_engine(model, engine, work=ctx.work) as opened:
            started = time.monotonic()
            for row in filling.ask(opened, _distinct(filling.needs(), done.elsewhere), done.here):
                filling.rows.append([row])
                n_paid += 1
                n_tokens += row.get("n_output_tokens") or 0
                if (now := time.monotonic()) - told > TOLD_SECONDS or n_paid == needed.n_missing:
                    told = now
                    ctx.progress(n_paid, needed.n_missing, _speed(n_paid, n_tokens, now - started))
    filling.rows.flush()
    ctx.counts |= {"rows_generated": n_paid, "rows_reused": needed.n_rows - n_paid}
    if "n_output_tokens" in filling.rows.schema.names:
        ctx.counts["tokens_generated"] = n_tokens
    ctx.facts["generating_seconds"] = round(time.monotonic() - started, 3)  # without the start of the engine


def _distinct(needs: Iterator[RowToFill[Asked]], done: Container[str]) -> Iterator[Asked]:
    """Each question once, however often it stands, without those that others have paid for."""
    seen: set[str] = set()
    for need in needs:
        if need.asked.key not in seen and need.asked.key not in done:
            seen.add(need.asked.key)
            yield need.asked


def _speed(n_rows: int, n_tokens: int, seconds: float) -> str:
    n, unit = (n_tokens, "tokens") if n_tokens else (n_rows, "rows")
    return f"{n / max(seconds, 1e-9):,.0f} {unit}/s"


def _write_table(ctx: Context, filling: Filling[Asked], needed: Path, n_needed: int) -> None:
    name = filling.table.metadata[b"table"].decode()
    problems: Counter[str] = Counter()
    with schema.TableWriter(ctx.out / f"{name}.parquet", filling.table) as writer:
        found = _in_order(ctx, filling, needed) if n_needed else iter(())
        while batch := list(islice(found, schema.BATCH_ROWS)):
            writer.write(batch)
            problems.update(row["problem"].partition(":")[0] for row in batch if row["problem"])
    ctx.account(n_needed, writer.n_rows, {})
    n_retryable = _count_retryable(ctx, filling, needed) if problems else 0
    ctx.counts |= {"rows_failed": problems.total(), "rows_retryable": n_retryable}
    ctx.facts["problems"] = dict(sorted(problems.items()))


def refuse_failed(ctx: Context, n_rows: int, share: float, *, without: str, setting: str) -> None:
    """Fail the step when more than a share of its rows failed.

    Args:
        without: What a failed row lacks.
        setting: Where the share was set.

    Raises:
        StepError: So many did.
    """
    n_failed, name = ctx.counts["rows_failed"], ctx.ref["step"]
    if n_failed > share * n_rows:
        raise StepError(
            f"{name}: {n_failed} of {n_rows} rows have no {without} ({ctx.facts['problems']}). Finished rows are kept; "
            f"the same command tries again those where that may help, with --force {name} all that failed ({setting} "
            "allows more)."
        )


def _count_retryable(ctx: Context, filling: Filling[Asked], needed: Path) -> int:
    sql = f"SELECT count(*) FROM ({LATEST_SQL}) AS paid JOIN {{needed}} AS needed USING (row_key) WHERE paid.retryable"
    tables: dict[str, Path | list[Path]] = {"needed": needed, "rows": filling.rows.parts()}
    with query(sql, tables, spill=ctx.work) as reader:
        return int(reader.read_all().column(0)[0].as_py())


def _in_order(ctx: Context, filling: Filling[Asked], needed: Path) -> Iterator[Row]:
    """The paid rows, sorted by example; what is asked twice gives its one answer to both."""
    columns = ", ".join(f"{'needed' if n in _NEEDED.names else 'paid'}.{n}" for n in filling.table.names)
    sql = f"SELECT {columns} FROM ({LATEST_SQL}) AS paid JOIN {{needed}} AS needed USING (row_key)"
    tables: dict[str, Path | list[Path]] = {"needed": needed, "rows": filling.rows.parts()}
    shutil.rmtree(ctx.work / "sort", ignore_errors=True)
    with query(sql, tables, spill=ctx.work) as reader:
        yield from sorted_rows(rows_of(reader), ctx.work / "sort", filling.table.remove_metadata(), key=GRAIN)
