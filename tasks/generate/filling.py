"""Fills a table with answers of a model: asks for the missing ones, and writes all rows in the order of the grain.

The table is a sorted view of the row store in which `tasks.asking` keeps every answer.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.artifacts.digest import digest_of
from tasks.artifacts.paid_rows import LATEST_SQL, RowStore
from tasks.asking import Asking, Question, get_missing
from tasks.config import EngineConfig, ModelConfig
from tasks.errors import StepError
from tasks.models import load_tokenizer, model_digest, template_digest
from tasks.running.step import Context
from tasks.tables import schema
from tasks.tables.aligned import GRAIN
from tasks.tables.duckdb_query import query
from tasks.tables.spool import rows_of, sorted_rows

_GRAIN = pa.schema([("example_id", pa.string()), ("kind", pa.string()), ("sample_index", pa.int32())])

_PAID_ROWS = f"FROM ({LATEST_SQL}) AS paid JOIN {{row_keys}} AS asked USING (row_key)"

Row = dict[str, Any]  # Any: values of a table's row
Tables = dict[str, Path | list[Path]]


def weights_digest(*, model: ModelConfig, **sections: object) -> Mapping[str, str]:
    """The digest of the model's weights, which is part of the fingerprint of every step that asks the model."""
    return {"model": model_digest(model)}


def space_of(model: ModelConfig, engine: EngineConfig, *settings: object) -> str:
    """Digest of what an answer depends on apart from the question: model, engine and settings, but not batching."""
    template = template_digest(load_tokenizer(model))
    return digest_of([model_digest(model), template, model.dtype, engine.answer_identity(), *settings])[:32]


def fill(
    ctx: Context, asking: Asking[Question], table: pa.Schema, max_failed_share: float, *, without: str, setting: str
) -> int:
    """Ask for the missing rows and write the table to a file of its name.

    Args:
        asking: Its questions have the grain (example_id, kind, sample_index) and are sorted by it. The columns of its
            store except `row_key` become columns of the table.
        without: What a failed row lacks, for the message.
        setting: The field of the recipe that sets `max_failed_share`, for the message.

    Returns:
        The number of rows of the table.

    Raises:
        StepError: More than `max_failed_share` of the rows failed.
    """
    row_keys = ctx.work / "row-keys.parquet"
    paid = get_missing(ctx, asking, row_keys, _GRAIN)
    ctx.counts |= {"rows_generated": paid.n_generated, "rows_reused": paid.n_rows - paid.n_generated}
    if "n_output_tokens" in asking.rows.schema.names:
        ctx.counts["tokens_generated"] = paid.n_tokens
    ctx.facts["generating_seconds"] = round(paid.seconds, 3)
    _write_table(ctx, asking.rows, table, row_keys, paid.n_rows)
    n_failed, name = ctx.counts["rows_failed"], ctx.ref["step"]
    if n_failed > max_failed_share * paid.n_rows:
        raise StepError(
            f"{name}: {n_failed} of {paid.n_rows} rows have no {without} ({ctx.facts['problems']}), more than "
            f"{setting} allows. Finished rows are kept: the same command retries those that a retry may repair, and "
            f"--force {name} retries all that failed."
        )
    return paid.n_rows


def _write_table(ctx: Context, rows: RowStore, table: pa.Schema, row_keys: Path, n_rows: int) -> None:
    name = table.metadata[b"table"].decode()
    tables: Tables = {"row_keys": row_keys, "rows": rows.parts()}
    problems: Counter[str] = Counter()
    with schema.TableWriter(ctx.out / f"{name}.parquet", table) as writer:
        found = _in_order(ctx, tables, table) if n_rows else iter(())
        while batch := list(islice(found, schema.BATCH_ROWS)):
            writer.write(batch)
            problems.update(row["problem"].partition(":")[0] for row in batch if row["problem"])
    ctx.account(n_rows, writer.n_rows, {})
    n_retryable = _count_retryable(ctx, tables) if problems else 0
    ctx.counts |= {"rows_failed": problems.total(), "rows_retryable": n_retryable}
    ctx.facts["problems"] = dict(sorted(problems.items()))


def _count_retryable(ctx: Context, tables: Tables) -> int:
    with query(f"SELECT count(*) {_PAID_ROWS} WHERE paid.retryable", tables, spill=ctx.work) as reader:
        return int(reader.read_all().column(0)[0].as_py())


def _in_order(ctx: Context, tables: Tables, table: pa.Schema) -> Iterator[Row]:
    """The rows of the table in order. Rows with the same question get the same answer."""
    columns = ", ".join(f"{'asked' if n in _GRAIN.names else 'paid'}.{n}" for n in table.names)
    shutil.rmtree(ctx.work / "sort", ignore_errors=True)
    with query(f"SELECT {columns} {_PAID_ROWS}", tables, spill=ctx.work) as reader:
        yield from sorted_rows(rows_of(reader), ctx.work / "sort", table.remove_metadata(), key=GRAIN)
