"""The select step over toy tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy

from tasks.artifacts.store import Store, open_store
from tasks.config import SelectConfig
from tasks.errors import DataError, StepError
from tasks.policies import POLICIES
from tasks.running.step import Planned, as_input
from tasks.selection import select
from tasks.tables import schema


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


EXAMPLES = [*(toy.example(i, golds=[f"gold {i}", "second gold"]) for i in "abcd"), toy.example("t", split="test")]
OUTPUTS = [toy.output("a", "A"), toy.output("b", "B"), toy.output("c", "C"), toy.output("d", None)]
VERDICTS = [
    toy.verdict("a", "accept"), toy.verdict("b", "reject"), toy.verdict("c", "unjudged"), toy.verdict("d", "unjudged"),
]  # fmt: skip


TABLE_OF = {"rewrites": "outputs", "rewrite_verdicts": "verdicts", "likelihoods": "likelihoods"}
MORE = {
    "rewrites": [toy.output(i, f"R{i}", kind="rewrite") for i in "abc"],
    "rewrite_verdicts": [
        toy.verdict("a", "accept", kind="rewrite"), toy.verdict("b", "accept", kind="rewrite"),
        toy.verdict("c", "reject", kind="rewrite"),
    ],
    "likelihoods": [
        toy.likelihood("a", 0.5), *(toy.likelihood(i, n + 1.0, kind="gold") for n, i in enumerate("abcd")),
    ],
}  # fmt: skip
MORE["likelihoods"].sort(key=lambda row: (row["example_id"], row["kind"]))


def plan(
    store: Store, policy: str = "ssr", seed: int = 0, *, examples: list[toy.Row] = EXAMPLES,
    outputs: list[toy.Row] = OUTPUTS, verdicts: list[toy.Row] = VERDICTS, **more: list[toy.Row],
) -> Planned:  # fmt: skip
    config = SelectConfig(policy=policy, seed=seed)
    given = {name: toy.put(store, TABLE_OF[name], more.get(name, MORE[name])) for name in config.reads()}
    return select.plan(
        config=config, examples=toy.put(store, "examples", examples), outputs=toy.put(store, "outputs", outputs),
        verdicts=toy.put(store, "verdicts", verdicts), **given,
    )  # fmt: skip


def planned_after(store: Store, seen: list[toy.Row], **more: Any) -> Planned:
    """The plan of a run that leaves out what an earlier one has seen."""
    parts = {name: as_input(ref) for name, ref in plan(store, **more).inputs.items()}
    config = SelectConfig(policy=more.get("policy", "ssr"))
    return select.plan(config=config, seen=toy.put(store, "examples", seen), **parts)


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
    for policy in POLICIES:
        assert "t" not in taught(targets(store, plan(store, policy)))


def test_gold_teaches_the_first_gold_everywhere(store):
    assert taught(targets(store, plan(store, "gold"))) == {i: ("gold", f"gold {i}") for i in "abcd"}


def test_self_only_leaves_rows_without_an_output_out_and_counts_them(store):
    made = plan(store, "self_only").execute(store)
    assert toy.counts_of(store, made) == {
        "rows_in": 4, "rows_out": 3, "dropped.no_output": 1, "target.gold": 0, "target.rewrite": 0,
        "target.self": 3,
    }  # fmt: skip


def test_every_training_row_is_accounted_for(store):
    made = plan(store).execute(store)
    assert toy.counts_of(store, made) == {
        "rows_in": 4, "rows_out": 4, "target.gold": 3, "target.rewrite": 0, "target.self": 1,
    }  # fmt: skip


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
    verdicts = [toy.verdict("a", "accept", kind="rewrite")]
    made = plan(store, examples=[toy.example("a")], outputs=outputs, verdicts=verdicts)
    assert taught(targets(store, made)) == {"a": ("gold", "gold a")}


def test_s3ft_teaches_the_own_output_then_the_own_rewrite_then_the_gold(store):
    assert taught(targets(store, plan(store, "s3ft"))) == {
        "a": ("self", "A"), "b": ("rewrite", "Rb"), "c": ("gold", "gold c"), "d": ("gold", "gold d"),
    }  # fmt: skip


def test_rewrite_all_teaches_the_accepted_rewrites_and_counts_them(store):
    made = plan(store, "rewrite_all")
    assert taught(targets(store, made)) == {
        "a": ("rewrite", "Ra"), "b": ("rewrite", "Rb"), "c": ("gold", "gold c"), "d": ("gold", "gold d"),
    }  # fmt: skip
    counts = toy.counts_of(store, made.ref)
    assert (counts["target.self"], counts["target.rewrite"], counts["target.gold"]) == (0, 2, 2)


@pytest.mark.parametrize("policy", ["s3ft", "rewrite_all"])
def test_an_empty_table_of_rewrites_leaves_the_gold(store, policy):
    rows = targets(store, plan(store, policy, rewrites=[], rewrite_verdicts=[]))
    assert {row["target_type"] for row in rows if row["example_id"] != "a"} == {"gold"}
    assert rows[1]["reason"].endswith("no rewrite")


def test_a_failed_rewrite_leaves_the_gold_and_says_so(store):
    rewrites = [toy.output("b", None, kind="rewrite")]
    verdicts = [toy.verdict("b", "unjudged", kind="rewrite", reason="no output (timeout)")]
    row = targets(store, plan(store, "s3ft", rewrites=rewrites, rewrite_verdicts=verdicts))[1]
    assert (row["target_type"], row["target"]) == ("gold", "gold b")
    assert row["reason"] == "reject: because reject; rewrite unjudged: no output (timeout)"


def test_rewrites_of_a_few_rows_meet_their_examples_across_batches(store, monkeypatch):
    ids = [f"{i:03}" for i in range(60)]
    rewritten = ids[5:40:7]
    planned = plan(
        store, "s3ft", examples=[toy.example(i) for i in ids], outputs=[toy.output(i, f"own {i}") for i in ids],
        verdicts=[toy.verdict(i, "reject") for i in ids],
        rewrites=[toy.output(i, f"R{i}", kind="rewrite") for i in rewritten],
        rewrite_verdicts=[toy.verdict(i, "accept", kind="rewrite") for i in rewritten],
    )  # fmt: skip
    read = schema.read_batches
    monkeypatch.setattr(schema, "read_batches", lambda *args, **options: read(*args, **options | {"batch_rows": 3}))
    assert taught(targets(store, planned)) == {
        i: ("rewrite", f"R{i}") if i in rewritten else ("gold", f"gold {i}") for i in ids
    }


def test_min_nll_teaches_the_accepted_answer_that_the_base_finds_most_probable(store):
    tables = samples(("first", "accept"), ("second", "reject"), ("third", "accept"), ("fourth", "accept"))
    nlls = [toy.likelihood("a", nll, i) for i, nll in ((0, 0.9), (2, 0.2), (3, 0.4))]
    (row,) = targets(
        store, plan(store, "min_nll", **tables, likelihoods=[*nlls, toy.likelihood("a", 3.0, kind="gold")])
    )
    assert (row["target"], row["target_type"], row["base_nll"]) == ("third", "self", 0.2)
    assert row["reason"] == "accept: because accept; lowest base_nll"


def test_of_equally_probable_answers_the_lower_sample_index_is_taught(store):
    tables = samples(("first", "reject"), ("second", "accept"), ("third", "accept"))
    nlls = [toy.likelihood("a", 0.5, i) for i in (1, 2)]
    assert targets(store, plan(store, "min_nll", **tables, likelihoods=nlls))[0]["target"] == "second"


def test_an_answer_that_could_not_be_measured_loses_to_one_that_was(store):
    tables = samples(("first", "accept"), ("second", "accept"))
    nlls = [toy.likelihood("a", None, 0), toy.likelihood("a", 7.0, 1)]
    assert targets(store, plan(store, "min_nll", **tables, likelihoods=nlls))[0]["target"] == "second"


def test_where_no_answer_could_be_measured_the_first_accepted_one_is_taught(store):
    tables = samples(("first", "reject"), ("second", "accept"), ("third", "accept"))
    nlls = [toy.likelihood("a", None, i) for i in (1, 2)]
    (row,) = targets(store, plan(store, "min_nll", **tables, likelihoods=nlls))
    assert (row["target"], row["base_nll"]) == ("second", None)
    assert row["reason"] == "accept: because accept; base_nll unknown"


def test_min_nll_without_an_accepted_answer_teaches_the_gold_with_its_likelihood(store):
    row = targets(store, plan(store, "min_nll"))[1]
    assert (row["target"], row["target_type"], row["base_nll"]) == ("gold b", "gold", 2.0)


def test_a_table_that_the_policy_does_not_read_is_refused(store):
    planned = plan(store, "ssr")
    with pytest.raises(StepError, match="policy ssr reads"):
        dataclasses.replace(planned, inputs=planned.inputs | {"likelihoods": planned.inputs["outputs"]}).execute(store)


def test_a_policy_that_reads_a_table_it_does_not_declare_fails_and_is_told_what_to_do(store, monkeypatch):
    undeclared = dataclasses.replace(POLICIES["s3ft"], reads=())
    monkeypatch.setitem(POLICIES, "s3ft", undeclared)
    with pytest.raises(StepError, match=r"policy s3ft reads a column .*rewrite_verdict.* Add the table to `reads`"):
        plan(store, "s3ft").execute(store)


def test_fewer_outputs_than_training_rows_are_refused(store):
    with pytest.raises(DataError, match="fewer outputs than training rows"):
        plan(store, outputs=OUTPUTS[:3], verdicts=VERDICTS[:3]).execute(store)


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
    for policy in POLICIES:
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


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_that_an_earlier_run_has_trained_on_are_left_out_and_counted(store: Store, policy: str) -> None:
    seen = [toy.example("a"), toy.example("c"), toy.example("d", split="test"), toy.example("zz")]
    planned = planned_after(store, seen, policy=policy)
    found = {row["example_id"]: row for row in targets(store, planned)}
    # d was a test row then; self_only has no output of it.
    assert set(found) == ({"b"} if policy == "self_only" else {"b", "d"})
    everything = {row["example_id"]: row for row in targets(store, plan(store, policy))}
    if policy != "random_mix":  # which draws as many as there are accepted ones among the new rows
        assert all(found[example_id] == everything[example_id] for example_id in found)
    counts = toy.counts_of(store, planned.ref)
    assert counts["dropped.seen"] == 2
    assert counts["rows_in"] == 4


def test_no_new_row_is_no_failure(store: Store) -> None:
    planned = planned_after(store, EXAMPLES)
    assert targets(store, planned) == []
    assert toy.counts_of(store, planned.ref)["dropped.seen"] == 4


def test_seen_rows_are_found_across_batches(store: Store) -> None:
    ids = [f"{i:05}" for i in range(3 * schema.BATCH_ROWS)]
    rows = {
        "examples": [toy.example(i) for i in ids], "outputs": [toy.output(i, "text") for i in ids],
        "verdicts": [toy.verdict(i, "accept") for i in ids],
    }  # fmt: skip
    new = {ids[5], ids[2 * schema.BATCH_ROWS + 7], ids[-1]}  # none in the second batch
    seen = [toy.example(i) for i in ids if i not in new]
    assert {row["example_id"] for row in targets(store, planned_after(store, seen, **rows))} == new
