"""The lab's judge: it is right most of the time, and its audit says how often, as the lab's known truth shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import Manifest, Store, open_store
from tasks.config import (
    AbstentionConfig,
    AuditConfig,
    DataConfig,
    EngineConfig,
    GenerateConfig,
    JudgeConfig,
    JudgeModelConfig,
    LlmJudgeConfig,
    ModelConfig,
    SourceConfig,
)
from tasks.generate import generate
from tasks.ingest import ingest
from tasks.judge import judge
from tasks.lab import gates, judging
from tasks.lab.build import MAX_BYTES
from tasks.models import LAB_JUDGE, load_model, load_tokenizer
from tasks.running.step import Step

N_ROWS = 600


@pytest.mark.slow
def test_the_judge_is_right_most_of_the_time_on_right_and_on_wrong_answers() -> None:
    model = ModelConfig(base="lab-judge")
    found = judging.accuracy(gates.answerer(load_model(model), load_tokenizer(model)), n=400, seed=1)  # type: ignore[arg-type]
    assert min(found.values()) >= judging.ACCURACY_GATE


def test_the_judge_s_weights_are_small() -> None:
    assert (LAB_JUDGE / "model.safetensors").stat().st_size <= MAX_BYTES


def test_about_half_of_the_cases_are_acceptable() -> None:
    drawn: Iterator[judging.Case] = judging.cases(3)
    accepted = [next(drawn).accepted for _ in range(2_000)]
    assert 0.4 < sum(accepted) / len(accepted) < 0.6


def here(step: Step) -> Step:
    return dataclasses.replace(step, launcher=None)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest, Manifest]:
    """The lab's own answers, judged by its LLM judge, and by the rules that know the truth."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    base, engine = ModelConfig(base="lab"), EngineConfig()
    examples = ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=N_ROWS))
    outputs = here(generate).plan(
        model=base, engine=engine, config=GenerateConfig(max_new_tokens=20), examples=examples
    )
    llm = LlmJudgeConfig(
        judges=(JudgeModelConfig(model=ModelConfig(base="lab-judge")),), rubric="lab.v1",
        audit=AuditConfig(n_probes=300),
    )  # fmt: skip
    made = []
    for config in (JudgeConfig(contains_gold=False, llm=llm), JudgeConfig()):
        planned = here(judge).plan(
            config=config, engine=engine, abstention=AbstentionConfig(), examples=examples, outputs=outputs
        )
        for one in (examples, outputs, planned):
            one.execute(store)
        manifest = store.manifest(**planned.ref)
        assert manifest is not None
        made.append(manifest)
    return store, made[0], made[1]


def verdicts(store: Store, manifest: Manifest) -> dict[str, dict[str, str]]:
    ref = {"step": manifest.step, "fingerprint": manifest.fingerprint}
    rows = pq.read_table(Path(store.path("steps", *ref.values())) / "verdicts.parquet").to_pylist()
    return {row["example_id"]: row for row in rows}


@pytest.mark.slow
def test_the_audit_of_the_lab_s_judge_contains_its_true_precision(audited: tuple[Store, Manifest, Manifest]) -> None:
    store, by_llm, by_truth = audited
    truth = verdicts(store, by_truth)
    accepted = [
        key for key, row in verdicts(store, by_llm).items()
        if row["verdict"] == "accept" and str(row["decided_by"]).startswith("llm")
    ]  # fmt: skip
    assert len(accepted) > 50
    right = sum(truth[key]["verdict"] == "accept" for key in accepted) / len(accepted)
    line = next(one for one in by_llm.facts["audit"]["classes"] if one["answerable"] == "all")
    estimate = line["precision_of_answers"]
    assert estimate["low"] <= right <= estimate["high"], (right, estimate)


@pytest.mark.slow
def test_the_lab_s_judge_is_neither_lenient_nor_strict(audited: tuple[Store, Manifest, Manifest]) -> None:
    line = next(one for one in audited[1].facts["audit"]["classes"] if one["answerable"] == "all")
    assert line["recall"]["value"] > 0.7
    assert line["false_accepts"]["value"] < 0.2
