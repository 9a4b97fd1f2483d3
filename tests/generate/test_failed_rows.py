"""Rows that failed: tried again by the next run, by force, or counted and told; too many of them fail the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy

from tasks import asking
from tasks.artifacts.store import Store, open_store
from tasks.config import EngineConfig, GenerateConfig, ModelConfig
from tasks.engines import Continuation, Likelihood, Reply, Request
from tasks.errors import StepError
from tasks.generate import filling, generate, likelihood
from tasks.generate.answers import paid_answers
from tasks.running.step import Planned

EXAMPLES = [toy.example(key) for key in "abcd"]
PASSES = "timeout: 60 s", True
STAYS = "context_overflow: 9 > 8", False


class Engine:
    """Answers all but what it is told to fail at: by question, why, and whether another try may help."""

    def __init__(self) -> None:
        self.fails: dict[str, tuple[str, bool]] = {}
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request], sampling: Any, *, done: Container[str] = ()) -> Iterator[Reply]:
        for request in requests:
            if request.key not in done:
                problem, retryable = self._ask(request)
                yield Reply(request.key, None if problem else "yes", problem=problem, retryable=retryable)

    def likelihoods(self, continuations: Iterable[Continuation], *, done: Container[str] = ()) -> Iterator[Likelihood]:
        for one in continuations:
            problem, retryable = self._ask(one)
            yield Likelihood(one.key, None if problem else 1.0, problem, retryable)

    def _ask(self, asked: Request | Continuation) -> tuple[str | None, bool | None]:
        question = asked.messages[-1]["content"].removeprefix("Q ").removesuffix("?")
        self.asked.append(question)
        return self.fails.get(question, (None, None))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    found = Engine()

    @contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[Engine]:
        yield found

    monkeypatch.setattr(asking, "open_engine", opened)
    monkeypatch.setattr(filling, "model_digest", lambda model: "weights")
    for uses_it in (paid_answers, likelihood.body):
        monkeypatch.setitem(uses_it.__globals__, "space_of", lambda *settings: "space")
    return found


def generating(store: Store, **config: Any) -> Planned:
    return dataclasses.replace(generate, launcher=None).plan(
        model=ModelConfig(), engine=EngineConfig(), config=GenerateConfig(**config),
        examples=toy.put(store, "examples", EXAMPLES),
    )  # fmt: skip


def measuring(store: Store, **config: Any) -> Planned:
    tables = {
        "examples": EXAMPLES, "outputs": [toy.output(key, "yes") for key in "abcd"],
        "verdicts": [toy.verdict(key, "reject") for key in "abcd"],
    }  # fmt: skip
    return dataclasses.replace(likelihood, launcher=None).plan(
        model=ModelConfig(), engine=EngineConfig(), config=GenerateConfig(**config),
        **{name: toy.put(store, name, rows) for name, rows in tables.items()},
    )  # fmt: skip


def failed(store: Store, made: Planned) -> set[str]:
    rows = pq.read_table(store.fetch(made.ref) / "outputs.parquet").to_pylist()
    return {row["example_id"] for row in rows if row["text"] is None}


def test_by_force_every_failed_row_is_asked_again_and_no_other(store: Store, engine: Engine) -> None:
    planned = generating(store, max_failed_share=1)
    engine.fails = {"b": PASSES, "c": STAYS}
    planned.execute(store)
    assert failed(store, planned) == {"b", "c"}
    engine.fails, engine.asked = {}, []  # the server has a longer context now
    planned.execute(store, force=True)
    assert sorted(engine.asked) == ["b", "c"]
    assert failed(store, planned) == set()


def test_without_force_a_row_that_failed_for_good_is_not_asked_again(store: Store, engine: Engine) -> None:
    engine.fails = {"b": PASSES, "c": STAYS}
    with pytest.raises(StepError, match=r"2 of 4 rows have no output.*--force generate retries all that failed"):
        generating(store).execute(store)
    engine.asked.clear()
    with pytest.raises(StepError, match="2 of 4 rows have no output"):
        generating(store).execute(store)
    assert engine.asked == ["b"]


@pytest.mark.parametrize("plan", [generating, measuring])
def test_rows_that_may_succeed_are_counted_and_told(
    store: Store, engine: Engine, caplog: pytest.LogCaptureFixture, plan: Any
) -> None:
    engine.fails = {"b": PASSES, "c": STAYS}
    planned = plan(store, max_failed_share=0.5)
    planned.execute(store)
    counts = toy.counts_of(store, planned.ref)
    assert (counts["rows_failed"], counts["rows_retryable"]) == (2, 1)
    name = planned.step.name
    assert f"{name}: 1 failed row may succeed on another try: --force {name}" in caplog.text


def test_nothing_is_told_where_no_other_try_helps(
    store: Store, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fails = {"c": STAYS}
    generating(store, max_failed_share=0.5).execute(store)
    assert "another try" not in caplog.text


def test_likelihoods_that_nearly_all_failed_are_not_chosen_by(store: Store, engine: Engine) -> None:
    engine.fails = dict.fromkeys("abc", STAYS)
    with pytest.raises(StepError, match=r"likelihood: 3 of 4 rows have no likelihood .*generate\.max_failed_share"):
        measuring(store).execute(store)
