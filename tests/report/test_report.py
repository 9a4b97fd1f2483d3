"""The report: its numbers, what it does with missing ones, and that nothing in it can do harm."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from toy_run import GSM8K, TASK, Run, Scores, zeros_and_ones

from tasks.config import RunConfig
from tasks.measures.statistics import mcnemar
from tasks.report import report, summary_rows
from tasks.report.pages import fenced, inert
from tasks.report.verdicts_and_targets import cut
from tasks.running.step import Planned

FILES = ("report.json", "report.html", "report.md")
STATES = ("accept", "reject", "unjudged")


def _numbers(out: Path) -> Any:  # Any: JSON values
    return json.loads((out / "report.json").read_text())


def _score(arm: Any, benchmark: str, metric: str) -> Any:  # Any: JSON values
    return next(s for s in arm["scores"] if (s["key"]["benchmark"], s["key"]["metric"]) == (benchmark, metric))


def test_the_numbers_are_those_worked_out_by_hand(run: Run, tmp_path: Path) -> None:
    found = _numbers(run.report(tmp_path / "out"))
    sft, ssr, _ = found["measured"]["arms"]
    mmlu = _score(sft, "mmlu", "acc")
    assert mmlu["change"]["delta"] == pytest.approx(-0.2)
    assert mmlu["change"]["p_value"] == pytest.approx(mcnemar(0, 20))
    assert mmlu["p_holm"] == pytest.approx(2 * mcnemar(0, 20))
    assert _score(sft, "gsm8k", "exact_match")["p_holm"] == pytest.approx(mcnemar(0, 10))
    assert sft["general"]["delta"] == pytest.approx((-0.2 - 0.1) / 2)
    assert sft["general"]["relative"] == pytest.approx((-0.2 / 0.8 - 0.1 / 0.4) / 2)
    assert (sft["general"]["worst"], sft["general"]["worst_delta"]) == ("mmlu", pytest.approx(-0.2))
    assert ssr["task"]["delta"] == pytest.approx(0.4)
    assert found["measured"]["best"] == {"gold": "sft", "ssr": "ssr"}


def test_policies_are_compared_best_against_best_and_at_equal_training(run: Run, tmp_path: Path) -> None:
    found = _numbers(run.report(tmp_path / "out"))
    (contrast,) = found["measured"]["contrasts"]
    assert (contrast["arm"], contrast["reference"]) == ("ssr", "sft")
    assert contrast["best"]
    assert contrast["same_training"]
    assert contrast["task"]["delta"] == 0
    assert contrast["general"]["before"] == pytest.approx((0.6 + 30 / 98) / 2)


def test_the_verdict_says_what_was_gained_and_lost_and_which_arm_was_chosen(run: Run, tmp_path: Path) -> None:
    headline, difference, choice, *_ = _numbers(run.report(tmp_path / "out"))["verdict"]
    assert headline.startswith("SSR (ssr) gained +40.0 points [")
    assert "SFT (sft) gained +40.0 points" in headline
    assert "general benchmarks by -15.0 points" in headline
    assert "on the task 0.0 points" in difference
    assert "not significant" in difference
    assert "ssr (learning rate 2e-4, 1 of 2)" in choice


def test_a_conclusion_that_depends_on_the_learning_rate_is_called_that(run: Run, tmp_path: Path) -> None:
    """At 2e-4 SSR keeps more than SFT; at 5e-5 both keep everything."""
    arms = [arm.model_dump() for arm in run.recipe.arms] + [
        {"name": "sft-slow", "policy": "gold", "learning_rate": 5e-5}
    ]
    run.recipe = RunConfig.model_validate({**run.recipe.model_dump(), "arms": arms})
    for kind in ("targets", "adapter"):
        run.artifacts[f"{kind}_3"] = run.artifacts[f"{kind}_0"]
    run.artifacts["scores_3"] = run.artifacts["scores_2"]
    verdict = " ".join(_numbers(run.report(tmp_path / "out"))["verdict"])
    assert "general benchmarks, the conclusion on SSR against SFT depends on the learning rate: ssr against" in verdict
    assert "ssr-slow against sft-slow (both at learning rate 5e-5) 0.0 points" in verdict


def test_missing_scores_are_left_out_counted_and_shown(run: Run, tmp_path: Path) -> None:
    out = run.report(tmp_path / "out")
    change = _score(_numbers(out)["measured"]["arms"][1], "gsm8k", "exact_match")["change"]
    assert (change["n_pairs"], change["n_missing"]) == (98, 2)
    assert "2 unscored" in (out / "report.html").read_text()


def test_an_arm_without_any_score_is_shown_with_its_count(run: Run, tmp_path: Path) -> None:
    run.put_scores("1", {TASK: [None] * 100, GSM8K: [None] * 100})
    out = run.report(tmp_path / "out")
    found = _numbers(out)
    assert found["measured"]["arms"][1]["task"] is None
    assert "ssr: 100 of 100 items of gsm8k have no score." in found["warnings"]
    assert "100 unscored" in (out / "report.html").read_text()


def test_items_that_are_one_group_are_named_and_stay_out_of_the_verdict(run: Run, tmp_path: Path) -> None:
    graded = ("general", "graded", "acc_norm")
    for name, task in (("base", 0.5), ("0", 0.9), ("1", 0.8), ("2", 0.7)):
        run.put_scores(name, {TASK: [task], graded: [0.1 * i + (0.02 * i * i if name == "0" else 0) for i in range(5)]})
    out = run.report(tmp_path / "out")
    found = _numbers(out)
    change = _score(found["measured"]["arms"][0], "task:lab", "modified_recall")["change"]
    assert (change["delta"], change["p_value"]) == (pytest.approx(0.4), None)
    assert [arm["task"] for arm in found["measured"]["arms"]] == [None] * 3
    assert "No in-domain task split has enough groups of items for a test: nothing can be said" in str(found["verdict"])
    assert (
        "task:lab: its items are one group. For sft, ssr and ssr-slow it has no interval and no test, and is left out "
        "of the averages."
    ) in found["warnings"]
    assert (
        "graded: only 5 independent groups of items; with fewer than 20, intervals are too narrow."
        in (found["warnings"])
    )
    assert "+40.0 (no interval)" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("stated", "warning"),
    [
        (False, "crows_pairs: lower is better for each of its metrics, so no average"),
        (None, "crows_pairs: the benchmark does not state for pct_stereotype whether higher is better, so no average"),
    ],
)
def test_a_benchmark_that_is_not_known_to_be_better_the_higher_it_is_is_shown_and_enters_no_average(
    run: Run, tmp_path: Path, stated: bool | None, warning: str
) -> None:
    bias = ("general", "crows_pairs", "pct_stereotype")
    for name, ones in (("base", 50), ("0", 90), ("1", 60), ("2", 60)):
        scores: Scores = {TASK: zeros_and_ones(ones, 100), bias: zeros_and_ones(ones, 100)}
        run.put_scores(name, scores, higher_is_better={"pct_stereotype": stated})
    found = _numbers(run.report(tmp_path / "out"))
    sft = found["measured"]["arms"][0]
    assert _score(sft, "crows_pairs", bias[2])["estimate"]["value"] == 0.9
    assert sft["general"] is None
    assert any(text.startswith(warning) for text in found["warnings"])


def test_precision_of_refusals_has_no_paired_change(run: Run, tmp_path: Path) -> None:
    found = _numbers(run.report(tmp_path / "out"))
    sft, ssr, _ = (_score(arm, "task:lab", "abstention_precision") for arm in found["measured"]["arms"])
    assert sft["change"] is None
    assert (sft["estimate"]["value"], sft["estimate"]["n"]) == (0.75, 20)
    assert (ssr["estimate"]["n"], ssr["estimate"]["n_missing"]) == (10, 0)


def test_every_arm_appears_in_every_form(run: Run, tmp_path: Path) -> None:
    out = run.report(tmp_path / "out")
    headers, rows = summary_rows(_numbers(out))
    assert [row[0].partition("\n")[0] for row in rows] == ["base", "sft", "ssr", "ssr-slow"]
    assert all(len(row) == len(headers) for row in rows)
    assert rows[1][1].startswith("90.0 (+40.0)\n[")
    for name in FILES:
        text = (out / name).read_text()
        assert all(arm.name in text for arm in run.recipe.arms)


def test_acceptance_leaves_unjudged_outputs_apart(run: Run, tmp_path: Path) -> None:
    found = _numbers(run.report(tmp_path / "out"))["judged"]
    everything, *classes = found["acceptance"]
    assert (everything["accept"], everything["reject"], everything["unjudged"]) == (24, 12, 4)
    assert everything["rate"]["value"] == pytest.approx(24 / 36)
    assert everything["coverage"] == pytest.approx(0.9)
    assert [row["answerable"] for row in classes] == ["answerable", "unanswerable"]
    assert found["mixes"][0]["counts"] == {"self": 0, "rewrite": 0, "gold": 40}
    assert found["mixes"][1] == {
        **found["mixes"][1],
        "arms": ["ssr", "ssr-slow"],
        "counts": {"self": 24, "rewrite": 0, "gold": 16},
    }


def test_examples_are_the_first_of_each_verdict(run: Run, tmp_path: Path) -> None:
    examples = _numbers(run.report(tmp_path / "out"))["judged"]["examples"]
    found = {verdict: [e["example_id"] for e in examples if e["verdict"] == verdict] for verdict in STATES}
    assert found == {"accept": ["0000", "0001"], "reject": ["0006", "0007"], "unjudged": ["0009", "0013"]}
    assert examples[-1]["output"] is None
    assert examples[-1]["problem"] == "timed out"


def test_rows_that_do_not_add_up_are_called_out(run: Run, tmp_path: Path) -> None:
    run.put("outputs", "generate", {"outputs.parquet": _table_of(run, "outputs")}, {"rows_in": 41, "rows_out": 40})
    found = _numbers(run.report(tmp_path / "out"))
    assert found["warnings"][0] == "Rows of generate do not add up: 41 in, 40 out, {} dropped."


def _table_of(run: Run, name: str) -> Any:  # Any: a schema and rows
    import pyarrow.parquet as pq

    table = pq.read_table(run.store.fetch(run.artifacts[name]) / f"{name}.parquet")
    return table.schema, table.to_pylist()


def test_the_same_inputs_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    first, second = run.report(tmp_path / "first"), run.report(tmp_path / "second")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_model_output_is_escaped_in_the_page_and_nothing_is_loaded(run: Run, tmp_path: Path) -> None:
    page = (run.report(tmp_path / "out") / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    tags = _Tags(page).found
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        links = [attributes.get(name) for name in ("src", "href", "xlink:href")]
        assert all(link is None or link.startswith("#") for link in links)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in page
    assert "@import" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_model_output_is_inert_in_the_markdown(run: Run, tmp_path: Path) -> None:
    text = (run.report(tmp_path / "out") / "report.md").read_text()
    rendered = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)
    tags = {tag for tag, _ in _Tags(rendered).found}
    assert "table" in tags
    assert not {"script", "img", "a"} & tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered
    rows = [line for line in text.splitlines() if line.startswith("| own answer")]
    assert rows
    assert all(line.count("|") == 3 for line in rows)


def test_text_becomes_one_inert_line() -> None:
    assert inert("a | b\n\n# c") == "a &#124; b ⏎ &#35; c"
    assert "://" not in inert("see https://evil.example")
    assert "www." not in inert("www.evil.example")
    assert fenced("a ``` b").startswith("````\n")


def test_long_text_is_cut_in_the_middle_and_says_by_how_much() -> None:
    assert cut("a" * 50 + "b" * 50, 10) == "aaaaa [... 90 characters ...] bbbbb"
    assert cut("short", 10) == "short"


def test_a_judge_that_accepts_nearly_everything_or_nothing_is_called_out() -> None:
    from tasks.measures.statistics import wilson
    from tasks.report.measured import Measured
    from tasks.report.verdict import warnings
    from tasks.report.verdicts_and_targets import Acceptance

    nothing = Measured([], [], {}, "gold", [], [], [])
    for accept, word in ((1, "too strict"), (99, "too lenient")):
        row = Acceptance("answer", "all", accept, 100 - accept, 0, wilson(accept, 100), 1.0)
        (warning,) = warnings(nothing, [row], [], [])
        assert word in warning


def test_a_run_without_benchmarks_claims_nothing_about_forgetting(run: Run, tmp_path: Path) -> None:
    for name, ones in (("base", 50), ("0", 90), ("1", 90), ("2", 60)):
        run.put_scores(name, {TASK: zeros_and_ones(ones, 100)})
    verdict = " ".join(_numbers(run.report(tmp_path / "out"))["verdict"])
    assert "nothing can be said about forgetting" in verdict


def test_the_step_publishes_all_three_files_and_leaves_nothing_else(run: Run) -> None:
    inputs = {name: Planned(report, name, ref, {}, {}, {}) for name, ref in run.artifacts.items()}
    ref = report.plan(recipe=run.recipe, **inputs).execute(run.store)
    manifest = run.store.verified(**ref)
    assert manifest is not None
    assert sorted(entry["name"] for entry in manifest.files) == sorted(FILES)
    assert manifest.counts["arms"] == 3
