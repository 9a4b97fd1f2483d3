"""What training makes of a GPU's memory: packed rows, and the word when it does not do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy
import toy_targets

from tasks.artifacts.store import Store, open_store
from tasks.config import ModelConfig, TrainConfig
from tasks.errors import StepError
from tasks.train import train

TRAIN = dataclasses.replace(train, launcher=None)  # in this process
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 2, "max_length": 64, "lora_rank": 4}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.slow
def test_packed_rows_are_all_trained_in_fewer_steps(store: Store, tiny_model: Path) -> None:
    targets, model = toy_targets.put(store, "abcdefghijklmnop"), ModelConfig(base=str(tiny_model))
    apart, packed = (
        toy.counts_of(
            store, TRAIN.plan(model=model, config=TrainConfig(**SMALL, packing=on), targets=targets).execute(store)
        )
        for on in (False, True)
    )
    assert apart["optimiser_steps"] == 16
    assert 1 < packed["optimiser_steps"] < 8
    for count in ("rows_out", "trained_tokens_per_epoch"):
        assert packed[count] == apart[count]


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"gradient_checkpointing": False}, "Set train.gradient_checkpointing=true"),
        ({"batch_size": 8, "micro_batch_size": 8}, "a pass of 8 rows .* Set train.micro_batch_size=4"),
        ({"micro_batch_size": 1}, "Set train.load_in_4bit=true"),
    ],
)
def test_a_gpu_out_of_memory_is_told_with_what_to_set(
    store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], remedy: str
) -> None:
    import torch

    def made(model: ModelConfig, config: TrainConfig, tokenizer: Any, rows: Any, *, arguments: Any, **_: Any) -> Any:
        def run(**_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")

        return SimpleNamespace(train=run, args=arguments)

    monkeypatch.setitem(TRAIN.body.__globals__, "build_trainer", made)
    planned = TRAIN.plan(
        model=ModelConfig(base=str(tiny_model)), config=TrainConfig(**SMALL | config),
        targets=toy_targets.put(store, "abcdefgh"),
    )  # fmt: skip
    with pytest.raises(StepError, match=rf"{remedy}.*2.00 GiB") as found:
        planned.execute(store)
    assert "More words" not in str(found.value)
