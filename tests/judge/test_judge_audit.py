"""The audit: what it says of judges whose error rates are known, and what the recipe makes of it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import toy
from fake_judge import Asked, plan, verdicts

from tasks.artifacts.digest import stable_rng
from tasks.config import LlmJudgeConfig
from tasks.errors import StepError
from tasks.judge.audit import THRESHOLDS, AnswerTally, JudgedProbe, expected_wrong, precision_of, shortfall, summary
from tasks.judge.panel import PanelVerdict
from tasks.judge.panel_session import TOO_IMPRECISE
from tasks.judge.probes import JudgeProbe
from tasks.judge.rubrics import JudgeCase
from tasks.measures.answers import contains
from tasks.measures.statistics import wilson
from tasks.tables.schema import AUDIT, read_table

# --- a run whose truth is known ---

CITIES = ["Oslo", "Rome", "Paris", "Cairo", "Lima", "Bonn", "Bern", "Riga", "Kiev", "Doha"]
N = 300


def city_of(i: int) -> str:
    return CITIES[i % 10]


EXAMPLES = [
    toy.example(f"{i:04}", question=f"Where does P{i} live?", golds=[f"P{i} lives in {city_of(i)}.", city_of(i)])
    for i in range(N)
]
# Without `contains_gold` no rule decides these: two of three name the right city.
OUTPUTS = [toy.output(f"{i:04}", f"P{i} has a home in {city_of(i + (i % 3 == 0))}, I think.") for i in range(N)]
RIGHT = {f"{i:04}" for i in range(N) if i % 3}


def judge_of(recall: float, false_accepts: float) -> Any:
    """A judge that accepts this share of right answers and this share of wrong ones, always the same ones."""

    def says(asked: Asked) -> float:
        is_right = contains(asked.candidate, asked.golds[-1]) and not asked.candidate.startswith("It is not")
        draw = stable_rng(asked.question, asked.candidate).random()
        return 0.9 if draw < (recall if is_right else false_accepts) else 0.1

    return says


def audited(store, fake, says: Any, audit: dict[str, Any] | None = None, **llm: Any) -> dict[str, Any]:
    fake(says)
    planned = plan(
        store, EXAMPLES, OUTPUTS, {"audit": {"n_probes": 200} | (audit or {})} | llm, contains_gold=False
    )  # fmt: skip
    rows = verdicts(store, planned)
    manifest = store.manifest(**planned.ref)
    assert manifest is not None
    folder = store.fetch(planned.ref)
    return {"rows": rows, "audit": manifest.facts["audit"], "counts": manifest.counts, "folder": folder}


@pytest.mark.parametrize(("recall", "false_accepts"), [(0.95, 0.05), (0.8, 0.3), (0.6, 0.1), (0.99, 0.6)])
def test_the_estimate_of_precision_contains_the_true_precision_of_the_self_targets(store, fake, recall, false_accepts):
    found = audited(store, fake, judge_of(recall, false_accepts))
    accepted = [row["example_id"] for row in found["rows"] if row["verdict"] == "accept"]
    n_wrong = len(set(accepted) - RIGHT)
    line = found["audit"]["classes"][0]
    assert line["accepted"] == len(accepted)
    assert line["wrong_accepted_answers"]["low"] <= n_wrong <= line["wrong_accepted_answers"]["high"]
    precision = line["precision_of_answers"]
    assert precision["low"] <= 1 - n_wrong / len(accepted) <= precision["high"]
    assert precision["value"] == pytest.approx(1 - n_wrong / len(accepted), abs=0.12)


def test_recall_and_false_accepts_are_found_within_their_intervals(store, fake):
    line = audited(store, fake, judge_of(0.8, 0.3))["audit"]["classes"][0]
    assert line["recall"]["low"] <= 0.8 <= line["recall"]["high"]
    assert line["false_accepts"]["low"] <= 0.3 <= line["false_accepts"]["high"]
    assert line["recall"]["n"] + line["false_accepts"]["n"] == 200


def test_a_lenient_judge_is_caught_and_named(store, fake):
    found = audited(store, fake, lambda asked: 0.9)["audit"]
    assert found["warnings"] == ["The judge accepts 100 % of the wrong probes: it is lenient."]
    assert found["classes"][0]["precision"]["value"] == pytest.approx(0.5, abs=0.02)
    # It accepts wrong answers as readily as right ones: of the answers, nothing can be told.
    assert found["classes"][0]["wrong_accepted_answers"] == {"value": None, "low": 0.0, "high": float(N)}


def test_a_strict_judge_is_caught_and_named(store, fake):
    found = audited(store, fake, lambda asked: 0.1)["audit"]
    assert found["warnings"] == ["The judge rejects 100 % of the right probes: it is strict."]
    assert found["classes"][0]["precision"]["value"] is None
    assert found["classes"][0]["precision_of_answers"] is None


def test_where_more_answers_are_accepted_than_right_probes_wrong_ones_are_not_ruled_out():
    probes = {True: (15, 5), False: (1, 19)}  # accepted and rejected, of the right and of the wrong ones
    seen = expected_wrong(74, 74, *(wilson(n, n + m) for n, m in probes.values()))
    assert (seen.value, seen.low) == (0.0, 0.0)
    # As if the judge accepted every right answer: the most that the false accepts of the probes allow.
    acceptance, false_accepts = wilson(74, 74).low, wilson(1, 20).high
    assert seen.high == pytest.approx(74 * (1 - (acceptance - false_accepts) / (1 - false_accepts)) * false_accepts)
    assert 1 < seen.high < 3


def test_where_fewer_answers_are_accepted_than_wrong_probes_right_ones_are_not_ruled_out():
    seen = expected_wrong(2, 100, wilson(19, 20), wilson(10, 20))
    assert (seen.value, seen.low, seen.high) == (2.0, 0.0, 2.0)


def test_answers_that_the_probes_do_not_speak_for_are_warned_of(store, fake):
    at_probes = judge_of(0.6, 0.1)
    found = audited(store, fake, lambda asked: 0.9 if asked.candidate.endswith("I think.") else at_probes(asked))
    [strict, warning] = found["audit"]["warnings"]
    assert "it is strict" in strict
    assert warning.startswith("The judge accepts 100 % of the answers, more than the ")
    assert warning.endswith("% of the right probes: the probes are not representative of the answers.")


def test_a_good_judge_is_not_warned_of(store, fake):
    found = audited(store, fake, judge_of(1.0, 0.0))
    assert found["audit"]["warnings"] == []
    assert found["audit"]["classes"][0]["precision"]["value"] == 1.0


def test_every_probe_is_a_row_of_the_audit_table(store, fake):
    found = audited(store, fake, judge_of(0.9, 0.1))
    rows = read_table(found["folder"] / "audit.parquet", AUDIT).to_pylist()
    assert len(rows) == found["audit"]["n_probes"] == found["counts"]["audit.probes"] == 200
    assert [row["probe_id"] for row in rows] == sorted(row["probe_id"] for row in rows)
    accepted = [row["acceptable"] for row in rows if row["verdict"] == "accept"]
    assert sum(accepted) / len(accepted) == found["audit"]["classes"][0]["precision"]["value"]
    counted = {(kind["kind"], kind["accept"] + kind["reject"]) for kind in found["audit"]["kinds"]}
    assert sum(n for _, n in counted) == 200


def test_without_an_audit_nothing_of_it_is_written(store, fake):
    fake(judge_of(0.9, 0.1))
    planned = plan(store, EXAMPLES, OUTPUTS, {}, contains_gold=False)
    planned.execute(store)
    manifest = store.manifest(**planned.ref)
    assert "audit" not in manifest.facts
    assert not (store.fetch(planned.ref) / "audit.parquet").exists()


# --- what the recipe makes of it ---


def test_a_judge_below_the_precision_asked_for_stops_the_run_and_keeps_its_replies(store, fake):
    with pytest.raises(StepError, match=r"precision of accept 0\.\d+ \[0\.\d+, 0\.\d+\] on \d+ accepted probes, below"):
        audited(store, fake, lambda asked: 0.9, {"min_precision": 0.8})
    again = fake(lambda asked: 0.9)
    found = verdicts(
        store, plan(store, EXAMPLES, OUTPUTS, {"audit": {"n_probes": 200}}, contains_gold=False)
    )  # fmt: skip
    assert again.prompts == []
    assert {row["verdict"] for row in found} == {"accept"}


def test_a_judge_below_the_precision_asked_for_can_mean_gold(store, fake):
    found = audited(store, fake, judge_of(0.9, 0.6), {"min_precision": 0.9, "below": "gold"})
    assert {(row["verdict"], row["decided_by"]) for row in found["rows"]} == {("unjudged", None), ("reject", "llm")}
    lost = [row["reason"] for row in found["rows"] if row["verdict"] == "unjudged"]
    assert set(lost) == {TOO_IMPRECISE}
    assert found["audit"]["fell_short"].startswith("precision of accept 0.")
    # They were judged, only not believed: no try can help.
    assert found["counts"]["llm.unjudged"] == 0


def test_a_judge_that_reaches_the_precision_asked_for_is_believed(store, fake):
    found = audited(store, fake, judge_of(0.9, 0.02), {"min_precision": 0.9, "below": "gold"})
    assert "accept" in {row["verdict"] for row in found["rows"]}
    assert found["audit"]["fell_short"] is None


def test_a_precision_that_cannot_be_measured_is_not_reached(store, fake):
    with pytest.raises(StepError, match="none of 200 probes was accepted"):
        audited(store, fake, lambda asked: 0.1, {"min_precision": 0.5})


# --- the sweep ---


def test_the_sweep_says_what_another_threshold_would_do(store, fake):
    def says(asked: Asked) -> float:
        return round(stable_rng(asked.question, asked.candidate).random() * 0.98 + 0.01, 3)

    found = audited(store, fake, says)
    sweep = {row["threshold"]: row for row in found["audit"]["sweep"]}
    assert list(sweep) == list(THRESHOLDS)
    for threshold in (0.05, 0.5, 0.9):
        judge = fake(says)
        planned = plan(
            store, EXAMPLES, OUTPUTS, {"threshold": threshold, "audit": {"n_probes": 200}}, contains_gold=False
        )  # fmt: skip
        rows = verdicts(store, planned)
        line = store.manifest(**planned.ref).facts["audit"]["classes"][0]
        assert sweep[threshold]["accepted"] == sum(row["verdict"] == "accept" for row in rows)
        assert sweep[threshold]["precision"] == line["precision"]["value"]
        assert sweep[threshold]["recall"] == line["recall"]["value"]
        assert judge.prompts == []


def test_there_is_no_sweep_where_a_verdict_has_no_scale(store, fake):
    found = audited(store, fake, lambda asked: "accept", verdict_by="text")
    assert found["audit"]["sweep"] == []


# --- the arithmetic ---


def test_expected_wrong_targets_follow_rogan_and_gladen():
    # 60 of 100 accepted, recall 0.9, false accepts 0.1: (0.6 - 0.1) / 0.8 are right; of 37.5 wrong ones 3.75 accepted.
    found = expected_wrong(60, 100, wilson(90, 100), wilson(10, 100))
    assert found.value == pytest.approx(3.75)
    assert found.low < 3.75 < found.high


@pytest.mark.parametrize(
    ("n_accepted", "recall", "false_accepts", "expected"),
    [
        (0, (9, 10), (1, 10), 0.0),
        (5, (9, 10), (0, 10), 0.0),
        (100, (9, 10), (1, 10), 0.0),  # more than the recall: clipped to all right
        (5, (9, 10), (2, 10), 5.0),  # less than the false accepts: clipped to all wrong, and no more than were accepted
        (50, (5, 10), (5, 10), None),
        (50, (1, 10), (9, 10), None),
        (50, (0, 0), (9, 10), None),
    ],
)
def test_the_estimate_stays_within_what_is_possible(n_accepted, recall, false_accepts, expected):
    found = expected_wrong(n_accepted, 100, wilson(*recall), wilson(*false_accepts))
    assert found.value == (None if expected is None else pytest.approx(expected))
    assert 0 <= found.low <= found.high <= n_accepted


def test_the_interval_holds_the_truth_about_as_often_as_it_should():
    rng, hits, n_trials = Random(0), 0, 200
    for _ in range(n_trials):
        recall, false_accepts, share_right = rng.uniform(0.6, 1), rng.uniform(0, 0.4), rng.uniform(0.3, 0.9)
        right, wrong = (sum(rng.random() < p for _ in range(100)) for p in (recall, false_accepts))
        truth = [rng.random() < share_right for _ in range(400)]
        accepted = [is_right for is_right in truth if rng.random() < (recall if is_right else false_accepts)]
        found = expected_wrong(len(accepted), len(truth), wilson(right, 100), wilson(wrong, 100))
        hits += found.low <= accepted.count(False) <= found.high
    assert hits >= 0.93 * n_trials


def judged(acceptable: bool, verdict: str, n: int, *, answerable: bool | None = None) -> list[JudgedProbe]:
    probe = JudgeProbe("p", "wrapped", "a", acceptable, JudgeCase("open", "Q", None, ["G"], answerable, "C"))
    return [JudgedProbe(probe, PanelVerdict(verdict, None, None, ""))] * n


CONFIG = LlmJudgeConfig.model_validate({"judges": [{"model": {"base": "x"}}]})


def test_unjudged_probes_are_in_no_rate_but_are_counted():
    found = (
        judged(True, "accept", 6)
        + judged(True, "unjudged", 4)
        + judged(False, "reject", 9)
        + judged(False, "accept", 1)
    )
    (line,) = summary(found, {}, CONFIG, fell_short=None)["classes"]
    assert (line["recall"]["value"], line["recall"]["n"]) == (1.0, 6)
    assert (line["false_accepts"]["value"], line["unjudged"]) == (0.1, 4)
    assert precision_of(found).value == pytest.approx(6 / 7)


def test_classes_with_rates_of_their_own_are_added_up():
    """Half lenient: never wrong on answerable questions, always accepting on unanswerable ones."""
    found = [
        *judged(True, "accept", 50, answerable=True), *judged(False, "reject", 50, answerable=True),
        *judged(True, "accept", 50, answerable=False), *judged(False, "reject", 25, answerable=False),
        *judged(False, "accept", 25, answerable=False),
    ]  # fmt: skip
    seen = {"answerable": AnswerTally(80, 20), "unanswerable": AnswerTally(75, 25)}
    everything, answerable, unanswerable = summary(found, seen, CONFIG, fell_short=None)["classes"]
    assert answerable["wrong_accepted_answers"]["value"] == 0
    assert unanswerable["wrong_accepted_answers"]["value"] == pytest.approx(25)
    assert everything["wrong_accepted_answers"]["value"] == pytest.approx(25)
    assert everything["precision_of_answers"]["value"] == pytest.approx(1 - 25 / 155)


def test_a_minimum_that_is_not_asked_for_is_not_missed():
    assert shortfall(judged(False, "accept", 5), CONFIG) is None
