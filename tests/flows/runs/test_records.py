"""The record of a run: its name, and the steps it says were used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flows.runs.records import RunRecord, run_id_of
from tasks.artifacts.store import Ref
from tasks.config import RunConfig
from tasks.running.step import Planned


def planned(label: str, fingerprint: str) -> Planned:
    step: Any = None
    return Planned(step, label, Ref(step=label.split()[0], fingerprint=fingerprint), {}, {}, {})


def test_two_runs_that_a_schedule_made_at_once_have_names_of_their_own() -> None:
    began = datetime(2026, 11, 28, 9, 0, 3, tzinfo=UTC)
    made = ("01a21cc7-4b5c-700a-a69e-fe49939870d2", "01a21cc7-4b5c-700b-8c01-2d77ab310f4e")
    assert [run_id_of("nightly", began, flow_run) for flow_run in made] == [
        "nightly-20261128-090003-9870d2", "nightly-20261128-090003-310f4e",
    ]  # fmt: skip


def test_the_steps_that_ran_take_the_place_of_those_that_were_planned() -> None:
    record = RunRecord.begin("run", RunConfig(), [planned("ingest", "old"), planned("report", "old")], flow_run_id="")
    failed = record.with_made([planned("ingest", "new")])
    assert [step.ref["fingerprint"] for step in failed.steps] == ["new", "old"]
    completed = record.with_made([planned("ingest", "new"), planned("report", "new")])
    assert [(step.label, step.ref["fingerprint"]) for step in completed.steps] == [("ingest", "new"), ("report", "new")]
