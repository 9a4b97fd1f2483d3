"""The judge step over toy tables."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import toy
from fake_judge import plan, verdicts

from tasks.artifacts.store import open_store
from tasks.errors import DataError, StepError
from tasks.tables import schema

EXAMPLES = [toy.example("a"), toy.example("b"), toy.example("c"), toy.example("t", split="test")]
OUTPUTS = [toy.output("a", "gold a"), toy.output("b", "something else"), toy.output("c", None)]


def test_every_output_gets_a_verdict_in_the_same_order(store):
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS))
    assert [(row["example_id"], row["verdict"], row["decided_by"]) for row in found] == [
        ("a", "accept", "exact_match"), ("b", "unjudged", None), ("c", "unjudged", None),
    ]  # fmt: skip
    assert all(row["p_accept"] is None for row in found)


def test_the_counts_close_and_name_states_and_rules(store):
    made = plan(store, EXAMPLES, OUTPUTS).execute(store)
    assert toy.counts_of(store, made) == {
        "rows_in": 3, "rows_out": 3, "accept": 1, "reject": 0, "unjudged": 2, "rule.exact_match": 1,
    }  # fmt: skip


def test_each_sample_of_an_example_is_judged(store):
    outputs = [toy.output("a", "no", 0), toy.output("a", "gold a", 1), toy.output("b", "gold b", 0)]
    found = verdicts(store, plan(store, EXAMPLES[:2], outputs))
    assert [(row["example_id"], row["sample_index"], row["verdict"]) for row in found] == [
        ("a", 0, "unjudged"), ("a", 1, "accept"), ("b", 0, "accept"),
    ]  # fmt: skip


def test_the_same_tables_give_the_same_bytes(store, tmp_path):
    other = open_store(str(tmp_path / "other"))
    made = [toy.bytes_of(one, plan(one, EXAMPLES, OUTPUTS).execute(one), "verdicts.parquet") for one in (store, other)]
    assert made[0] == made[1]


def test_tables_longer_than_a_batch_are_judged_whole(store, monkeypatch):
    examples = [toy.example(f"{i:03}") for i in range(23)]
    outputs = [toy.output(f"{i:03}", f"gold {i:03}", sample) for i in range(23) for sample in range(2)]
    read = schema.read_batches
    monkeypatch.setattr(schema, "read_batches", lambda *args, **options: read(*args, **options, batch_rows=5))
    found = verdicts(store, plan(store, examples, outputs))
    assert [(row["example_id"], row["sample_index"]) for row in found] == [
        (row["example_id"], row["sample_index"]) for row in outputs
    ]
    assert {row["verdict"] for row in found} == {"accept"}


def test_the_recipe_decides_what_becomes_of_undecided_ones(store):
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS, undecided="reject"))
    assert [row["verdict"] for row in found] == ["accept", "reject", "unjudged"]


def test_an_output_of_no_example_is_not_passed_over(store):
    with pytest.raises(StepError):
        plan(store, EXAMPLES, [*OUTPUTS, toy.output("zzz", "gold")]).execute(store)


def test_outputs_of_another_schema_are_refused(store, tmp_path):
    planned = plan(store, EXAMPLES, OUTPUTS)
    path = store.fetch(planned.inputs["outputs"]) / "outputs.parquet"
    pq.write_table(pq.read_table(path).drop_columns("text"), path)
    with pytest.raises(DataError, match="no column 'text'"):
        planned.execute(store)
