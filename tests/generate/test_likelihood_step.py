"""The likelihood step: what is measured, and that the numbers are the model's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import toy

from tasks.artifacts.store import Store, open_store
from tasks.config import EngineConfig, GenerateConfig, ModelConfig
from tasks.engines import Likelihood
from tasks.generate import likelihood
from tasks.generate.likelihood import _stored
from tasks.running.step import Planned

EXAMPLES = [*(toy.example(i, golds=[f"gold {i}", "second gold"]) for i in "abc"), toy.example("t", split="test")]
OUTPUTS = [
    toy.output("a", "the first"), toy.output("a", "another one", 1), toy.output("a", "the first", 2),
    toy.output("b", "no"), toy.output("c", None),
]  # fmt: skip
VERDICTS = [
    *(toy.verdict("a", "accept", i) for i in range(3)), toy.verdict("b", "reject"), toy.verdict("c", "unjudged"),
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def plan(store: Store, model: Path, *, share: float = 0.05, **changed: list[toy.Row]) -> Planned:
    tables = {"examples": EXAMPLES, "outputs": OUTPUTS, "verdicts": VERDICTS} | changed
    return dataclasses.replace(likelihood, launcher=None).plan(
        model=ModelConfig(base=str(model)), engine=EngineConfig(batch_tokens=600),
        config=GenerateConfig(max_failed_share=share),
        **{name: toy.put(store, name, rows) for name, rows in tables.items()},
    )  # fmt: skip


def measured(store: Store, planned: Planned) -> list[toy.Row]:
    return pq.read_table(store.fetch(planned.execute(store)) / "likelihoods.parquet").to_pylist()


def directly(model: Path, messages: list[dict[str, str]], answer: str) -> float:
    """The mean cross-entropy of the answer and its end behind the prompt, one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    n_prompt = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
    labels = ids.clone()
    labels[:, :n_prompt] = -100
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        return float(loaded(input_ids=ids, labels=labels).loss)


@pytest.mark.slow
def test_accepted_answers_and_golds_are_measured_as_the_model_finds_them(store, tiny_model):
    planned = plan(store, tiny_model)
    rows = measured(store, planned)
    assert [(row["example_id"], row["kind"], row["sample_index"]) for row in rows] == [
        ("a", "answer", 0), ("a", "answer", 1), ("a", "answer", 2), ("a", "gold", 0),
        ("b", "gold", 0), ("c", "gold", 0),
    ]  # fmt: skip
    texts = ["the first", "another one", "the first", "gold a", "gold b", "gold c"]
    asked = {row["example_id"]: row["messages"] for row in EXAMPLES}
    for row, text in zip(rows, texts, strict=True):
        assert row["base_nll"] == pytest.approx(directly(tiny_model, asked[row["example_id"]], text), abs=1e-4)
    assert rows[0]["base_nll"] == rows[2]["base_nll"], "equal texts are one measurement"
    counts = toy.counts_of(store, planned.ref)
    assert (counts["rows_generated"], counts["rows_reused"], counts["rows_failed"]) == (5, 1, 0)


@pytest.mark.slow
def test_what_was_measured_once_is_not_measured_again(store, tiny_model):
    plan(store, tiny_model).execute(store)
    verdicts = [*VERDICTS[:3], toy.verdict("b", "accept"), VERDICTS[4]]
    planned = plan(store, tiny_model, verdicts=verdicts)
    assert len(measured(store, planned)) == 7
    counts = toy.counts_of(store, planned.ref)
    assert (counts["rows_generated"], counts["rows_reused"]) == (1, 6)


@pytest.mark.slow
def test_a_text_that_cannot_be_measured_is_a_counted_row(store, tiny_model):
    examples = [toy.example("a", golds=["word " * 600]), *EXAMPLES[1:]]
    planned = plan(store, tiny_model, share=0.2, examples=examples)
    row = measured(store, planned)[3]
    assert (row["kind"], row["base_nll"]) == ("gold", None)
    assert row["problem"].startswith("context_overflow")
    assert toy.counts_of(store, planned.ref)["rows_failed"] == 1


@pytest.mark.slow
def test_rewrites_are_measured_as_any_output(store, tiny_model):
    rewrites = [toy.output("b", "said anew", kind="rewrite")]
    verdicts = [toy.verdict("b", "accept", kind="rewrite")]
    rows = measured(store, plan(store, tiny_model, outputs=rewrites, verdicts=verdicts))
    assert [(row["example_id"], row["kind"]) for row in rows] == [
        ("a", "gold"), ("b", "gold"), ("b", "rewrite"), ("c", "gold"),
    ]  # fmt: skip


@pytest.mark.parametrize("nll", [float("nan"), float("inf")])
def test_a_likelihood_that_is_no_number_is_a_failure(nll):
    row = _stored(Likelihood("key", nll))
    assert row["base_nll"] is None
    assert row["problem"].startswith("not_finite")
