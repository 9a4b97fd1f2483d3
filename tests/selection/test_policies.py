"""Each policy on a toy table of candidates."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tasks.config import SelectConfig
from tasks.selection.policies import Choice, policy_of

# Accepted, rejected, unjudged, failed, empty, without a row in outputs.
CANDIDATES = pa.table(
    {
        "example_id": ["a", "b", "c", "d", "e", "f"],
        "text": pa.array(["A", "B", "C", None, "", None]),
        "verdict": pa.array(["accept", "reject", "unjudged", "unjudged", "reject", None]),
        "verdict_reason": pa.array(["says so", "wrong", "no rule", "no output (timeout)", "empty", None]),
    }
)


def chosen(policy: str, seed: int = 0, table: pa.Table = CANDIDATES) -> Choice:
    everything = [table.slice(i, 2) for i in range(0, table.num_rows, 2)]
    return policy_of(SelectConfig(policy=policy, seed=seed), lambda: everything)(table)


def own(choice: Choice, table: pa.Table = CANDIDATES) -> set[str]:
    return {i for i, is_own in zip(table["example_id"].to_pylist(), choice.own.to_pylist(), strict=True) if is_own}


def many(n: int, n_accepted: int) -> pa.Table:
    states = ["accept"] * n_accepted + ["reject"] * (n - n_accepted)
    return pa.table(
        {"example_id": [f"{i:04}" for i in range(n)], "text": ["x"] * n, "verdict": states, "verdict_reason": states}
    )


def test_gold_teaches_no_output():
    choice = chosen("gold")
    assert own(choice) == set()
    assert set(choice.reason.to_pylist()) == {"policy gold"}


def test_ssr_teaches_the_accepted_outputs_and_says_why():
    choice = chosen("ssr")
    assert own(choice) == {"a"}
    assert choice.reason.to_pylist() == [
        "accept: says so", "reject: wrong", "unjudged: no rule", "unjudged: no output (timeout)", "reject: empty",
        "no output",
    ]  # fmt: skip


def test_self_only_keeps_the_rows_with_an_output_and_no_others():
    choice = chosen("self_only")
    assert own(choice) == {"a", "b", "c"}
    assert choice.kept is not None
    assert choice.kept.to_pylist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("policy", ["gold", "ssr", "random_mix"])
def test_the_other_policies_keep_every_row(policy):
    assert chosen(policy).kept is None


@pytest.mark.parametrize("policy", ["gold", "ssr", "self_only", "random_mix"])
def test_no_policy_leaves_a_choice_or_its_reason_open(policy):
    choice = chosen(policy)
    assert len(choice.own) == len(choice.reason) == CANDIDATES.num_rows
    assert choice.own.null_count == choice.reason.null_count == 0


@pytest.mark.parametrize("n_accepted", [0, 37, 100])
def test_random_mix_teaches_as_many_outputs_as_ssr(n_accepted):
    table = many(100, n_accepted)
    assert len(own(chosen("random_mix", table=table), table)) == n_accepted
    assert len(own(chosen("ssr", table=table), table)) == n_accepted


def test_random_mix_draws_without_looking_at_the_verdict():
    table = many(1_000, 500)
    n_accepted_drawn = sum(int(i) < 500 for i in own(chosen("random_mix", table=table), table))
    assert 200 < n_accepted_drawn < 300


def test_random_mix_draws_only_rows_with_an_output():
    for seed in range(20):
        assert own(chosen("random_mix", seed)) <= {"a", "b", "c"}


def test_another_seed_draws_others_and_the_same_seed_the_same():
    table = many(100, 50)
    draws = [own(chosen("random_mix", seed, table), table) for seed in (0, 1, 0)]
    assert draws[0] != draws[1]
    assert draws[0] == draws[2]


def test_the_order_of_rows_does_not_change_the_draw():
    table = many(100, 50)
    backwards = table.take(list(range(99, -1, -1)))
    assert own(chosen("random_mix", 0, table), table) == own(chosen("random_mix", 0, backwards), backwards)
