"""Each policy on a toy table of candidates; and what a declaration of a policy must hold."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.policies import CANDIDATE, POLICIES, TargetChoice, target_policy
from tasks.selection.candidates import drawn_blindly


def table(example_ids: list[str], **columns: list[Any]) -> pa.Table:
    """A table of candidates; what is not given is null."""
    nulls = [None] * len(example_ids)
    columns["example_id"] = example_ids
    return pa.table({field.name: pa.array(columns.get(field.name, nulls), field.type) for field in CANDIDATE})


# Accepted, rejected, unjudged, failed, empty, without a row in outputs.
CANDIDATES = table(
    ["a", "b", "c", "d", "e", "f"],
    text=["A", "B", "C", None, "", None],
    verdict=["accept", "reject", "unjudged", "unjudged", "reject", None],
    verdict_reason=["says so", "wrong", "no rule", "no output (timeout)", "empty", None],
)
# The same rows with rewrites: accepted, accepted, rejected, failed, unjudged, accepted.
REWRITTEN = table(
    ["a", "b", "c", "d", "e", "f"],
    text=["A", "B", "C", None, "", None],
    verdict=["accept", "reject", "unjudged", "unjudged", "reject", None],
    verdict_reason=["says so", "wrong", "no rule", "no output (timeout)", "empty", None],
    rewrite_text=["RA", "RB", "RC", None, "RE", "RF"],
    rewrite_verdict=["accept", "accept", "reject", "unjudged", "unjudged", "accept"],
    rewrite_verdict_reason=[
        "says gold",
        "says gold",
        "lost it",
        "no output (context_overflow)",
        "no rule",
        "says gold",
    ],
)


def chosen(policy: str, seed: int = 0, table: pa.Table = CANDIDATES) -> TargetChoice:
    drawn = drawn_blindly((table.slice(i, 2) for i in range(0, table.num_rows, 2)), seed)
    with_draw = table.drop_columns(["drawn"]).append_column("drawn", pc.is_in(table.column("example_id"), drawn))
    return POLICIES[policy].choose(with_draw.select(POLICIES[policy].columns))


def taught(choice: TargetChoice, kind: str = "self", table: pa.Table = CANDIDATES) -> set[str]:
    pairs = zip(table["example_id"].to_pylist(), choice.target_type.to_pylist(), strict=True)
    return {example_id for example_id, target_type in pairs if target_type == kind}


def own(choice: TargetChoice, table: pa.Table = CANDIDATES) -> set[str]:
    kept = choice.kept.to_pylist() if choice.kept is not None else [True] * table.num_rows
    return taught(choice, "self", table).intersection(
        i for i, is_kept in zip(table["example_id"].to_pylist(), kept, strict=True) if is_kept
    )


def many(n: int, n_accepted: int) -> pa.Table:
    states = ["accept"] * n_accepted + ["reject"] * (n - n_accepted)
    return table([f"{i:04}" for i in range(n)], text=["x"] * n, verdict=states, verdict_reason=states)


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


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "self_only"])
def test_the_other_policies_keep_every_row(policy):
    assert chosen(policy).kept is None


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("candidates", [CANDIDATES, REWRITTEN], ids=["answers", "rewrites"])
def test_no_policy_leaves_a_choice_or_its_reason_open(policy, candidates):
    choice = chosen(policy, table=candidates)
    assert len(choice.target_type) == len(choice.reason) == candidates.num_rows
    assert choice.target_type.null_count == choice.reason.null_count == 0
    assert set(choice.target_type.to_pylist()) <= {"self", "rewrite", "gold"}


def test_s3ft_teaches_a_rewrite_only_where_the_own_output_was_not_accepted():
    choice = chosen("s3ft", table=REWRITTEN)
    assert choice.target_type.to_pylist() == ["self", "rewrite", "gold", "gold", "gold", "rewrite"]


def test_s3ft_says_what_became_of_both():
    assert chosen("s3ft", table=REWRITTEN).reason.to_pylist() == [
        "accept: says so",
        "reject: wrong; rewrite accept: says gold",
        "unjudged: no rule; rewrite reject: lost it",
        "unjudged: no output (timeout); rewrite unjudged: no output (context_overflow)",
        "reject: empty; rewrite unjudged: no rule",
        "no output; rewrite accept: says gold",
    ]


def test_s3ft_without_a_single_rewrite_is_ssr():
    choice, ssr = chosen("s3ft"), chosen("ssr")
    assert choice.target_type.to_pylist() == ssr.target_type.to_pylist()
    assert choice.reason.to_pylist()[1] == "reject: wrong; no rewrite"


def test_rewrite_all_teaches_accepted_rewrites_also_where_the_own_output_was_accepted():
    choice = chosen("rewrite_all", table=REWRITTEN)
    assert choice.target_type.to_pylist() == ["rewrite", "rewrite", "gold", "gold", "gold", "rewrite"]
    assert choice.reason.to_pylist()[:4] == [
        "rewrite accept: says gold", "rewrite accept: says gold", "rewrite reject: lost it",
        "rewrite unjudged: no output (context_overflow)",
    ]  # fmt: skip


def test_min_nll_teaches_what_ssr_does_of_one_candidate_a_row_and_says_whether_it_was_measured():
    place = CANDIDATES.column_names.index("base_nll")
    measured = CANDIDATES.set_column(place, "base_nll", pa.array([1.5, None, None, None, None, None], pa.float64()))
    for candidates, said in (
        (measured, "accept: says so; lowest base_nll"),
        (CANDIDATES, "accept: says so; base_nll unknown"),
    ):
        choice, ssr = chosen("min_nll", table=candidates), chosen("ssr", table=candidates)
        assert choice.target_type.to_pylist() == ssr.target_type.to_pylist()
        assert choice.reason.to_pylist() == [said, *ssr.reason.to_pylist()[1:]]


@pytest.mark.parametrize("n_accepted", [0, 37, 100])
def test_random_mix_teaches_as_many_outputs_as_ssr(n_accepted):
    rows = many(100, n_accepted)
    assert len(own(chosen("random_mix", table=rows), rows)) == n_accepted
    assert len(own(chosen("ssr", table=rows), rows)) == n_accepted


def test_random_mix_draws_without_looking_at_the_verdict():
    rows = many(1_000, 500)
    n_accepted_drawn = sum(int(i) < 500 for i in own(chosen("random_mix", table=rows), rows))
    assert 200 < n_accepted_drawn < 300


def test_random_mix_draws_only_rows_with_an_output():
    for seed in range(20):
        assert own(chosen("random_mix", seed)) <= {"a", "b", "c"}


def test_another_seed_draws_others_and_the_same_seed_the_same():
    rows = many(100, 50)
    draws = [own(chosen("random_mix", seed, rows), rows) for seed in (0, 1, 0)]
    assert draws[0] != draws[1]
    assert draws[0] == draws[2]


def test_the_order_of_rows_does_not_change_the_draw():
    rows = many(100, 50)
    backwards = rows.take(list(range(99, -1, -1)))
    assert own(chosen("random_mix", 0, rows), rows) == own(chosen("random_mix", 0, backwards), backwards)


# --- what a declaration holds ---

ROW = table(["a"])
TABLES = {"rewrites": "rewrite_", "likelihoods": "base_nll", "draw": "drawn"}  # by the names of their columns


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_reads_the_tables_that_it_declares_and_no_others(policy):
    """Tried by leaving out the columns of each table: a function that reads them does not run without."""
    read = set()
    for name, part in TABLES.items():
        try:
            POLICIES[policy].choose(ROW.drop_columns([column for column in ROW.column_names if part in column]))
        except KeyError:
            read.add(name)
    assert read == set(POLICIES[policy].reads)


DECLARED: dict[str, Any] = {"name": "toy", "title": "Toy", "colour": "#123456", "description": "the gold"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"reads": ["rewrite"]},
            r"target policy toy: reads=\['rewrite'\]: no such table. Known: rewrites, likelihoods",
        ),
        ({"reads": "rewrites"}, "no such table"),
        ({"name": "ssr"}, "target policy ssr: policy ssr has the same name. Choose another."),
        ({"title": "SSR"}, "target policy toy: policy ssr has the same title. Choose another."),
        ({"colour": "#3b82f6"}, "target policy toy: policy ssr has the same colour. Choose another."),
        ({"title": ""}, "target policy toy: title='' does not match"),
        ({"colour": "blue"}, "target policy toy: colour='blue' does not match"),
        ({"description": "the gold."}, "target policy toy: description='the gold.' does not match"),
        ({"name": "To Y"}, "target policy To Y: name='To Y' does not match"),
        ({"title": ...}, "missing 1 required keyword-only argument: 'title'"),
        ({"description": ...}, "missing 1 required keyword-only argument: 'description'"),
    ],
)
def test_a_declaration_that_is_not_complete_is_an_error_at_import(changed, message):
    declared = {name: value for name, value in (DECLARED | changed).items() if value is not ...}
    before = dict(POLICIES)
    with pytest.raises(TypeError, match=message):
        target_policy(declared.pop("name"), **declared)(POLICIES["gold"].choose)
    assert before == POLICIES


def test_the_name_of_an_arm_follows_from_the_title():
    assert [policy.arm_name for policy in POLICIES.values()] == ["sft", *list(POLICIES)[1:]]
