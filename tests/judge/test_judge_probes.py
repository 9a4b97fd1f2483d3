"""Probes: that their truth is certain, that every kind is made, and that the draw is stable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toy

from tasks.config import AbstentionConfig
from tasks.judge.probes import JudgeProbe, draw, make_probes
from tasks.measures.final_numbers import final_number
from tasks.measures.refusals import refuses

PHRASES = AbstentionConfig().phrases
REFUSAL = "I cannot find this in the document."
CITIES = ["Oslo", "Rome", "Paris", "Cairo", "Lima", "Bonn", "Bern", "Riga", "Kiev", "Doha"]


def grounded(i: int) -> toy.Row:
    known = {"task": "grounded_qa", "document": f"Document {i}.", "question": f"Where does P{i} live?"}
    if i % 3 == 2:
        return toy.example(f"{i:03}", **known, golds=[REFUSAL], answerable=False)
    city, other = CITIES[i % 10], CITIES[(i + 1) % 10]
    return toy.example(f"{i:03}", **known, golds=[f"P{i} lives in {city}.", city], incorrect=[other], answerable=True)


ROWS = [grounded(i) for i in range(30)]
SUMS = [toy.example(f"{i:03}", task="number", golds=[f"It is\n#### {i // 2}", str(i // 2)]) for i in range(20)]


def made(rows: list[toy.Row], n: int = 60, **options: Any) -> list[JudgeProbe]:
    return make_probes(rows, n, seed=0, phrases=PHRASES, **options)


def test_half_of_the_probes_are_acceptable_and_every_kind_is_there():
    found = made(ROWS)
    assert len(found) == 60
    assert sum(probe.acceptable for probe in found) == pytest.approx(30, abs=3)
    assert set(Counter(probe.kind for probe in found)) == {
        "other_gold", "wrapped", "respelled", "refusal_reworded",
        "other_answer", "known_wrong", "negated", "emptied", "truncated", "refused",
    }  # fmt: skip


def test_a_probe_of_an_unanswerable_question_is_acceptable_exactly_if_it_refuses():
    unanswerable = [probe for probe in made(ROWS, 90) if probe.case.answerable is False and probe.case.candidate]
    assert {probe.acceptable for probe in unanswerable} == {True, False}
    for probe in unanswerable:
        assert refuses(probe.case.candidate, PHRASES) == probe.acceptable, probe


def test_no_wrong_probe_holds_a_gold_but_to_deny_it():
    for probe in made(ROWS, 90):
        city = probe.case.golds[-1]
        if probe.case.answerable and probe.kind != "negated":
            assert (city.lower() in probe.case.candidate.lower()) == probe.acceptable, probe


def test_the_gold_of_another_example_is_not_taken_where_it_is_right_too():
    rows = [toy.example("a", golds=["Oslo"]), toy.example("b", golds=["In Oslo."]), toy.example("c", golds=["oslo"])]
    assert "other_answer" not in {probe.kind for probe in made(rows)}


def test_probes_of_sums_are_right_exactly_if_the_final_number_is():
    found = made(SUMS)
    assert {probe.kind for probe in found} >= {"wrapped", "other_gold", "other_answer", "emptied"}
    for probe in found:
        right = final_number(probe.case.candidate) == final_number(probe.case.golds[-1])
        assert right == probe.acceptable, probe


def test_a_half_that_still_says_it_is_no_probe():
    rows = [toy.example("a", golds=["Oslo it is, she says so", "Oslo"])]
    assert "truncated" not in {probe.kind for probe in made(rows)}


def test_the_draw_hangs_on_the_seed_and_hardly_on_other_rows(tmp_path: Path):
    def drawn(rows: list[toy.Row], seed: int = 0) -> set[str]:
        toy.write(tmp_path / "examples.parquet", "examples", rows)
        return {row["example_id"] for row in draw(tmp_path / "examples.parquet", 10, seed=seed)}

    assert drawn(ROWS) == drawn(ROWS)
    assert drawn(ROWS) != drawn(ROWS, seed=1)
    assert len(drawn(ROWS) & drawn(ROWS[:-3])) >= 7


def test_test_rows_and_other_tasks_are_not_drawn(tmp_path: Path):
    rows = [
        *ROWS[:6],
        *(toy.example(f"t{i}", split="test") for i in range(5)),
        *(toy.example(f"x{i}") for i in range(5)),
    ]
    toy.write(tmp_path / "examples.parquet", "examples", sorted(rows, key=lambda row: row["example_id"]))
    found = draw(tmp_path / "examples.parquet", 50, seed=0, tasks={"grounded_qa"})
    assert {row["example_id"] for row in found} == {row["example_id"] for row in ROWS[:6]}


def test_few_rows_give_several_probes_each_but_none_twice():
    found = made(ROWS[:4], 100)
    assert len({probe.probe_id for probe in found}) == len(found) > 8
    assert made(ROWS[:4], 5) == found[:5]


def test_a_probe_of_a_dialogue_carries_its_turns():
    turns = [{"role": "user", "content": "Hello."}, {"role": "user", "content": "Where?"}]
    assert {str(probe.case.dialogue) for probe in made([row | {"dialogue": turns} for row in ROWS])} == {str(turns)}


def test_no_rows_give_no_probes():
    assert made([]) == []
