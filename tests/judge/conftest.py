"""A store, and a judge of the test's own in the place of every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_judge import FakeJudge, Says

from tasks.artifacts.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Says], FakeJudge]:
    """Put a judge of the test's own in the place of every engine."""
    monkeypatch.setattr("tasks.judge.panel.model_digest", lambda model: f"weights of {model.base}")

    def install(says: Says) -> FakeJudge:
        judge = FakeJudge(says)
        monkeypatch.setattr("tasks.asking.open_engine", judge.open)
        return judge

    return install
