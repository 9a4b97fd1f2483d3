"""Joins over Parquet files by DuckDB, which spills to disk: memory does not grow with the number of rows.

Not for sorting rows that hold documents: within the limit, DuckDB fails on 150,000 rows of 8 kB. `tasks.tables.spool`
sorts such rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

MEMORY_LIMIT = "400MB"


@contextmanager
def query(
    sql: str, tables: Mapping[str, Path | list[Path]], *, spill: Path, batch_rows: int = 4_096
) -> Iterator[pa.RecordBatchReader]:
    """Run a query in which `{name}` stands for a Parquet file, or for several; yields its rows in batches.

    Args:
        spill: A folder for what does not fit into memory.
    """
    connection = duckdb.connect(
        config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(spill / ".spill"), "threads": 2}
    )
    try:
        # Order comes from ORDER BY alone. To keep the order of insertion, DuckDB would hold whole tables in memory.
        connection.execute("SET preserve_insertion_order = false")
        sources = {
            name: f"read_parquet({_literal(paths)}, filename = true, file_row_number = true)"
            for name, paths in tables.items()
        }
        yield connection.sql(sql.format(**sources)).to_arrow_reader(batch_rows)
    finally:
        connection.close()


def _literal(paths: Path | list[Path]) -> str:
    listed = [paths] if isinstance(paths, Path) else list(paths)
    quoted = ", ".join("'" + str(path).replace("'", "''") + "'" for path in listed)
    return f"[{quoted}]"
