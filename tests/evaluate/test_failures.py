"""Rows that the engine does not answer: counted, capped, and never kept as if they had been measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy

from tasks.artifacts.store import Store, open_store
from tasks.config import AbstentionConfig, EngineConfig, EvaluateConfig, ModelConfig
from tasks.engines import Continuation, Likelihood, Reply, Request
from tasks.errors import StepError
from tasks.evaluate import evaluate
from tasks.running.step import Planned

EXAMPLES = [
    *(toy.example(f"a{i}", split="test", source="first") for i in range(4)),
    *(toy.example(f"b{i}", split="test", source="second", domain="out") for i in range(4)),
]
PASSES = "timeout: 60 s", True
STAYS = "context_overflow: 9 > 8", False


class Engine:
    """Answers all but what it is told to fail at.

    Attributes:
        fails: By question, why, and whether another try may help.
        asked: Questions that were asked, in order.
    """

    def __init__(self) -> None:
        self.fails: dict[str, tuple[str, bool]] = {}
        self.unlikely: dict[str, tuple[str, bool]] = {}
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request], sampling: Any, **_: Any) -> Iterator[Reply]:
        for request in requests:
            self.asked.append(request.key)
            problem, retryable = self.fails.get(request.key, (None, None))
            if problem:
                yield Reply(request.key, None, problem=problem, retryable=retryable)
            else:
                yield Reply(request.key, f"gold {request.key}", "stop", 3, 2)

    def likelihoods(self, continuations: Iterable[Continuation], **_: Any) -> Iterator[Likelihood]:
        for one in continuations:
            problem, retryable = self.unlikely.get(one.key, (None, None))
            yield Likelihood(one.key, None if problem else 1.0, problem, retryable)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    found = Engine()

    @contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[Engine]:
        yield found

    own = evaluate.body.__globals__
    monkeypatch.setitem(own, "open_engine", opened)
    monkeypatch.setitem(own, "model_digest", lambda model: "weights")
    monkeypatch.setitem(own, "best_device", lambda: "none")
    return found


def planned(store: Store, **changes: Any) -> Planned:
    return dataclasses.replace(evaluate, launcher=None).plan(
        model=ModelConfig(), engine=EngineConfig(), abstention=AbstentionConfig(),
        config=EvaluateConfig.model_validate({"benchmarks": (), "drift_rows": 0} | changes),
        examples=toy.put(store, "examples", EXAMPLES),
    )  # fmt: skip


def unscored(store: Store, made: Planned) -> set[str]:
    rows = pq.read_table(store.fetch(made.ref) / "items.parquet").to_pylist()
    return {row["item_id"] for row in rows if row["score"] is None}


@pytest.mark.parametrize("why", [PASSES, STAYS])
def test_too_many_failed_rows_of_a_task_fail_the_step(store: Store, engine: Engine, why: tuple[str, bool]) -> None:
    engine.fails = {"b0": why, "b1": why}
    with pytest.raises(StepError, match=r"2 of 4 rows of task-second have no answer.*evaluate\.max_failed_share"):
        planned(store, max_failed_share=0.4).execute(store)
    engine.asked.clear()
    made = planned(store, max_failed_share=0.5)
    made.execute(store)
    assert set(engine.asked) == {"b0", "b1", "b2", "b3"}, "what was finished is kept, and only that"
    assert unscored(store, made) == {"b0", "b1"}


def test_a_part_with_rows_that_may_succeed_is_asked_again_by_the_next_try(store: Store, engine: Engine) -> None:
    engine.fails = {"a0": PASSES, "b0": STAYS, "b1": STAYS}
    with pytest.raises(StepError, match="task-second"):
        planned(store, max_failed_share=0.3).execute(store)
    engine.fails, engine.asked = {}, []
    made = planned(store, max_failed_share=0.3)
    made.execute(store)
    assert set(engine.asked) == {row["example_id"] for row in EXAMPLES}
    assert unscored(store, made) == set()


def test_what_may_succeed_is_counted_and_told(store: Store, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine.fails = {"a0": PASSES, "b0": STAYS}
    made = planned(store, max_failed_share=0.3)
    made.execute(store)
    assert toy.counts_of(store, made.ref)["rows_retryable"] == 1
    assert "1 failed row may succeed on another try: --force evaluate" in caplog.text


@pytest.mark.parametrize("fail", [lambda engine: engine.fails, lambda engine: engine.unlikely])
def test_too_many_failed_rows_of_the_drift_fail_the_step(
    store: Store, engine: Engine, fail: Callable[[Engine], dict[str, Any]]
) -> None:
    with_drift = {"max_task_rows": 1, "drift_rows": 4, "max_failed_share": 0.3}
    fail(engine).update({"a2": PASSES, "a3": PASSES})
    with pytest.raises(StepError, match=r"2 of 4 rows of drawn have no answer"):
        planned(store, **with_drift).execute(store)
    del fail(engine)["a3"]
    made = planned(store, **with_drift)
    made.execute(store)
    drawn = pq.read_table(store.fetch(made.ref) / "drawn.parquet").to_pylist()
    assert [row["example_id"] for row in drawn if row["base_nll"] is None] == ["a2"]
