"""`ssr merge` on adapters that were really trained: what it writes says what base and adapter say together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import toy_targets

from flows.runs.merging import ORIGIN, merge_arm
from flows.runs.records import RunRecord, StepRecord
from tasks.artifacts.store import Store, open_store
from tasks.config import ModelConfig, RunConfig, TrainConfig
from tasks.errors import ConfigError, DataError
from tasks.models import load_model, load_tokenizer
from tasks.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("merging") / "store"))


@pytest.fixture(scope="module")
def record(store: Store, tiny_model: Path) -> RunRecord:
    """A run with two arms, trained to differ."""
    model = ModelConfig(base=str(tiny_model))
    config = TrainConfig(
        learning_rate=0.05, epochs=4, batch_size=4, micro_batch_size=4, max_length=256, lora_rank=4
    )  # fmt: skip
    steps = []
    for arm, rows in (("sft", "abcd"), ("ssr", "efgh")):
        here = dataclasses.replace(train, launcher=None)  # in this process, which has torch already
        planned = here.plan(f"train {arm}", model=model, config=config, targets=toy_targets.put(store, rows))
        steps.append(StepRecord(planned.label, planned.execute(store), planned.identity))
    recipe = RunConfig(model=model).model_dump(mode="json")
    return RunRecord("toy-1", "toy", "2026-11-27T00:00:00+00:00", recipe, steps=tuple(steps))


def test_the_merged_model_says_what_base_and_adapter_say(
    store: Store, record: RunRecord, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    trained = merge_arm(store, record, "ssr", tmp_path / "merged")
    base, merged = ModelConfig(base=str(tiny_model)), ModelConfig(base=str(tmp_path / "merged"))
    tokenizer = load_tokenizer(merged)
    assert tokenizer.chat_template == load_tokenizer(base).chat_template
    chat = [{"role": "user", "content": "Q e?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        said = [
            load_model(model, adapter)(**ids).logits
            for model, adapter in ((base, None), (base, store.fetch(trained.ref) / "adapter"), (merged, None))
        ]
    torch.testing.assert_close(said[2], said[1], atol=1e-4, rtol=1e-4)
    assert (said[2] - said[0]).abs().max() > 0.1  # the adapter says something else than the base
    origin = json.loads((tmp_path / "merged" / ORIGIN).read_text())
    assert (origin["run"], origin["arm"]) == ("toy-1", "ssr")
    assert origin["trained"] == trained.identity
    modes = {path.stat().st_mode for path in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1, "whoever may read the one may read the other"


def test_one_of_several_arms_must_be_named(store: Store, record: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"arms sft, ssr. Say which one: --arm sft"):
        merge_arm(store, record, None, tmp_path / "merged")
    with pytest.raises(ConfigError, match=r"no arm 'gold'. It has: sft, ssr"):
        merge_arm(store, record, "gold", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_is_there_is_left_alone(store: Store, record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        merge_arm(store, record, "ssr", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_another_base_than_the_one_trained_on_is_refused(store: Store, record: RunRecord, tmp_path: Path) -> None:
    changed = dataclasses.replace(record, recipe=record.recipe | {"model": {"base": "lab"}})
    with pytest.raises(DataError, match=r"model.base=lab: has changed since toy-1"):
        merge_arm(store, changed, "ssr", tmp_path / "merged")
