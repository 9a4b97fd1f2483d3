"""Base and adapters on one real vLLM server, item for item beside the same models in this process."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import AbstentionConfig, DataConfig, EngineConfig, EvaluateConfig, ModelConfig, SourceConfig
from tasks.evaluate import evaluate, measure
from tasks.ingest import ingest
from tasks.running.step import Planned, as_input

pytestmark = pytest.mark.slow
# Compiling a model takes a server half a minute; what it says is the same.
ON_VLLM, IN_PROCESS = EngineConfig(kind="vllm", extra_args=("--enforce-eager",)), EngineConfig()


def put_adapter(store: Store, model: Path, seed: int, *, moved: bool = True, scale: float = 1.0) -> Ref:
    """A LoRA adapter of random weights, large enough to change what the model says.

    Args:
        moved: False: as before training, when it changes nothing.
        scale: How much of its change there is.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=8 * scale, target_modules="all-linear", init_lora_weights=not moved, task_type="CAUSAL_LM"
    )
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    ref = Ref(step="train", fingerprint=digest_of(["adapter", seed, moved, scale]))
    with store.staging(**ref) as out:
        made.save_pretrained(out / "adapter", safe_serialization=True)
        store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))
    return ref


def put_words(folder: Path) -> Path:
    """A benchmark whose choices are words of one token, as MMLU's letters are, and one of several."""
    words = ["Alvic", "Animal", "Anton", "Athens", "Beacon", "Bella", "Berlin", "Boris"]
    items = [
        {
            "question": f"Which word is number {i}?",
            "label": i % 4,
            "choices": [*random.Random(i).sample(words, 4), "a b"],
        }
        for i in range(40)
    ]
    (folder / "words.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    task = {
        "task": "words", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{folder}/words.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "exact_match"}],  # by likelihood, and whether it would be said
    }  # fmt: skip
    (folder / "words.yaml").write_text(json.dumps(task))
    return folder / "words.yaml"


@pytest.fixture(scope="module")
def ending_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, that ends every fifth word or so: drift needs answers that end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("ending-model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Measured(NamedTuple):
    """Scores by (benchmark, metric, item_id) of each model, on the server and in this process.

    In this process the adapters' drift is that on the answers which the server drew.
    """

    store: Store
    adapters: list[Ref]
    plan: Mapping[str, Planned]
    served: list[dict[tuple[str, str, str], float]]
    here: list[dict[tuple[str, str, str], float]]
    drift: list[tuple[dict[str, float | None], dict[str, float | None]]]


@pytest.fixture(scope="module")
def measured(ending_model: Path, vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    examples = ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=20))
    examples.execute(store)
    words = put_words(tmp_path_factory.mktemp("words"))
    sections = {
        "model": ModelConfig(base=str(ending_model)), "abstention": AbstentionConfig(),
        "config": EvaluateConfig(benchmarks=("lab", str(words)), limit=20, max_task_rows=20, max_new_tokens=6),
    }  # fmt: skip
    adapters = [put_adapter(store, ending_model, seed) for seed in (1, 2)]
    inputs = {f"adapter_{i}": as_input(ref) for i, ref in enumerate(adapters)}
    together = measure.plan(engine=ON_VLLM, examples=examples, **sections, **inputs)
    together.execute(store)
    base = evaluate.plan(engine=ON_VLLM, examples=examples, **sections)
    models = [{}, *({"adapter": as_input(ref), "base": base} for ref in adapters)]
    served = [evaluate.plan(engine=ON_VLLM, examples=examples, **sections, **one) for one in models]
    without_process = dataclasses.replace(evaluate, launcher=None)
    here = [without_process.plan(engine=IN_PROCESS, examples=examples, **sections, **one) for one in models]
    assert all(one.reusable(store) for one in served), "the evaluate steps must find their artifacts made"
    return Measured(
        store, adapters, {"measure": together, "base": served[0]},
        [scores(store, one) for one in served], [scores(store, one) for one in here],
        [(drift(store, there), drift(store, one)) for there, one in zip(served[1:], here[1:], strict=True)],
    )  # fmt: skip


def scores(store: Store, planned: Planned) -> dict[tuple[str, str, str], float]:
    rows = pq.read_table(store.fetch(planned.execute(store)) / "items.parquet").to_pylist()
    return {(row["benchmark"], row["metric"], row["item_id"]): row["score"] for row in rows}


def drift(store: Store, planned: Planned) -> dict[str, float | None]:
    rows = pq.read_table(store.fetch(planned.ref) / "drift.parquet").to_pylist()
    return {row["example_id"]: row["nll"] for row in rows}


def test_every_model_is_scored_on_the_same_items_as_in_process(measured: Measured) -> None:
    for served, here in zip(measured.served, measured.here, strict=True):
        assert served.keys() == here.keys()
        assert len(served) > 200


def test_items_are_scored_as_in_process(measured: Measured) -> None:
    for served, here in zip(measured.served, measured.here, strict=True):
        same = sum(served[key] == pytest.approx(here[key]) for key in here)
        assert same >= 0.97 * len(here), f"{same} of {len(here)}"


def test_choices_of_one_token_are_scored_as_in_process(measured: Measured) -> None:
    for served, here in zip(measured.served, measured.here, strict=True):
        words = {key: score for key, score in here.items() if key[0] == "words"}
        assert {key: served[key] for key in words} == words
        assert {key[1] for key in words} == {"acc", "exact_match"}
        assert len({score for key, score in words.items() if key[1] == "acc"}) == 2, "it would not tell them apart"


def test_answers_that_the_server_drew_are_as_probable_as_in_process(measured: Measured) -> None:
    for served, here in measured.drift:
        assert served.keys() == here.keys()
        found = {key: nll for key, nll in served.items() if nll is not None}
        assert len(found) > 20, "too few answers have ended"
        assert found == pytest.approx({key: nll for key, nll in here.items() if nll is not None}, abs=0.02)
    assert measured.drift[0][0] != measured.drift[1][0]


def test_the_adapters_are_really_used(measured: Measured) -> None:
    base, first, second = measured.served
    assert base != first
    assert first != second


def test_a_second_measure_finds_everything_made(measured: Measured) -> None:
    manifest = measured.store.manifest(**measured.plan["measure"].ref)
    assert manifest is not None
    assert (manifest.counts["models"], manifest.counts["models_measured"]) == (3, 3)
    Path(measured.store.path("steps", *measured.plan["measure"].ref.values(), "manifest.json")).unlink()
    measured.plan["measure"].execute(measured.store)
    manifest = measured.store.manifest(**measured.plan["measure"].ref)
    assert manifest is not None
    assert manifest.counts["models_measured"] == 0
