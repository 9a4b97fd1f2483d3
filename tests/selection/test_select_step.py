"""The select step over toy tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import toy

from tasks import schema
from tasks.config import SelectConfig
from tasks.errors import DataError, StepError
from tasks.selection import select
from tasks.step import Planned
from tasks.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


EXAMPLES = [*(toy.example(i, golds=[f"gold {i}", "second gold"]) for i in "abcd"), toy.example("t", split="test")]
OUTPUTS = [toy.output("a", "A"), toy.output("b", "B"), toy.output("c", "C"), toy.output("d", None)]
VERDICTS = [
    toy.verdict("a", "accept"), toy.verdict("b", "reject"), toy.verdict("c", "unjudged"), toy.verdict("d", "unjudged"),
]  # fmt: skip


def plan(
    store: Store, policy: str = "ssr", seed: int = 0, *, examples: list[toy.Row] = EXAMPLES,
    outputs: list[toy.Row] = OUTPUTS, verdicts: list[toy.Row] = VERDICTS,
) -> Planned:  # fmt: skip
    return select.plan(
        config=SelectConfig(policy=policy, seed=seed), examples=toy.put(store, "examples", examples),
        outputs=toy.put(store, "outputs", outputs), verdicts=toy.put(store, "verdicts", verdicts),
    )  # fmt: skip


def targets(store: Store, planned: Planned) -> list[toy.Row]:
    return pq.read_table(store.fetch(planned.execute(store)) / "targets.parquet").to_pylist()


def taught(rows: list[toy.Row]) -> dict[str, tuple[str, str]]:
    return {row["example_id"]: (row["target_type"], row["target"]) for row in rows}


def samples(*texts_and_states: tuple[str | None, str]) -> dict[str, list[toy.Row]]:
    """Several answers to the one example `a`."""
    return {
        "examples": [toy.example("a")],
        "outputs": [toy.output("a", text, i) for i, (text, _) in enumerate(texts_and_states)],
        "verdicts": [toy.verdict("a", state, i) for i, (_, state) in enumerate(texts_and_states)],
    }


def test_ssr_teaches_the_own_output_where_accepted_and_else_the_first_gold(store):
    assert taught(targets(store, plan(store))) == {
        "a": ("self", "A"), "b": ("gold", "gold b"), "c": ("gold", "gold c"), "d": ("gold", "gold d"),
    }  # fmt: skip


def test_a_target_keeps_its_prompt_and_says_why(store):
    row = targets(store, plan(store))[2]
    assert row["messages"] == EXAMPLES[2]["messages"]
    assert row["reason"] == "unjudged: because unjudged"
    assert row["base_nll"] is None


def test_test_rows_are_never_taught(store):
    for policy in ("gold", "ssr", "self_only", "random_mix"):
        assert "t" not in taught(targets(store, plan(store, policy)))


def test_gold_teaches_the_first_gold_everywhere(store):
    assert taught(targets(store, plan(store, "gold"))) == {i: ("gold", f"gold {i}") for i in "abcd"}


def test_self_only_leaves_rows_without_an_output_out_and_counts_them(store):
    made = plan(store, "self_only").execute(store)
    assert toy.counts_of(store, made) == {
        "rows_in": 4, "rows_out": 3, "dropped.no_output": 1, "target.gold": 0, "target.self": 3,
    }  # fmt: skip


def test_every_training_row_is_accounted_for(store):
    made = plan(store).execute(store)
    assert toy.counts_of(store, made) == {"rows_in": 4, "rows_out": 4, "target.gold": 3, "target.self": 1}


def test_random_mix_teaches_as_many_outputs_as_ssr_but_drawn(store):
    examples = [toy.example(f"{i:02}") for i in range(40)]
    outputs = [toy.output(f"{i:02}", f"own {i}") for i in range(40)]
    verdicts = [toy.verdict(f"{i:02}", "accept" if i < 15 else "reject") for i in range(40)]
    own = []
    for seed in (0, 1):
        made = plan(store, "random_mix", seed, examples=examples, outputs=outputs, verdicts=verdicts)
        own.append({i for i, (kind, _) in taught(targets(store, made)).items() if kind == "self"})
    assert [len(ids) for ids in own] == [15, 15]
    assert own[0] != own[1]
    assert own[0] != {f"{i:02}" for i in range(15)}


def test_of_several_answers_an_accepted_one_is_taught(store):
    tables = samples(("first", "reject"), ("second", "accept"), ("third", "accept"))
    assert taught(targets(store, plan(store, **tables))) == {"a": ("self", "second")}


def test_without_an_accepted_one_the_first_answer_stands_for_the_example(store):
    tables = samples(("first", "reject"), ("second", "unjudged"))
    assert taught(targets(store, plan(store, "self_only", **tables))) == {"a": ("self", "first")}
    assert targets(store, plan(store, **tables))[0]["reason"] == "reject: because reject"


def test_a_failed_answer_does_not_hide_another_of_the_same_example(store):
    tables = samples((None, "unjudged"), ("second", "reject"))
    assert taught(targets(store, plan(store, "self_only", **tables))) == {"a": ("self", "second")}


def test_rewrites_are_no_answers_of_the_model(store):
    outputs = [toy.output("a", "rewritten", kind="rewrite")]
    verdicts = [toy.verdict("a", "accept") | {"kind": "rewrite"}]
    made = plan(store, examples=[toy.example("a")], outputs=outputs, verdicts=verdicts)
    assert taught(targets(store, made)) == {"a": ("gold", "gold a")}


def test_tables_longer_than_a_batch_are_joined_whole(store, monkeypatch):
    examples = [toy.example(f"{i:03}") for i in range(31)]
    outputs = [toy.output(f"{i:03}", f"own {i}-{s}", s) for i in range(31) for s in range(1 + i % 3)]
    verdicts = [
        toy.verdict(row["example_id"], "accept" if row["sample_index"] == 1 else "reject", row["sample_index"])
        for row in outputs
    ]
    planned = plan(store, examples=examples, outputs=outputs, verdicts=verdicts)
    read = schema.read_batches

    def in_small_batches(*args, **options):
        return read(*args, **options | {"batch_rows": 7})

    monkeypatch.setattr(schema, "read_batches", in_small_batches)
    assert taught(targets(store, planned)) == {
        f"{i:03}": ("self", f"own {i}-1") if i % 3 else ("gold", f"gold {i:03}") for i in range(31)
    }


def test_the_same_tables_give_the_same_bytes(store, tmp_path):
    other = open_store(str(tmp_path / "other"))
    for policy in ("gold", "ssr", "self_only", "random_mix"):
        made = [toy.bytes_of(one, plan(one, policy).execute(one), "targets.parquet") for one in (store, other)]
        assert made[0] == made[1]


def test_two_arms_of_one_policy_share_their_targets(store):
    assert plan(store).ref == plan(store).ref
    assert plan(store, seed=1).ref != plan(store).ref
    assert plan(store, "gold").ref != plan(store).ref


def test_verdicts_of_other_rows_are_refused(store):
    verdicts = [toy.verdict("a", "accept"), *(toy.verdict(i, "reject") for i in "bcx")]
    with pytest.raises(DataError, match="are not about the same rows"):
        plan(store, verdicts=verdicts).execute(store)


def test_nothing_to_teach_is_an_error(store):
    tables = samples((None, "unjudged"))
    with pytest.raises(StepError, match="policy self_only leaves no row to train on"):
        plan(store, "self_only", **tables).execute(store)
