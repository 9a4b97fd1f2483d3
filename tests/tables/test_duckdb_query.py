"""Queries over Parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.tables.duckdb_query import query


@pytest.fixture
def people(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "it's a.parquet", tmp_path / "b.parquet"]
    for path, ages in zip(paths, ([3, 1], [2]), strict=True):
        pq.write_table(pa.table({"age": ages}), path)
    return paths


def ages(sql: str, tables: dict[str, Path | list[Path]], spill: Path, **options: int) -> list[list[int]]:
    with query(sql, tables, spill=spill, **options) as reader:
        return [batch.column("age").to_pylist() for batch in reader]


def test_one_name_may_stand_for_several_files(people, tmp_path):
    assert ages("SELECT age FROM {people} ORDER BY age", {"people": people}, tmp_path) == [[1, 2, 3]]


def test_a_path_with_a_quote_in_it_is_read(people, tmp_path):
    assert ages("SELECT age FROM {people} ORDER BY age", {"people": people[0]}, tmp_path) == [[1, 3]]


def test_tables_are_joined(people, tmp_path):
    sql = "SELECT age FROM {one} AS one JOIN {other} AS other USING (age)"
    assert ages(sql, {"one": people, "other": people[1]}, tmp_path) == [[2]]


def test_rows_come_in_batches(people, tmp_path):
    pq.write_table(pa.table({"age": list(range(5_000))}), people[1])
    found = ages("SELECT age FROM {people} ORDER BY age", {"people": people[1]}, tmp_path, batch_rows=2_048)
    assert [age for batch in found for age in batch] == list(range(5_000))
    assert len(found) > 1


def test_nothing_is_left_behind_for_spilling(people, tmp_path):
    before = set(tmp_path.iterdir())
    ages("SELECT age FROM {people} ORDER BY age", {"people": people}, tmp_path)
    assert set(tmp_path.iterdir()) == before
