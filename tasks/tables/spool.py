"""Rows that are written to disk between two passes over them, and sorted there, so that memory does not grow with them.

DuckDB joins narrow columns (`tasks.tables.duckdb_query`), but cannot sort rows that hold whole documents: within its
memory limit it fails on 150,000 rows of 8 kB.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]  # Any: values of a table's row

_BATCH_ROWS = 512  # small, because rows hold whole documents
_RUN_ROWS = 4096  # sorted in memory at once
_MERGE_ROWS = 64  # of each run, in memory while merging


def spool(rows: Iterable[Row], path: Path, schema: pa.Schema, *, batch_rows: int = _BATCH_ROWS) -> int:
    """Write rows to a Parquet file in the order in which they come; returns their number."""
    n_rows, pending = 0, iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(pending, batch_rows)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            n_rows += len(batch)
    return n_rows


def spooled(path: Path, *, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of a spooled file in its order."""
    with pq.ParquetFile(path) as file:
        yield from rows_of(file.iter_batches(batch_size=file.metadata.row_group(0).num_rows, columns=columns)
                           if file.metadata.num_row_groups else ())  # fmt: skip


def rows_of(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    """The rows of batches, one at a time."""
    for batch in batches:
        yield from batch.to_pylist()


def sorted_rows(rows: Iterable[Row], folder: Path, schema: pa.Schema, *, key: str | tuple[str, ...]) -> Iterator[Row]:
    """Rows sorted by one column or several: runs are sorted in memory, written to disk, and merged from there.

    Args:
        folder: For the runs. It is created, and must not exist.
    """
    by = itemgetter(*((key,) if isinstance(key, str) else key))
    folder.mkdir(parents=True)
    runs: list[Path] = []
    pending = iter(rows)
    while run := sorted(islice(pending, _RUN_ROWS), key=by):
        runs.append(folder / f"run-{len(runs)}.parquet")
        spool(run, runs[-1], schema, batch_rows=_MERGE_ROWS)
    yield from heapq.merge(*(spooled(path) for path in runs), key=by)
