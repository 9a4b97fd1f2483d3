"""The shipped weights can do what fine-tuning needs them to be able to do."""

from __future__ import annotations

import pytest

from tasks.config import ModelConfig
from tasks.lab import gates, world
from tasks.lab.build import MAX_BYTES
from tasks.models import LAB_MODEL, load_model, load_tokenizer


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    model = ModelConfig(base="lab")
    return gates.measure(gates.answerer(load_model(model), load_tokenizer(model)), n=100, seed=1)


@pytest.mark.slow
def test_the_model_knows_when_a_document_does_not_hold_the_answer(figures: dict[str, float]) -> None:
    assert gates.yes_no_accuracy(figures) >= gates.YES_NO_GATE


@pytest.mark.slow
def test_the_model_answers_what_the_document_holds(figures: dict[str, float]) -> None:
    assert gates.recall(figures) >= gates.RECALL_GATE - 0.03  # 200 probes: two standard errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", world.KINDS)
def test_the_model_minds_of_whom_something_is_told(figures: dict[str, float], kind: str) -> None:
    assert figures[f"yes_no/{kind}/distractor"] >= 0.8
    assert figures[f"recall_rivals/{kind}"] >= 0.9


@pytest.mark.slow
def test_there_is_something_to_forget(figures: dict[str, float]) -> None:
    assert min(figures["facts"], figures["creatures"]) >= 0.9
    assert figures["sums"] >= 0.8


def test_the_weights_are_small_safetensors() -> None:
    assert (LAB_MODEL / "model.safetensors").stat().st_size <= MAX_BYTES
    assert not list(LAB_MODEL.glob("*.bin"))
