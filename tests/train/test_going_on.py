"""Training that goes on from an adapter instead of a fresh one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import toy
import toy_targets
from safetensors.numpy import load_file

from tasks.artifacts.store import Ref, Store, open_store
from tasks.config import ModelConfig, TrainConfig
from tasks.errors import DataError
from tasks.running.step import as_input
from tasks.tables import schema
from tasks.train import train

pytestmark = pytest.mark.slow

TRAIN = dataclasses.replace(train, launcher=None)  # in this process, which has torch already
CONFIG: dict[str, Any] = {"epochs": 1, "batch_size": 4, "max_length": 256, "lora_rank": 4}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def trained(store: Store, model: Path, names: str, start: Ref | None = None, **config: Any) -> Ref:
    going_on = {"start": as_input(start)} if start else {}
    planned = TRAIN.plan(
        model=ModelConfig(base=str(model)), config=TrainConfig(**CONFIG | config),
        targets=toy_targets.put(store, names), **going_on,
    )  # fmt: skip
    return planned.execute(store)


def learned(store: Store, ref: Ref) -> dict[str, Any]:
    weights = load_file(store.fetch(ref) / "adapter" / "adapter_model.safetensors")
    return {name: matrix for name, matrix in weights.items() if "lora_B" in name}


def test_it_begins_with_the_weights_of_the_adapter(store: Store, tiny_model: Path) -> None:
    # Four passes, and then one step of a vanishing rate: what was learned before is still there.
    first = trained(store, tiny_model, "abcdefgh", epochs=4, learning_rate=1e-3)
    second = trained(store, tiny_model, "ijkl", first, learning_rate=1e-7)
    before, after = learned(store, first), learned(store, second)
    assert before.keys() == after.keys()
    assert all(abs(before[name] - after[name]).max() < 1e-6 for name in before)
    assert any((before[name] != after[name]).any() for name in before)
    assert max(abs(matrix).max() for matrix in before.values()) > 1e-4
    counts = toy.counts_of(store, second)
    assert (counts["rows_in"], counts["optimiser_steps"]) == (4, 1)
    assert counts["trainable_parameters"] == toy.counts_of(store, first)["trainable_parameters"]


def test_the_dropout_of_the_recipe_is_the_one_that_is_used(store: Store, tiny_model: Path) -> None:
    first = trained(store, tiny_model, "abcd", lora_dropout=0.05)
    second = trained(store, tiny_model, "efgh", first, lora_dropout=0.2)
    config = json.loads((store.fetch(second) / "adapter" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rank": 8}, "train.lora_rank=8: the promoted adapter that training goes on from has 4"),
        ({"lora_alpha": 8}, "train.lora_alpha=8: the promoted adapter that training goes on from has 32"),
        ({"target_modules": "q_proj"}, "train.target_modules=q_proj: the promoted adapter that training goes on from"),
    ],
)
def test_another_shape_than_the_adapter_has_is_refused(
    store: Store, tiny_model: Path, change: dict[str, Any], message: str
) -> None:
    first = trained(store, tiny_model, "abcd")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        trained(store, tiny_model, "efgh", first, **change)


def test_without_a_new_row_the_adapter_is_handed_on(store: Store, tiny_model: Path) -> None:
    first = trained(store, tiny_model, "abcd")
    second = trained(store, tiny_model, "", first)
    assert first != second
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert toy.bytes_of(store, first, f"adapter/{name}") == toy.bytes_of(store, second, f"adapter/{name}")
    assert toy.counts_of(store, second)["optimiser_steps"] == 0
    metrics = schema.read_table(store.fetch(second) / "metrics.parquet", schema.METRICS)
    assert metrics.num_rows == 0


def test_a_fresh_adapter_without_a_row_is_refused(store: Store, tiny_model: Path) -> None:
    with pytest.raises(DataError, match="none of 0 rows can be trained on"):
        trained(store, tiny_model, "")
