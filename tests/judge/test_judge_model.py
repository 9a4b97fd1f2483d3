"""A judge that is a real model, if one of random weights: the whole path, in the step's own process."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy

from tasks.artifacts.store import Store
from tasks.config import AbstentionConfig, EngineConfig, JudgeConfig
from tasks.judge import judge
from tasks.running.step import Planned

EXAMPLES = [toy.example(f"{i:03}", golds=[f"P{i} lives in Oslo.", "Oslo"], document=f"D{i}") for i in range(40)]
OUTPUTS = [toy.output(f"{i:03}", "Somewhere") for i in range(40)]


def plan(store: Store, model: Path, threshold: float = 0.5) -> Planned:
    llm = {
        "judges": [{"model": {"base": str(model)}}], "rubric": "lab.v1", "threshold": threshold,
        "audit": {"n_probes": 60},
    }  # fmt: skip
    return judge.plan(
        config=JudgeConfig.model_validate({"llm": llm}), engine=EngineConfig(), abstention=AbstentionConfig(),
        examples=toy.put(store, "examples", EXAMPLES), outputs=toy.put(store, "outputs", OUTPUTS),
    )  # fmt: skip


@pytest.mark.slow
def test_a_judge_of_random_weights_is_caught_by_the_audit_and_paid_for_once(store: Store, tiny_model: Path) -> None:
    manifest = store.manifest(**plan(store, tiny_model).execute(store))
    assert manifest is not None
    assert manifest.counts["rows_generated"] == 100
    audit = manifest.facts["audit"]
    everything = audit["classes"][0]
    # It knows nothing: what it accepts is right about as often as any probe is.
    assert everything["precision"]["value"] is None or abs(everything["precision"]["value"] - 0.5) < 0.2
    assert audit["warnings"]
    again = store.manifest(**plan(store, tiny_model, threshold=0.6).execute(store))
    assert again is not None
    assert again.counts["rows_generated"] == 0
