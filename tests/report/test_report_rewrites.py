"""Rewrites in the report: judged apart from answers, accounted for, and no ground for a warning about the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toy_run import Run

from tasks.tables.schema import LIKELIHOODS, OUTPUTS, VERDICTS


def put_rewrites(run: Run, n_rewrites: int) -> None:
    """Rewrites of the first examples, all accepted, and likelihoods of none."""
    grain = [{"example_id": f"{i:04x}", "kind": "rewrite", "sample_index": 0} for i in range(n_rewrites)]
    outputs = [
        row | {"row_key": f"r-{row['example_id']}", "text": "said anew", "finish_reason": "stop",
               "n_prompt_tokens": 9, "n_output_tokens": 3, "problem": None, "retryable": None}
        for row in grain
    ]  # fmt: skip
    verdict = {"verdict": "accept", "decided_by": "contains_gold", "reason": "because gold", "p_accept": None}
    counts = {"rows_in": 40, "rows_out": n_rewrites, "dropped.own_accepted": 40 - n_rewrites}
    counts |= {"rows_generated": n_rewrites, "rows_reused": 0, "tokens_generated": 3 * n_rewrites}
    run.put("rewrites", "rewrite", {"outputs.parquet": (OUTPUTS, outputs)}, counts)
    counts = {"rows_in": n_rewrites, "rows_out": n_rewrites}
    run.put("rewrite_verdicts", "judge", {"verdicts.parquet": (VERDICTS, [row | verdict for row in grain])}, counts)
    run.put("likelihoods", "likelihood", {"likelihoods.parquet": (LIKELIHOODS, [])}, {"rows_in": 0, "rows_out": 0})


def numbers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_rewrites_are_counted_apart_from_answers_and_shown(run: Run, tmp_path: Path) -> None:
    before = numbers(run.report(tmp_path / "before"))
    put_rewrites(run, 12)
    found = numbers(run.report(tmp_path / "after"))
    answers = [row for row in found["judged"]["acceptance"] if row["kind"] == "answer"]
    assert answers == before["judged"]["acceptance"]
    rewrites = next(row for row in found["judged"]["acceptance"] if row["kind"] == "rewrite")
    assert (rewrites["answerable"], rewrites["accept"], rewrites["rate"]["value"]) == ("all", 12, 1.0)
    shown = [example for example in found["judged"]["examples"] if example["kind"] == "rewrite"]
    assert [example["output"] for example in shown] == ["said anew", "said anew"]
    assert found["warnings"] == before["warnings"], "a judge that accepts every rewrite is not lenient for that"


def test_what_rewriting_cost_is_accounted_for(run: Run, tmp_path: Path) -> None:
    put_rewrites(run, 12)
    steps = {made["label"]: made for made in numbers(run.report(tmp_path / "out"))["steps"]}
    assert steps["rewrite"]["tokens"] == {"tokens_generated": 36}
    assert steps["rewrite"]["dropped"] == {"own_accepted": 28}
    assert all(steps[label]["closes"] for label in ("rewrite", "judge rewrites", "likelihood"))
    page = (tmp_path / "out" / "report.md").read_text()
    assert "judge rewrites" in page


def test_no_rewrite_at_all_is_no_class_of_its_own(run: Run, tmp_path: Path) -> None:
    put_rewrites(run, 0)
    found = numbers(run.report(tmp_path / "out"))
    assert {row["kind"] for row in found["judged"]["acceptance"]} == {"answer"}
