"""The drift of each arm in the report, and that nothing but the report reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from toy_run import GSM8K, MMLU, TASK, Run, drift_row, zeros_and_ones

from tasks.config import PromotionConfig
from tasks.measures.bootstrap import Method
from tasks.promotion.decide import ARM, BASE, decide
from tasks.report.drift import drift_of
from tasks.report.summary import summary_rows
from tasks.tables.schema import DRIFT, TableWriter

METHOD = Method(n_bootstrap=400)


def put_drift(run: Run) -> None:
    """Two of the three arms: SFT has moved by 0.3 nats a token, with two answers cut off, SSR by nothing."""
    scores = {TASK: zeros_and_ones(90, 100), MMLU: zeros_and_ones(60, 100), GSM8K: zeros_and_ones(30, 100)}
    sft = [drift_row(i, 0.5, 0.7 + 0.2 * (i % 2)) for i in range(40)]
    run.put_scores("0", scores, drift=[*sft, drift_row(40, 0, None), drift_row(41, 0, None)])
    kept = {TASK: zeros_and_ones(90, 100), MMLU: zeros_and_ones(80, 100), GSM8K: zeros_and_ones(40, 100)}
    run.put_scores("1", kept, drift=[drift_row(i, 0.5, 0.5) for i in range(40)])


def found_in(folder: Path, *rows: Any) -> Any:  # Any: rows of the table; the drift
    with TableWriter(folder / "drift.parquet", DRIFT) as writer:
        writer.write(list(rows))
    return drift_of(folder, METHOD)


def test_each_arm_has_its_drift_with_an_interval_and_what_was_not_scored(run: Run, tmp_path: Path) -> None:
    put_drift(run)
    out = run.report(tmp_path / "out")
    sft, ssr, slow = (arm["drift"] for arm in json.loads((out / "report.json").read_text())["measured"]["arms"])
    assert sft["per_token"]["value"] == pytest.approx(0.3)
    assert 0.2 < sft["per_token"]["low"] < 0.3 < sft["per_token"]["high"] < 0.4
    assert (sft["per_token"]["n"], sft["per_token"]["n_missing"], sft["unscored"]) == (40, 2, {"cut_off": 2})
    assert (ssr["per_token"]["value"], ssr["per_token"]["low"], ssr["per_token"]["high"]) == (0, 0, 0)
    assert slow is None
    for page in (out / "report.html", out / "report.md"):
        text = page.read_text()
        assert "0.300" in text
        assert "cut_off 2" in text.replace("&#95;", "_")
        assert "forward KL divergence from base to arm" in text
    assert 'aria-label="Mean change on general benchmarks by drift' in (out / "report.html").read_text()


def test_without_drift_the_report_does_not_speak_of_it(run: Run, tmp_path: Path) -> None:
    out = run.report(tmp_path / "out")
    for page in (out / "report.html", out / "report.md"):
        assert "Drift" not in page.read_text()
        assert "by drift" not in page.read_text()


def test_the_table_for_the_terminal_is_the_same_with_and_without(run: Run, tmp_path: Path) -> None:
    before = summary_rows(json.loads((run.report(tmp_path / "without") / "report.json").read_text()))
    put_drift(run)
    after = summary_rows(json.loads((run.report(tmp_path / "with") / "report.json").read_text()))
    assert after[0] == before[0]


def test_drift_is_the_divergence_of_answers_over_their_length(tmp_path: Path) -> None:
    """A mean of rows would be below 0 here: the arm answers "short" more often, and a long answer far less."""
    found = found_in(tmp_path, drift_row(0, 0.69, 0.10, n_tokens=1), drift_row(1, 0.01, 0.04, n_tokens=100))
    assert found.per_token.value == pytest.approx((-0.59 + 100 * 0.03) / 101)
    assert found.mean_tokens == 50.5


def test_prompts_of_one_document_do_not_count_as_many(tmp_path: Path) -> None:
    def width(*clusters: str | None) -> float:
        rows = [drift_row(i, 0.5, 0.5 + 0.2 * (i // 20), cluster=clusters[i // 10]) for i in range(40)]
        estimate = found_in(tmp_path, *rows).per_token
        return float(estimate.high - estimate.low)

    assert width("a", "b", "c", "d") > 2 * width(None, None, None, None)


def test_answers_without_any_score_have_no_drift_and_never_0(tmp_path: Path) -> None:
    found = found_in(tmp_path, *(drift_row(i, 0, None) for i in range(3)))
    assert (found.per_token.value, found.per_token.low, found.per_token.n_missing) == (None, None, 3)
    assert found.mean_tokens is None
    assert found.unscored == {"cut_off": 3}


def test_drift_of_one_answer_has_a_value_and_no_interval(run: Run, tmp_path: Path) -> None:
    found = found_in(tmp_path, drift_row(0, 0.5, 0.8)).per_token
    assert (found.value, found.low, found.high) == (pytest.approx(0.3), None, None)
    scores = {TASK: zeros_and_ones(90, 100), MMLU: zeros_and_ones(80, 100)}
    run.put_scores("0", scores, drift=[drift_row(0, 0.5, 0.8)])
    page = (run.report(tmp_path / "out") / "report.md").read_text()
    assert "| sft | 0.300 | 10.0 |" in page


def test_an_arm_without_any_score_is_shown_so(run: Run, tmp_path: Path) -> None:
    scores = {TASK: zeros_and_ones(90, 100), MMLU: zeros_and_ones(80, 100)}
    run.put_scores("0", scores, drift=[drift_row(i, 0, None) for i in range(3)])
    page = (run.report(tmp_path / "out") / "report.md").read_text().replace("&#95;", "_")
    assert "| sft | – | – | 0 | 3 (cut_off 3) |" in page


def test_an_evaluation_without_in_domain_prompts_has_no_drift(tmp_path: Path) -> None:
    assert found_in(tmp_path) is None


def test_promotion_does_not_look_at_drift(run: Run, tmp_path: Path) -> None:
    put_drift(run)
    folders = {BASE: run.store.fetch(run.artifacts["scores_base"]), ARM: run.store.fetch(run.artifacts["scores_0"])}
    without = {**folders, ARM: tmp_path / "arm"}
    shutil.copytree(folders[ARM], without[ARM])
    (without[ARM] / "drift.parquet").unlink()
    config = PromotionConfig(arm="sft", n_bootstrap=400)
    assert decide(folders, config, is_current=False) == decide(without, config, is_current=False)
