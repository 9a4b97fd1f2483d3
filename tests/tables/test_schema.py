"""The tables: what a writer refuses, what a reader refuses, and that equal rows give equal bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy

from tasks.errors import DataError
from tasks.tables import schema

TABLES = {
    "examples": schema.EXAMPLES, "outputs": schema.OUTPUTS, "verdicts": schema.VERDICTS, "targets": schema.TARGETS,
    "metrics": schema.METRICS, "items": schema.ITEMS, "scores": schema.SCORES,
}  # fmt: skip
SCORE = {"benchmark": "mmlu", "metric": "acc", "family": "general", "value": 0.5, "n": 4, "n_unscored": 0}


def write_scores(path: Path, *batches: list[dict[str, object]]) -> Path:
    with schema.TableWriter(path, schema.SCORES) as writer:
        for batch in batches:
            writer.write(batch)
    return path


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_its_grain_its_version_and_what_null_means(name):
    table = TABLES[name]
    assert table.metadata[b"schema_version"] == schema.SCHEMA_VERSION.encode()
    assert table.metadata[b"grain"]
    for field in table:
        about = field.metadata[b"about"].decode()
        assert ("; null: " in about) == field.nullable, field.name


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    rows = [toy.example("a", document="D", answerable=False, incorrect=["x"]), toy.example("b")]
    toy.write(tmp_path / "examples.parquet", "examples", rows)
    assert schema.read_table(tmp_path / "examples.parquet", schema.EXAMPLES).to_pylist() == rows
    assert schema.count_rows(tmp_path / "examples.parquet", schema.EXAMPLES) == 2


def test_a_null_where_none_may_be_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"scores\.n: null is not allowed"):
        write_scores(tmp_path / "a.parquet", [SCORE | {"n": None}])


def test_a_null_with_a_meaning_is_kept(tmp_path):
    path = write_scores(tmp_path / "a.parquet", [SCORE | {"value": None}])
    assert schema.read_table(path, schema.SCORES).to_pylist()[0]["value"] is None


def test_how_rows_are_handed_over_does_not_change_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "BATCH_ROWS", 4)
    rows = [SCORE | {"metric": f"m{i}"} for i in range(11)]
    at_once = write_scores(tmp_path / "1.parquet", rows).read_bytes()
    in_parts = write_scores(tmp_path / "2.parquet", rows[:1], rows[1:7], [], rows[7:])
    assert in_parts.read_bytes() == at_once
    assert [batch.num_rows for batch in schema.read_batches(in_parts, schema.SCORES, batch_rows=4)] == [4, 4, 3]


def test_only_the_asked_columns_are_read(tmp_path):
    path = write_scores(tmp_path / "a.parquet", [SCORE])
    (batch,) = schema.read_batches(path, schema.SCORES, columns=["metric"])
    assert batch.to_pylist() == [{"metric": "acc"}]


def test_an_empty_table_is_a_table(tmp_path):
    path = write_scores(tmp_path / "a.parquet")
    assert schema.count_rows(path, schema.SCORES) == 0
    assert list(schema.read_batches(path, schema.SCORES)) == []


def _without_a_column(table: pa.Table) -> pa.Table:
    return table.drop_columns("family")


def _of_another_type(table: pa.Table) -> pa.Table:
    return table.set_column(table.schema.get_field_index("n"), "n", pa.array(["4"]))


def _of_another_version(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"schema_version": "0"})


def _without_a_version(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_column, "no column 'family'"),
        (_of_another_type, "column 'n' is string, not int64"),
        (_of_another_version, "schema version 0, this program reads 1"),
        (_without_a_version, "schema version none"),
    ],
)
@pytest.mark.parametrize("read", ["batches", "table", "count"])
def test_a_table_of_another_shape_is_refused(tmp_path, change, message, read):
    path = write_scores(tmp_path / "a.parquet", [SCORE])
    pq.write_table(change(pq.read_table(path)), path)
    readers = {
        "batches": lambda: list(schema.read_batches(path, schema.SCORES)),
        "table": lambda: schema.read_table(path, schema.SCORES),
        "count": lambda: schema.count_rows(path, schema.SCORES),
    }
    with pytest.raises(DataError, match=rf"a\.parquet: {message}"):
        readers[read]()
