"""The report of a recipe that promotes an adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from toy_run import RECIPE, Run

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, describe_files
from tasks.config import parse_recipe
from tasks.promotion.decide import ARM, BASE, CURRENT, decide
from tasks.tables.schema import METRICS


def put_decision(run: Run) -> None:
    """Of the arm ssr, against the base and an adapter that scored as ssr-slow did."""
    run.recipe = parse_recipe({**RECIPE, "promotion": {"arm": "ssr"}}, where="toy")
    assert run.recipe.promotion is not None
    names = {BASE: "scores_base", ARM: "scores_1", CURRENT: "scores_2"}
    folders = {model: run.store.fetch(run.artifacts[name]) for model, name in names.items()}
    decision = decide(folders, run.recipe.promotion, is_current=False)
    ref = Ref(step="promote", fingerprint=digest_of("promote"))
    with run.store.staging(**ref) as out:
        (out / "decision.json").write_text(json.dumps(asdict(decision)))
        run.store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out), facts={"seconds": 1}))
    run.artifacts |= {"decision": ref, "scores_current": run.artifacts["scores_2"]}


def test_the_decision_stands_first_with_its_reasons_and_every_check(run: Run, tmp_path: Path) -> None:
    put_decision(run)
    out = run.report(tmp_path / "out")
    found = json.loads((out / "report.json").read_text())["promotion"]
    assert found["outcome"] == "kept"  # 100 items are too few
    page = (out / "report.md").read_text()
    sections = [line for line in page.splitlines() if line.startswith("## ")]
    assert sections[0] == "## Promotion"
    assert "The adapter of ssr is not promoted: " in page
    assert "100 items rule out a loss of 2.63 points at best, the margin is 2 points: 133 items are needed" in page
    checks = [line for line in page.splitlines() if line.startswith(("| benchmark |", "| task |"))]
    assert len(checks) == len(found["checks"]) == 4
    html = (out / "report.html").read_text()
    assert html.index("Promotion") < html.index("Base and arms")


def test_the_evaluation_of_the_promoted_adapter_is_part_of_the_cost(run: Run, tmp_path: Path) -> None:
    put_decision(run)
    labels = [made["label"] for made in json.loads((run.report(tmp_path / "out") / "report.json").read_text())["steps"]]
    assert "promote" in labels
    assert any("the promoted adapter" in label for label in labels)


def test_without_promotion_there_is_nothing_of_it(run: Run, tmp_path: Path) -> None:
    out = run.report(tmp_path / "out")
    assert json.loads((out / "report.json").read_text())["promotion"] is None
    assert "Promotion" not in (out / "report.md").read_text()


@pytest.mark.parametrize("arms", [["adapter_1"], ["adapter_0", "adapter_1", "adapter_2"]])
def test_an_arm_that_had_no_new_row_to_train_on_has_an_empty_curve(run: Run, tmp_path: Path, arms: list[str]) -> None:
    for name in arms:
        run.put(name, "train", {"metrics.parquet": (METRICS, [])}, {"rows_in": 0, "rows_out": 0})
    found = json.loads((run.report(tmp_path / "out") / "report.json").read_text())
    curve = found["curves"][1]
    assert (curve["n_steps"], curve["losses"]) == (0, [])
