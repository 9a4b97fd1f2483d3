"""A measure step that is forced measures, whatever is there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import toy

from tasks.artifacts.store import Ref, open_store
from tasks.config import AbstentionConfig, EngineConfig, EvaluateConfig, ModelConfig
from tasks.evaluate import evaluate, measure
from tasks.running.step import Context


def test_a_forced_measure_measures_every_model_again_on_one_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def body(
        ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: EvaluateConfig,
        abstention: AbstentionConfig, examples: Ref,
    ) -> None:  # fmt: skip
        done.append(f"measured, force={ctx.force}")
        (ctx.out / "items.parquet").write_text("")

    @contextmanager
    def server(*_: Any, **__: Any) -> Iterator[None]:
        done.append("server")
        yield

    own = measure.body.__globals__
    monkeypatch.setitem(own, "evaluate", dataclasses.replace(evaluate, body=body, outside=lambda **_: {}, table=None))
    monkeypatch.setitem(own, "shared_server", server)
    store = open_store(str(tmp_path / "store"))
    planned = dataclasses.replace(measure, launcher=None, outside=lambda **_: {}).plan(
        model=ModelConfig(), engine=EngineConfig(kind="vllm"), config=EvaluateConfig(benchmarks=()),
        abstention=AbstentionConfig(), examples=toy.put(store, "examples", [toy.example("a", split="test")]),
    )  # fmt: skip
    planned.execute(store)
    assert done == ["server", "measured, force=False"]
    planned.execute(store, force=True)
    assert done[2:] == ["server", "measured, force=True"]
    assert toy.counts_of(store, planned.ref) == {"models": 1, "models_measured": 1}
    (made,) = json.loads((store.fetch(planned.ref) / "measured.json").read_text())
    assert store.verified(**made) is not None
