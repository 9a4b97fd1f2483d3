"""A killed evaluation goes on with its next part on another machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import open_store
from tasks.config import AbstentionConfig, DataConfig, EngineConfig, EvaluateConfig, ModelConfig, SourceConfig
from tasks.errors import StepError
from tasks.evaluate import benchmarks, evaluate
from tasks.ingest import ingest

if TYPE_CHECKING:  # pytest loads it itself
    from s3 import S3

pytest_plugins = ["s3"]


@pytest.mark.slow
def test_finished_parts_are_not_measured_again_on_another_machine(
    tiny_model: Path, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=20))
    config = EvaluateConfig(benchmarks=("lab_sums", "lab_facts"), limit=4, max_task_rows=4, max_new_tokens=4)
    planned = dataclasses.replace(evaluate, launcher=None).plan(
        model=ModelConfig(base=str(tiny_model)), engine=EngineConfig(), config=config, abstention=AbstentionConfig(),
        examples=examples,
    )  # fmt: skip
    measured: list[str] = []
    real = benchmarks.items

    def items(engine: Any, name: str, *rest: Any) -> Iterator[dict[str, object]]:
        measured.append(name)
        if measured == ["lab_sums", "lab_facts"]:
            raise RuntimeError("killed")
        return real(engine, name, *rest)

    monkeypatch.setattr(benchmarks, "items", items)
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "one"))
    examples.execute(open_store(s3.uri))
    with pytest.raises(StepError, match="killed"):
        planned.execute(open_store(s3.uri))
    parts = {name.rpartition("/")[2] for name in s3.objects() if name.startswith("work/evaluate/")}
    assert {"benchmark-lab_sums.parquet", "benchmark-lab_sums.parquet.complete"} <= parts
    assert "benchmark-lab_facts.parquet" not in parts

    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "two"))
    store = open_store(s3.uri)
    folder = store.fetch(planned.execute(store))
    assert measured == ["lab_sums", "lab_facts", "lab_facts"]
    found = set(pq.read_table(folder / "items.parquet").column("benchmark").to_pylist())
    assert {"lab_sums", "lab_facts"} <= found
    assert not any(name.startswith("work/") for name in s3.objects())
