"""One toy run for every test of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_run import GSM8K, LEAKED, MMLU, PRECISION, RECIPE, TASK, Run, Scores, put_data, zeros_and_ones

from tasks.artifacts.store import open_store
from tasks.config import parse_recipe


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Percent right of base, SFT, SSR and SSR slow: the task 50, 90, 90, 60; MMLU 80, 60, 80, 80; GSM8K 40, 30, 40, 40.

    Two items of GSM8K have no score for SSR.
    """
    run = Run(open_store(str(tmp_path / "store")), parse_recipe(RECIPE, where="toy"))
    put_data(run)
    leaked: Scores = {LEAKED: zeros_and_ones(0, 100), PRECISION: zeros_and_ones(10, 10)}
    base: Scores = {
        TASK: zeros_and_ones(50, 100),
        MMLU: zeros_and_ones(80, 100),
        GSM8K: zeros_and_ones(40, 100),
        **leaked,
    }
    sft: Scores = {
        TASK: zeros_and_ones(90, 100),
        MMLU: zeros_and_ones(60, 100),
        GSM8K: zeros_and_ones(30, 100),
        **leaked,
        PRECISION: zeros_and_ones(15, 20),
    }
    ssr: Scores = {**base, TASK: zeros_and_ones(90, 100), GSM8K: [*zeros_and_ones(40, 98), None, None]}
    slow: Scores = {**base, TASK: zeros_and_ones(60, 100)}
    for name, scores in (("base", base), ("0", sft), ("1", ssr), ("2", slow)):
        run.put_scores(name, scores)
    return run
