"""The rewrite step over toy tables: which golds are rewritten, and with which prompt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy

from tasks.artifacts.store import Store, open_store
from tasks.config import AbstentionConfig, EngineConfig, JudgeConfig, ModelConfig, RewriteConfig, parse_recipe
from tasks.errors import DataError, StepError
from tasks.generate import JudgedOutputs, count_rewrites, rewrite
from tasks.generate.rewrite import TEMPLATES, rewrite_prompt
from tasks.judge import judge
from tasks.running.step import Planned

EXAMPLES = [*(toy.example(i) for i in "abcd"), toy.example("t", split="test")]
ANSWERS = {
    "outputs": [toy.output("a", "A"), toy.output("b", "B"), toy.output("b", "B2", 1), toy.output("c", "C"),
                toy.output("d", None)],
    "verdicts": [toy.verdict("a", "reject"), toy.verdict("b", "reject"), toy.verdict("b", "accept", 1),
                 toy.verdict("c", "unjudged"), toy.verdict("d", "unjudged")],
}  # fmt: skip
ENGINE = EngineConfig(batch_tokens=600)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def plan(store: Store, model: Path, *, examples: list[toy.Row] = EXAMPLES, config: dict[str, Any] | None = None,
         **judged: list[toy.Row]) -> Planned:  # fmt: skip
    inputs = {name: toy.put(store, name, rows) for name, rows in judged.items()}
    return dataclasses.replace(rewrite, launcher=None).plan(
        model=ModelConfig(base=str(model)), engine=ENGINE, config=RewriteConfig(max_new_tokens=4, **config or {}),
        examples=toy.put(store, "examples", examples), **inputs,
    )  # fmt: skip


def rewrites(store: Store, planned: Planned) -> list[toy.Row]:
    return pq.read_table(store.fetch(planned.execute(store)) / "outputs.parquet").to_pylist()


@pytest.mark.slow
def test_only_examples_without_an_accepted_answer_are_rewritten(store, tiny_model):
    planned = plan(store, tiny_model, **ANSWERS)
    rows = rewrites(store, planned)
    assert [(row["example_id"], row["kind"], row["sample_index"]) for row in rows] == [
        (example_id, "rewrite", 0) for example_id in "acd"
    ]
    assert all(row["text"] is not None for row in rows)
    counts = toy.counts_of(store, planned.ref)
    assert (counts["rows_in"], counts["rows_out"], counts["dropped.own_accepted"]) == (4, 3, 1)


@pytest.mark.slow
def test_without_verdicts_every_training_example_is_rewritten_and_paid_rows_are_used_again(store, tiny_model):
    plan(store, tiny_model, **ANSWERS).execute(store)
    planned = plan(store, tiny_model)
    assert [row["example_id"] for row in rewrites(store, planned)] == list("abcd")
    counts = toy.counts_of(store, planned.ref)
    assert (counts["rows_generated"], counts["rows_reused"]) == (1, 3)


@pytest.mark.slow
def test_nothing_to_rewrite_gives_an_empty_table_that_the_judge_takes(store, tiny_model):
    accepted = {"outputs": ANSWERS["outputs"][:1], "verdicts": [toy.verdict("a", "accept")]}
    planned = plan(store, tiny_model, examples=EXAMPLES[:1], **accepted)
    assert rewrites(store, planned) == []
    assert not list(Path(store.root).glob("rows/rewrites/*/part-*")), "an engine was asked"
    judging = judge.plan(
        config=JudgeConfig(), engine=ENGINE, abstention=AbstentionConfig(),
        examples=toy.put(store, "examples", EXAMPLES[:1]),
        outputs=planned,
    )  # fmt: skip
    assert pq.read_table(store.fetch(judging.execute(store)) / "verdicts.parquet").num_rows == 0


@pytest.mark.slow
def test_a_prompt_that_is_too_long_stays_a_row_with_its_problem(store, tiny_model):
    examples = [toy.example("a"), toy.example("b", golds=["word " * 600])]
    with pytest.raises(StepError, match=r"rewrite: 1 of 2 rows have no output.*rewrite\.max_failed_share"):
        plan(store, tiny_model, examples=examples).execute(store)
    rows = rewrites(store, plan(store, tiny_model, examples=examples, config={"max_failed_share": 0.5, "seed": 1}))
    assert [row["text"] is None for row in rows] == [False, True]
    assert rows[1]["problem"].startswith("context_overflow")


@pytest.mark.slow
def test_rewrites_can_be_counted_before_they_are_paid_for(store, tiny_model):
    def count(judged: JudgedOutputs | None) -> tuple[int, int]:
        return count_rewrites(store, planned_model, ENGINE, RewriteConfig(max_new_tokens=4), examples, judged)

    planned, planned_model = plan(store, tiny_model, **ANSWERS), ModelConfig(base=str(tiny_model))
    examples, outputs, verdicts = (
        store.fetch(planned.inputs[name]) / f"{name}.parquet" for name in ("examples", "outputs", "verdicts")
    )
    assert count(JudgedOutputs(outputs, verdicts)) == (3, 3)
    planned.execute(store)
    assert count(JudgedOutputs(outputs, verdicts)) == (3, 0)
    assert count(None) == (4, 1)


def test_the_gold_and_the_last_message_go_in_as_values_and_earlier_turns_stay():
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ gold }}?"},
    ]  # fmt: skip
    system, asked = rewrite_prompt(TEMPLATES.load("rewrite.v1"), messages, "{% raw %} Rome")
    assert system == messages[0]
    assert asked["role"] == "user"
    assert "Request:\n{{ gold }}?\n" in asked["content"]
    assert "Reference answer:\n{% raw %} Rome\n" in asked["content"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ question }}", "there is no variable 'question'. It may use prompt and gold"),
        ("{{ gold.__class__.__mro__ }}", "it fails"),
    ],
)
def test_a_template_that_asks_for_more_is_refused(tmp_path, text, message):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        rewrite_prompt(TEMPLATES.load(str(tmp_path / "mine.txt")), [{"role": "user", "content": "Q?"}], "gold")


def test_a_template_that_is_none_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(DataError, match=r"no template of this name, nor a text file\. Set it to one of rewrite\.v1"):
        TEMPLATES.load("rewrite.v9")
    (tmp_path / "bad.txt").write_text("{{ gold")
    with pytest.raises(DataError, match="line 1: not a Jinja template"):
        TEMPLATES.load(str(tmp_path / "bad.txt"))


def test_the_text_of_the_template_is_part_of_the_step_s_identity(tmp_path, store, monkeypatch):
    monkeypatch.setattr("tasks.generate.filling.model_digest", lambda model: "weights")
    mine = tmp_path / "mine.txt"
    mine.write_text("{{ prompt }} {{ gold }}")
    config = {"template": str(mine)}
    before = plan(store, tmp_path, config=config).ref
    assert plan(store, tmp_path, config=config).ref == before
    mine.write_text("{{ gold }} {{ prompt }}")
    assert plan(store, tmp_path, config=config).ref != before


def test_a_recipe_knows_whether_all_golds_are_rewritten():
    def recipe(*policies: str) -> Any:
        return parse_recipe({"arms": [{"name": p.replace("_", "-"), "policy": p} for p in policies]}, where="toy")

    assert not recipe("s3ft", "gold").rewrites_all()
    assert recipe("s3ft", "rewrite_all").rewrites_all()
