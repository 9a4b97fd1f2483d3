"""Which rendered rows become examples: duplicates, limits, and prompts that stand in a test split.

Decided by content hashes over narrow columns, then laid beside the wide ones; so neither the order of rows nor
their number matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tasks.tables.duckdb_query import query
from tasks.tables.schema import EXAMPLES
from tasks.tables.spool import Row, rows_of, sorted_rows, spool, spooled

RENDERED = pa.schema(
    [(field.name, field.type) for field in EXAMPLES]
    + [
        ("row", pa.int64()),  # puts decisions back into the order of the rows; none depends on it
        ("source_index", pa.int32()),
        ("row_limit", pa.int64()),  # of the source; null: none
        ("prompt_hash", pa.string()),
        ("row_hash", pa.string()),
    ]
)
_DECIDED = pa.schema([("row", pa.int64()), ("reason", pa.string())])
_DECISIONS = 16_384

# Each stage looks only at the rows that the stages before it kept. "test" sorts before "train": of two copies the one
# held out stays.
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
    """Decide on every row: a file of reasons to drop it, null to keep it, in the order of the rows."""
    decided = folder / "decided.parquet"
    with query(_DECIDE, {"rendered": rendered}, spill=folder) as reader:
        spool(rows_of(reader), decided, _DECIDED, batch_rows=_DECISIONS)
    return decided


def chosen(rendered: Path, decided: Path, folder: Path, dropped: Counter[str]) -> Iterator[Row]:
    """The rows that are kept, in example_id order; the others are counted in `dropped`."""
    yield from sorted_rows(_kept(rendered, decided, dropped), folder / "chosen", EXAMPLES, key="example_id")


def _kept(rendered: Path, decided: Path, dropped: Counter[str]) -> Iterator[Row]:
    for row, decision in zip(spooled(rendered, columns=EXAMPLES.names), spooled(decided), strict=True):
        if decision["reason"] is None:
            yield row
        else:
            dropped[decision["reason"]] += 1
