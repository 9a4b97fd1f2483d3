"""Reading tables of one order side by side, a batch at a time: joins whose memory does not grow with their rows.

Every table is sorted by example_id, so that what belongs to a batch of examples is the next stretch of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks import schema
from tasks.errors import DataError

GRAIN = ("example_id", "kind", "sample_index")


def judged_outputs(outputs: Path, verdicts: Path, *, batch_rows: int = schema.BATCH_ROWS) -> Iterator[pa.Table]:
    """Outputs with their verdicts, in batches: both have the same grain and order, so row meets row.

    Raises:
        DataError: The two tables are not about the same rows.
    """
    left = schema.read_batches(outputs, schema.OUTPUTS, columns=[*GRAIN, "text"], batch_rows=batch_rows)
    right = schema.read_batches(verdicts, schema.VERDICTS, columns=[*GRAIN, "verdict", "reason"], batch_rows=batch_rows)
    for one, other in zip(left, right, strict=True):
        if any(not one.column(name).equals(other.column(name)) for name in GRAIN):
            raise DataError(f"{outputs.name} and {verdicts.name} are not about the same rows. Run the judge again.")
        yield (
            pa.Table.from_batches([one])
            .append_column("verdict", other.column("verdict"))
            .append_column("verdict_reason", other.column("reason"))
        )


def with_matches(
    examples: Iterator[pa.RecordBatch], others: Iterator[pa.Table]
) -> Iterator[tuple[pa.RecordBatch, pa.Table]]:
    """Each batch of examples with the rows of the other table that are about them.

    Args:
        examples: Sorted by a unique example_id.
        others: Sorted by example_id, any number of rows an example; rows about none of the examples are passed over.
    """
    waiting = next(others, None)
    for batch in examples:
        last = batch.column("example_id")[-1]
        found = []
        while waiting is not None:
            n_matching = pc.sum(pc.less_equal(waiting.column("example_id"), last)).as_py() or 0
            found.append(waiting.slice(0, n_matching))
            if n_matching < waiting.num_rows:
                waiting = waiting.slice(n_matching)
                break
            waiting = next(others, None)
        if found:
            yield batch, pa.concat_tables(found)
        elif waiting is not None:
            yield batch, waiting.slice(0, 0)
        else:
            raise DataError("no outputs for the last examples: the tables are not of the same run. Run generate again.")
