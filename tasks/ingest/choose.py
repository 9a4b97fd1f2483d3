"""Decides which rendered rows become examples: drops duplicates, rows over a limit, and test prompts from training.

Decisions follow from content hashes, so the order of rows does not matter. They are made over narrow columns and joined
with the wide ones afterwards, so memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tasks.tables.duckdb_query import query
from tasks.tables.schema import EXAMPLES
from tasks.tables.spool import Row, rows_of, sorted_rows, spool, spooled

RENDERED = pa.schema([
    *((field.name, field.type) for field in EXAMPLES),
    ("row", pa.int64()),  # restores the order of the rows; no decision depends on it
    ("source_index", pa.int32()),
    ("row_limit", pa.int64()),  # the limit of the source; null: none
    ("prompt_hash", pa.string()), ("row_hash", pa.string()),
])  # fmt: skip
_DECIDED = pa.schema([("row", pa.int64()), ("reason", pa.string())])
_DECISIONS = 16_384

# Each stage sees only the rows that the earlier stages kept. "test" sorts before "train", so of two copies the one in
# the test split stays.
_DECIDE = """
    WITH copies AS (
        SELECT "row", source_index, row_limit, example_id, prompt_hash, split, row_number() OVER (
            PARTITION BY source_index, example_id ORDER BY split, row_hash) AS copy
        FROM {rendered}
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY source_index, copy = 1 ORDER BY example_id) AS rank FROM copies
    ), within AS (
        SELECT *, CASE WHEN copy > 1 THEN 'duplicate' WHEN rank > row_limit THEN 'over_limit' END AS reason_within
        FROM ranked
    ), across AS (
        SELECT *, row_number() OVER (
            PARTITION BY example_id, reason_within IS NULL ORDER BY split, source_index) AS copy_across
        FROM within
    ), tested AS (
        SELECT DISTINCT prompt_hash AS tested_hash FROM across WHERE reason_within IS NULL AND split = 'test'
    )
    SELECT "row", CASE
        WHEN reason_within IS NOT NULL THEN reason_within
        WHEN copy_across > 1 THEN 'duplicate'
        WHEN split = 'train' AND tested_hash IS NOT NULL THEN 'prompt_in_test' END AS reason
    FROM across LEFT JOIN tested ON prompt_hash = tested_hash
    ORDER BY "row"
"""


def decide(rendered: Path, folder: Path) -> Path:
    """Write a file with the reason to drop each row, in the order of the rows; null keeps the row."""
    decided = folder / "decided.parquet"
    with query(_DECIDE, {"rendered": rendered}, spill=folder) as reader:
        spool(rows_of(reader), decided, _DECIDED, batch_rows=_DECISIONS)
    return decided


def chosen(rendered: Path, decided: Path, folder: Path, dropped: Counter[str]) -> Iterator[Row]:
    """The kept rows in the order of example_id. The others are counted in `dropped` by reason."""
    yield from sorted_rows(_kept_rows(rendered, decided, dropped), folder / "chosen", EXAMPLES, key="example_id")


def _kept_rows(rendered: Path, decided: Path, dropped: Counter[str]) -> Iterator[Row]:
    for row, decision in zip(spooled(rendered, columns=EXAMPLES.names), spooled(decided), strict=True):
        if decision["reason"] is None:
            yield row
        else:
            dropped[decision["reason"]] += 1
