"""The tables that steps exchange: their columns, what one row is, and what null means.

Every table is sorted by its key, so that the same inputs give the same bytes and two tables of the same grain can be
read side by side in batches. Timings, dates and host names live in manifests, never here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError

SCHEMA_VERSION = "1"
BATCH_ROWS = 4_096

_strings = pa.list_(pa.field("element", pa.string()))
_messages = pa.list_(pa.field("element", pa.struct([("role", pa.string()), ("content", pa.string())])))


def _table(name: str, grain: str, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"table": name, "schema_version": SCHEMA_VERSION, "grain": grain})


def _field(name: str, kind: pa.DataType, about: str, *, null: str | None = None) -> pa.Field:
    about = f"{about}; null: {null}" if null else about
    return pa.field(name, kind, nullable=null is not None, metadata={"about": about})


_EXAMPLE_ID = _field("example_id", pa.string(), "hash of messages and golds, hex")
_KIND = _field("kind", pa.string(), "answer or rewrite")
_SAMPLE = _field("sample_index", pa.int32(), "0 for the first answer")

EXAMPLES = _table(
    "examples", "example_id", [
        _EXAMPLE_ID,
        _field("source", pa.string(), "name of the source in the recipe"),
        _field("split", pa.string(), "train or test"),
        _field("domain", pa.string(), "in or out"),
        _field("task", pa.string(), "grounded_qa, open, number or multiple_choice"),
        _field("messages", _messages, "the prompt as a chat, ending with the user"),
        _field("question", pa.string(), "the question alone"),
        _field("dialogue", _messages, "the turns up to the answer, the question last", null="one question alone"),
        _field("document", pa.string(), "what the answer stands in", null="the task has none"),
        _field("golds", _strings, "acceptable answers; the first is the training target"),
        _field("incorrect", _strings, "texts that make an answer wrong; may be empty"),
        _field("answerable", pa.bool_(), "whether the document holds the answer", null="not an answerability task"),
        _field("group", pa.string(), "what the row belongs to, for clustered intervals", null="stands alone"),
    ],
)  # fmt: skip

OUTPUTS = _table(
    "outputs", "(example_id, kind, sample_index)", [
        _EXAMPLE_ID, _KIND, _SAMPLE,
        _field("row_key", pa.string(), "hash of model, template, sampling and prompt"),
        _field("text", pa.string(), "the model's answer, stripped", null="failed, see problem"),
        _field("finish_reason", pa.string(), "stop or length", null="failed"),
        _field("n_prompt_tokens", pa.int32(), "tokens of the rendered prompt", null="failed"),
        _field("n_output_tokens", pa.int32(), "tokens of the answer", null="failed"),
        _field("problem", pa.string(), "what went wrong", null="nothing"),
        _field("retryable", pa.bool_(), "whether another try may help", null="no problem"),
    ],
)  # fmt: skip

VERDICTS = _table(
    "verdicts", "(example_id, kind, sample_index)", [
        _EXAMPLE_ID, _KIND, _SAMPLE,
        _field("verdict", pa.string(), "accept, reject or unjudged"),
        _field("decided_by", pa.string(), "the rule or judge that decided", null="unjudged"),
        _field("reason", pa.string(), "why, in a few words"),
        _field("p_accept", pa.float64(), "probability of accept", null="decided by rule or not measurable"),
    ],
)  # fmt: skip

AUDIT = _table(
    "audit", "probe_id", [
        _field("probe_id", pa.string(), "hash of example and candidate, hex"),
        _field("kind", pa.string(), "how the candidate was made"),
        _field("example_id", pa.string(), "the example that it is an answer to"),
        _field("answerable", pa.bool_(), "whether the document holds the answer", null="not an answerability task"),
        _field("candidate", pa.string(), "the answer that was judged"),
        _field("acceptable", pa.bool_(), "the truth: whether it should be accepted"),
        _field("verdict", pa.string(), "accept, reject or unjudged, by the language models alone"),
        _field("p_accept", pa.float64(), "probability of accept", null="not measurable"),
    ],
)  # fmt: skip

LIKELIHOODS = _table(
    "likelihoods", "(example_id, kind, sample_index)", [
        _EXAMPLE_ID,
        _field("kind", pa.string(), "answer, gold or rewrite"),
        _SAMPLE,
        _field("base_nll", pa.float64(), "mean negative log-likelihood per token under the base, nats", null="failed"),
        _field("problem", pa.string(), "what went wrong", null="nothing"),
    ],
)  # fmt: skip

TARGETS = _table(
    "targets", "example_id", [
        _EXAMPLE_ID,
        _field("messages", _messages, "the prompt as a chat"),
        _field("target", pa.string(), "the text to train on"),
        _field("target_type", pa.string(), "self, rewrite or gold"),
        _field("reason", pa.string(), "why this target"),
        _field("base_nll", pa.float64(), "mean negative log-likelihood per token under the base, nats", null="unknown"),
    ],
)  # fmt: skip

METRICS = _table(
    "metrics", "step", [
        _field("step", pa.int32(), "optimiser step, from 1"),
        _field("epoch", pa.float64(), "passes over the data so far"),
        _field("loss", pa.float64(), "mean training loss since the last row, nats per trained token"),
        _field("learning_rate", pa.float64(), "learning rate at this step"),
        _field("grad_norm", pa.float64(), "gradient norm before clipping", null="not reported"),
    ],
)  # fmt: skip

_HIGHER_IS_BETTER = _field(
    "higher_is_better", pa.bool_(), "what the benchmark states of the metric",
    null="it states nothing, or the metric is one of the project's own",
)  # fmt: skip

ITEMS = _table(
    "items", "(benchmark, metric, item_id)", [
        _field("benchmark", pa.string(), "task:<source> or the lm-evaluation-harness task"),
        _field("metric", pa.string(), "what is scored"),
        _field("item_id", pa.string(), "hash of the item, the same for base and arms"),
        _field("cluster", pa.string(), "items that are not independent share it", null="stands alone"),
        _field("score", pa.float64(), "0 to 1", null="unscored, see problem"),
        _field("problem", pa.string(), "why there is no score", null="scored"),
        _field("output", pa.string(), "what the model answered", null="a choice by likelihood"),
        _HIGHER_IS_BETTER,
    ],
)  # fmt: skip

SCORES = _table(
    "scores", "(benchmark, metric)", [
        _field("benchmark", pa.string(), "task:<source> or the lm-evaluation-harness task"),
        _field("metric", pa.string(), "what is scored"),
        _field("family", pa.string(), "task-in, task-out or general"),
        _field("value", pa.float64(), "mean over the scored items", null="no item was scored"),
        _field("n", pa.int64(), "scored items"),
        _field("n_unscored", pa.int64(), "items without a score"),
        _HIGHER_IS_BETTER,
    ],
)  # fmt: skip

_DRAWN = (
    _field("cluster", pa.string(), "prompts that are not independent share it", null="stands alone"),
    _field("n_tokens", pa.int32(), "tokens of the answer and its end", null="no score, see problem"),
    _field("base_nll", pa.float64(), "mean negative log-likelihood per token under the base, nats", null="no score"),
)
_UNSCORED = _field("problem", pa.string(), "why there is no score", null="scored")

DRAWN = _table(
    "drawn", "example_id", [
        _EXAMPLE_ID,
        _field("text", pa.string(), "the answer that the base drew at temperature 1, stripped", null="failed"),
        *_DRAWN, _UNSCORED,
    ],
)  # fmt: skip

DRIFT = _table(
    "drift", "example_id", [
        _EXAMPLE_ID,
        *_DRAWN,
        _field("nll", pa.float64(), "the same under the adapter", null="no score"),
        _UNSCORED,
    ],
)  # fmt: skip


def check_schema(schema: pa.Schema, expected: pa.Schema, *, where: object) -> None:
    """Refuse a table that is not of the expected schema.

    Raises:
        DataError: A column is missing, has another type, or the schema version is not this program's.
    """
    version = (schema.metadata or {}).get(b"schema_version", b"").decode()
    if version != SCHEMA_VERSION:
        raise DataError(f"{where}: schema version {version or 'none'}, this program reads {SCHEMA_VERSION}. Run again.")
    for field in expected:
        position = schema.get_field_index(field.name)
        if position < 0:
            raise DataError(f"{where}: no column {field.name!r} (found {', '.join(schema.names)})")
        if schema.field(position).type != field.type:
            raise DataError(f"{where}: column {field.name!r} is {schema.field(position).type}, not {field.type}")


class TableWriter:
    """Writes one Parquet table in batches; use as a context manager.

    Row groups depend on the rows alone, not on the batches in which they arrive, so equal rows give equal bytes.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.n_rows = 0
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._n_pending = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", version="2.6")

    def write(self, rows: list[dict[str, object]] | pa.Table) -> None:
        """Append rows.

        Raises:
            DataError: There is a null in a column that must not have one.
        """
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=self._schema)
        for field in self._schema:
            if not field.nullable and table.column(field.name).null_count:
                raise DataError(f"{self._schema.metadata[b'table'].decode()}.{field.name}: null is not allowed")
        table = table.select(self._schema.names).cast(self._schema)
        self._pending += table.to_batches()
        self._n_pending += table.num_rows
        self.n_rows += table.num_rows
        while self._n_pending >= BATCH_ROWS:
            self._flush(BATCH_ROWS)

    def _flush(self, n: int) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        self._writer.write_table(table.slice(0, n).combine_chunks(), row_group_size=n)
        rest = table.slice(n)
        self._pending, self._n_pending = rest.to_batches(), rest.num_rows

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._n_pending and exception[0] is None:
            self._flush(self._n_pending)
        self._writer.close()


def read_batches(
    path: Path, expected: pa.Schema, *, columns: list[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Check the schema of a table, then read its rows in order, a batch at a time."""
    with pq.ParquetFile(path) as file:
        check_schema(file.schema_arrow, expected, where=path.name)
        yield from file.iter_batches(batch_size=batch_rows, columns=columns)


def read_table(path: Path, expected: pa.Schema, *, columns: list[str] | None = None) -> pa.Table:
    """Check the schema of a small table (scores, metrics), and read all of it."""
    check_schema(pq.read_schema(path), expected, where=path.name)
    return pq.read_table(path, columns=columns)


def count_rows(path: Path, expected: pa.Schema) -> int:
    """Check the schema of a table, and read its number of rows from its footer alone."""
    with pq.ParquetFile(path) as file:
        check_schema(file.schema_arrow, expected, where=path.name)
        return int(file.metadata.num_rows)
