"""The evaluate step with a real model, the real harness and the lab's benchmarks, a few items each."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy_steps import here

from tasks.artifacts.store import open_store
from tasks.config import AbstentionConfig, DataConfig, EngineConfig, EvaluateConfig, ModelConfig, SourceConfig
from tasks.errors import DataError
from tasks.evaluate import evaluate
from tasks.evaluate.benchmarks import LAB_BENCHMARKS, content_digests
from tasks.ingest import ingest


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of one evaluation of the base model."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    examples = ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=20))
    examples.execute(store)
    config = EvaluateConfig(benchmarks=("lab",), limit=6, max_task_rows=5, max_new_tokens=4)
    planned = here(evaluate).plan(
        model=ModelConfig(base=str(tiny_model)), engine=EngineConfig(), config=config, abstention=AbstentionConfig(),
        examples=examples,
    )  # fmt: skip
    return store.fetch(planned.execute(store))


@pytest.mark.slow
def test_every_benchmark_and_every_task_split_has_items(scored: Path) -> None:
    items = pq.read_table(scored / "items.parquet").to_pylist()
    assert {row["benchmark"] for row in items} == {
        *LAB_BENCHMARKS, "task:lab-people", "task:lab-towns", "task:lab-ships",
    }  # fmt: skip
    for name in LAB_BENCHMARKS:
        ids = {row["item_id"] for row in items if row["benchmark"] == name}
        assert len(ids) == 6, name


@pytest.mark.slow
def test_scores_are_the_means_of_their_items(scored: Path) -> None:
    items = pq.read_table(scored / "items.parquet").to_pylist()
    for score in pq.read_table(scored / "scores.parquet").to_pylist():
        values = [
            row["score"]
            for row in items
            if (row["benchmark"], row["metric"]) == (score["benchmark"], score["metric"]) and row["score"] is not None
        ]
        assert score["n"] == len(values)
        assert score["value"] == pytest.approx(sum(values) / len(values))


@pytest.mark.slow
def test_generated_benchmarks_keep_the_answer_and_count_leaked_refusals(scored: Path) -> None:
    items = pq.read_table(scored / "items.parquet").to_pylist()
    leaked = {row["benchmark"] for row in items if row["metric"] == "leaked_refusal"}
    assert leaked == {"lab_facts", "lab_sums", "lab_misconceptions"}
    assert all(row["output"] is not None for row in items if row["metric"] == "leaked_refusal")


@pytest.mark.slow
def test_families_tell_task_from_transfer_from_general(scored: Path) -> None:
    families = {row["benchmark"]: row["family"] for row in pq.read_table(scored / "scores.parquet").to_pylist()}
    assert families["task:lab-people"] == "task-in"
    assert families["task:lab-towns"] == families["task:lab-ships"] == "task-out"
    assert families["lab_facts"] == "general"


def test_a_yaml_benchmark_that_is_not_there_is_refused_before_anything_runs() -> None:
    with pytest.raises(DataError, match="no such file"):
        content_digests(EvaluateConfig(benchmarks=("nowhere/task.yaml",)))
