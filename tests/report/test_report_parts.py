"""A metric and a section of the report are each added by one declaration, and a report made before is made anew."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from toy_run import MMLU, TASK, Run, Scores, zeros_and_ones

from tasks.config import AbstentionConfig, EvaluateConfig
from tasks.engines import Reply, Request
from tasks.evaluate import evaluate
from tasks.evaluate import step as evaluating
from tasks.measures import metrics
from tasks.measures.metrics import Answered, metric
from tasks.report import report, sections
from tasks.report.blocks import Block, Paragraph
from tasks.report.findings import Findings
from tasks.report.sections import ReportSection
from tasks.running.step import Planned


def planned(run: Run) -> Planned:
    inputs = {name: Planned(report, name, ref, {}, {}, {}) for name, ref in run.artifacts.items()}
    return report.plan(recipe=run.recipe, **inputs)


class Engine:
    """Gives every question the same answer."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def generate(self, requests: list[Request], sampling: Any) -> Iterator[Reply]:
        yield from (Reply(request.key, self.answer, "stop", 3, 2) for request in requests)


def scored(path: Path, answer: str) -> Scores:
    """What the evaluate step makes of one answer to every test question, and of nothing for MMLU."""
    found: Scores = {MMLU: zeros_and_ones(50, 100)}
    for row in evaluating._task_items(Engine(answer), path, "toy", EvaluateConfig(), AbstentionConfig()):  # type: ignore[arg-type]
        found.setdefault(("task-in", "task:toy", str(row["metric"])), []).append(row["score"])  # type: ignore[arg-type]
    return found


def test_a_metric_that_is_declared_once_is_scored_and_read_in_its_direction(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, sections_of_a_plan = planned(run), dict.fromkeys(("model", "engine", "config", "abstention"))
    monkeypatch.setattr(evaluating, "model_digest", lambda model: "toy")
    monkeypatch.setattr(evaluating.benchmarks, "content_digests", lambda config: {})
    measured_before = evaluate.outside(**sections_of_a_plan)
    monkeypatch.setattr(metrics, "_DECLARED", list(metrics._DECLARED))

    @metric(title="answers in capitals", higher_is_better=False, families=metrics.TASK)
    def shouting(item: Answered) -> float:
        return float(item.output.isupper())

    assert evaluate.outside(**sections_of_a_plan) != measured_before
    assert planned(run).ref != before.ref
    toy.write(tmp_path / "examples.parquet", "examples", [toy.example(f"{i:04}", split="test") for i in range(40)])
    for name, answer in (("base", "no"), ("0", "GOLD"), ("1", "gold"), ("2", "no")):
        run.put_scores(name, scored(tmp_path / "examples.parquet", answer))
    out = run.report(tmp_path / "out")
    sft, ssr, _ = json.loads((out / "report.json").read_text())["measured"]["arms"]
    found = [next(s for s in arm["scores"] if s["key"]["metric"] == "shouting") for arm in (sft, ssr)]
    assert [score["change"]["delta"] for score in found] == [1.0, 0.0]
    assert {(score["key"]["higher_is_better"], score["key"]["primary"]) for score in found} == {(False, False)}
    page = (out / "report.html").read_text()
    assert "shouting (lower is better)" in page
    assert "shouting: answers in capitals." in page


def test_a_metric_of_which_lower_is_better_never_enters_an_average(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_DECLARED", list(metrics._DECLARED))
    metrics.declare(metrics.Metric("toxicity", "toxic answers", higher_is_better=False, families=("general",)))
    toxic = ("general", "toxic", "toxicity")
    for name, ones in (("base", 10), ("0", 90), ("1", 10), ("2", 10)):
        run.put_scores(
            name, {TASK: zeros_and_ones(50, 100), MMLU: zeros_and_ones(50, 100), toxic: zeros_and_ones(ones, 100)}
        )
    found = json.loads((run.report(tmp_path / "out") / "report.json").read_text())
    assert [arm["general"]["benchmarks"] for arm in found["measured"]["arms"]] == [["mmlu"]] * 3
    assert (
        "toxic: lower is better for each of its metrics, so no average and no promotion check includes it."
        in (found["warnings"])
    )


def declare_section(monkeypatch: pytest.MonkeyPatch, version: int = 1) -> None:
    def toy_section(found: Findings) -> Iterator[Block]:
        yield Paragraph(f"{len(found.measured.arms)} arms <b>were</b> trained.")

    declared = (*sections.SECTIONS, ReportSection("Toy", version, toy_section))
    monkeypatch.setattr(sections, "SECTIONS", sections.checked(declared))


def test_a_section_that_is_declared_once_appears_and_a_report_made_before_is_made_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(run).execute(run.store)
    with monkeypatch.context() as context:
        declare_section(context)
        out = run.store.fetch(planned(run).execute(run.store))
        assert '<h2>Toy</h2>\n<p class="caption">3 arms &lt;b&gt;were&lt;/b&gt; trained.</p>' in (
            (out / "report.html").read_text()
        )
        assert "## Toy\n3 arms &#60;b&#62;were&#60;/b&#62; trained.\n" in (out / "report.md").read_text()
    assert planned(run).ref == before


def test_a_section_of_another_version_makes_reports_stale(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        declare_section(context)
        first = planned(run).ref
    declare_section(monkeypatch, version=2)
    assert planned(run).ref != first


def test_two_sections_of_one_title_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_section(monkeypatch)
    with pytest.raises(ValueError, match="Toy: declared twice"):
        declare_section(monkeypatch)


def test_a_section_without_a_version_is_refused() -> None:
    with pytest.raises(TypeError, match="version"):
        ReportSection("Toy", blocks=lambda found: [])  # type: ignore[call-arg]


def test_the_list_of_sections_is_read_without_what_draws_and_computes_them() -> None:
    heavy = ("matplotlib", "scipy", "pandas")
    script = f"import sys, tasks.report; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
