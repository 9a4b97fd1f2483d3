"""What `--force` makes again, and what follows from it."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flows.execution.runner import PrefectRunner, RunOptions
from flows.execution.terminal import TerminalListener
from flows.planning.reasons import plan_lines
from flows.rehearsal import plan_steps, rehearse
from tasks.artifacts.store import Manifest, Store, open_store
from tasks.config import RunConfig, parse_recipe
from tasks.running.step import Planned


def recipe(kind: str) -> RunConfig:
    return parse_recipe(
        {
            "name": "toy", "model": {"base": "lab"}, "engine": {"kind": kind},
            "data": {"sources": [{"name": "lab", "reader": "lab"}]},
            "arms": [{"name": "sft", "policy": "gold"}, {"name": "own", "policy": "self_only"}],
            "evaluate": {"benchmarks": ["lab"]},
        },
        where="toy",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Any) -> Store:
    return open_store(str(tmp_path / "store"))


def forced_and_refreshed(
    store: Store, kind: str, monkeypatch: pytest.MonkeyPatch, *force: str
) -> tuple[set[str], set[str]]:
    """The labels of both, in a run whose every step is there."""
    forced: set[str] = set()
    refreshed: set[str] = set()

    def task(planned: Planned, *, refresh: bool, **_: Any) -> Any:
        def submit(*, force: bool, **_: Any) -> Any:
            forced.update({planned.label} if force else ())
            refreshed.update({planned.label} if refresh else ())
            return SimpleNamespace(state=SimpleNamespace(is_final=lambda: True))

        return SimpleNamespace(submit=submit)

    def reusable(self: Planned, store: Store) -> Manifest:
        return Manifest(**self.ref, identity={}, inputs={}, files=[])

    monkeypatch.setattr("flows.execution.runner.step_task", task)
    monkeypatch.setattr(Planned, "reusable", reusable)
    rehearse(PrefectRunner(store, RunOptions(frozenset(force), 1.0, 99, lambda *_: {})), recipe(kind))
    return forced, refreshed


EVALUATED = {"evaluate base", "evaluate sft", "evaluate own"}


@pytest.mark.parametrize("force", ["measure", "evaluate"])
def test_on_one_server_models_are_measured_again_by_measure_alone_and_what_follows_looks(
    store: Store, monkeypatch: pytest.MonkeyPatch, force: str
) -> None:
    forced, refreshed = forced_and_refreshed(store, "vllm", monkeypatch, force)
    assert forced == {"measure"}
    assert refreshed == {"measure", *EVALUATED, "report"}


def test_one_model_alone_can_be_measured_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    forced, refreshed = forced_and_refreshed(store, "vllm", monkeypatch, "evaluate sft")
    assert (forced, refreshed) == ({"evaluate sft"}, {"evaluate sft", "report"})


def test_in_process_every_evaluate_step_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert forced_and_refreshed(store, "transformers", monkeypatch, "evaluate")[0] == EVALUATED


def test_a_plan_shows_that_a_forced_evaluate_is_a_forced_measure(store: Store) -> None:
    lines = {line.label: line for line in plan_lines(store, plan_steps(recipe("vllm")), {"evaluate"})}
    assert lines["measure"].reason == lines["evaluate base"].reason == "forced"
    assert lines["generate"].reason == "first time"


@pytest.mark.parametrize("told", ["finished", "reused"])
def test_rows_that_may_succeed_are_told_with_what_tries_them_again(told: str) -> None:
    out = StringIO()
    listener = TerminalListener(Console(file=out))
    counts = {"rows_out": 40, "rows_retryable": 2}
    for label in ("judge", "judge rewrites"):
        if told == "finished":
            listener.finished(label, counts, 1.0)
        else:
            listener.reused(label, counts)
    listener.reused("select ssr", {"rows_out": 40})
    assert "2 failed rows may succeed on another try: --force judge\n" in out.getvalue()
    assert "--force 'judge rewrites'\n" in out.getvalue()
    assert out.getvalue().count("another try") == 2
