"""A benchmark is measured once for a model, however the task's data change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import AbstentionConfig, DataConfig, EngineConfig, EvaluateConfig, ModelConfig, SourceConfig
from tasks.evaluate import benchmark_items, benchmarks, evaluate
from tasks.ingest import ingest
from tasks.running.step import Planned

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The benchmarks that the harness was asked for, in order."""
    asked: list[str] = []
    real = benchmarks.items

    def items(engine: Any, name: str, *rest: Any) -> Iterator[dict[str, object]]:
        asked.append(name)
        return real(engine, name, *rest)

    monkeypatch.setattr(benchmarks, "items", items)
    return asked


def planned(store: Store, model: Path, *, n_rows: int, **changes: Any) -> Planned:
    examples = ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=n_rows))
    examples.execute(store)
    settings = {"benchmarks": ("lab_sums",), "limit": 4, "max_task_rows": 2, "max_new_tokens": 4, **changes}
    return dataclasses.replace(evaluate, launcher=None).plan(
        model=ModelConfig(base=str(model)), engine=EngineConfig(), config=EvaluateConfig.model_validate(settings),
        abstention=AbstentionConfig(), examples=examples,
    )  # fmt: skip


def items_of(store: Store, made: Planned) -> list[dict[str, Any]]:
    table = pq.read_table(store.fetch(made.ref) / "items.parquet", filters=[("benchmark", "=", "lab_sums")])
    return table.to_pylist()


def test_data_that_grew_do_not_cost_the_benchmarks_again(store: Store, tiny_model: Path, measured: list[str]) -> None:
    first, second = (planned(store, tiny_model, n_rows=n) for n in (20, 24))
    first.execute(store)
    second.execute(store)
    assert first.ref != second.ref
    assert measured == ["lab_sums"]
    assert items_of(store, first) == items_of(store, second) != []
    manifest = store.manifest(**second.ref)
    assert manifest is not None
    assert manifest.facts["measured_before"] == ["benchmark-lab_sums.parquet"]


def test_settings_of_the_task_do_not_matter_and_those_of_benchmarks_do(
    store: Store, tiny_model: Path, measured: list[str]
) -> None:
    planned(store, tiny_model, n_rows=20).execute(store)
    planned(store, tiny_model, n_rows=20, max_task_rows=3, benchmark_batch_size=3).execute(store)
    assert measured == ["lab_sums"]
    planned(store, tiny_model, n_rows=20, limit=3).execute(store)
    planned(store, tiny_model, n_rows=20, num_fewshot=1).execute(store)
    assert measured == ["lab_sums"] * 3


def test_what_is_forced_is_measured_again(store: Store, tiny_model: Path, measured: list[str]) -> None:
    made = planned(store, tiny_model, n_rows=20)
    made.execute(store)
    made.execute(store, force=True)
    assert measured == ["lab_sums"] * 2


def test_no_adapter_has_the_key_of_the_base_nor_of_another(store: Store, tiny_model: Path) -> None:
    def key(adapter: Ref | None) -> str:
        return benchmark_items.key_of(
            store, "lab_sums", adapter, model=ModelConfig(base=str(tiny_model)), engine=EngineConfig(),
            config=EvaluateConfig(), abstention=AbstentionConfig(),
        )  # fmt: skip

    refs = [Ref(step="train", fingerprint=digit * 64) for digit in "12"]
    for ref in refs:
        with store.staging(**ref) as out:
            (out / "adapter").mkdir()
            (out / "adapter" / "adapter_model.safetensors").write_text(ref["fingerprint"])
            store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))
    gone = Ref(step="train", fingerprint="3" * 64)
    assert len({key(adapter) for adapter in (None, *refs, gone)}) == 4
