"""Merge joins: tables that are sorted alike are read side by side, so that memory does not grow with their rows.

Every table is sorted by example_id. So the rows about a batch of examples are the next rows of the other table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import DataError
from tasks.tables import schema

GRAIN = ("example_id", "kind", "sample_index")


def training_batches(examples: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """These columns of the training examples, together with example_id and split; no batch is empty."""
    for batch in schema.read_batches(examples, schema.EXAMPLES, columns=["example_id", "split", *columns]):
        training = batch.filter(pc.equal(batch.column("split"), "train"))
        if training.num_rows:
            yield training


def tables_of(path: Path, expected: pa.Schema, columns: list[str]) -> Iterator[pa.Table]:
    """Columns of a table in batches. There is at least one batch, which may be empty, so that the columns are known."""
    batches = schema.read_batches(path, expected, columns=columns)
    first = next(batches, None)
    yield expected.empty_table().select(columns) if first is None else pa.Table.from_batches([first])
    yield from (pa.Table.from_batches([batch]) for batch in batches)


def judged_outputs(outputs: Path, verdicts: Path) -> Iterator[pa.Table]:
    """Outputs with their verdicts (columns verdict and verdict_reason), in batches, at least one.

    The two tables have the same grain and order, so row n of one belongs to row n of the other.

    Raises:
        DataError: The two tables are not about the same rows.
    """
    left = tables_of(outputs, schema.OUTPUTS, [*GRAIN, "text"])
    right = tables_of(verdicts, schema.VERDICTS, [*GRAIN, "verdict", "reason"])
    for one, other in zip(left, right, strict=True):
        if any(not one.column(name).equals(other.column(name)) for name in GRAIN):
            raise DataError(f"{outputs.name} and {verdicts.name} are not about the same rows. Run the judge again.")
        yield one.append_column("verdict", other.column("verdict")).append_column(
            "verdict_reason", other.column("reason")
        )


def accepted(judged: pa.Table) -> pa.ChunkedArray:
    """Whether each row's `verdict` is accept; unjudged is not accepted."""
    return pc.fill_null(pc.equal(judged.column("verdict"), "accept"), False)


class SortedReader:
    """A reader of a table sorted by example_id, which goes on from where it stopped.

    Args:
        tables: The batches of the table, at least one. An example may have any number of rows, also none.
    """

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._waiting: pa.Table | None = next(tables)
        self._nothing = self._waiting.slice(0, 0)

    def until(self, last: pa.Scalar) -> pa.Table:
        """The next rows up to and including this example_id, which need not be in the table."""
        found = [self._nothing]
        while self._waiting is not None:
            n_matching = pc.sum(pc.less_equal(self._waiting.column("example_id"), last)).as_py() or 0
            found.append(self._waiting.slice(0, n_matching))
            if n_matching < self._waiting.num_rows:
                self._waiting = self._waiting.slice(n_matching)
                break
            self._waiting = next(self._tables, None)
        return pa.concat_tables(found)


def with_matches(
    examples: Iterator[pa.RecordBatch], others: Iterator[pa.Table]
) -> Iterator[tuple[pa.RecordBatch, pa.Table]]:
    """Each batch of examples with the rows of the other table that are about these examples.

    Args:
        examples: Sorted by a unique example_id.
        others: The batches of the other table, sorted by example_id, at least one.
    """
    reader = SortedReader(others)
    for batch in examples:
        yield batch, reader.until(batch.column("example_id")[-1])
