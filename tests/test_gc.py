"""Removing what no kept run uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.gc import collect
from flows.records import RunRecord, StepRecord
from tasks.store import Manifest, Ref, Store, describe_files, open_store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def publish(store: Store, step: str, letter: str) -> Ref:
    ref = Ref(step=step, fingerprint=letter * 64)
    with store.staging(**ref) as out:
        (out / "rows").write_text("12345")
        store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))
    return ref


def save_run(store: Store, day: int, *refs: Ref, status: str = "completed") -> None:
    steps = tuple(StepRecord(ref["step"], ref, {}) for ref in refs)
    started = f"2026-01-{day:02}T00:00:00+00:00"
    RunRecord(f"run-{day:02}", "run", started, {}, status=status, steps=steps).save(store)


@pytest.fixture
def refs(store: Store) -> list[Ref]:
    """Three artifacts: of the older run alone, of both runs, of the newer run alone; and one of none."""
    made = [publish(store, step, letter) for step, letter in (("train", "a"), ("ingest", "b"), ("train", "c"))]
    save_run(store, 1, made[0], made[1])
    save_run(store, 2, made[1], made[2])
    return [*made, publish(store, "judge", "d")]


def there(store: Store, refs: list[Ref]) -> list[bool]:
    return [store.verified(**ref) is not None for ref in refs]


def test_only_what_no_kept_run_uses_is_removed(store, refs):
    found = collect(store, keep=1, remove=True)
    assert sorted(found.artifacts) == [f"judge/{'d' * 64}", f"train/{'a' * 64}"]
    assert found.n_bytes == 10
    assert there(store, refs) == [False, True, True, False]


def test_what_would_go_is_told_and_stays(store, refs):
    assert len(collect(store, keep=1, remove=False).artifacts) == 2
    assert there(store, refs) == [True] * 4


def test_the_newest_runs_are_kept(store, refs):
    assert collect(store, keep=2, remove=False).artifacts == [f"judge/{'d' * 64}"]
    assert len(collect(store, keep=0, remove=False).artifacts) == 4


def test_generated_rows_are_never_removed(store, refs):
    rows = Path(store.path("rows", "outputs", "space", "part-1.parquet"))
    rows.parent.mkdir(parents=True)
    rows.write_text("paid for")
    collect(store, keep=0, remove=True)
    assert rows.exists()


def test_the_command_finds_artifacts_without_any_step_being_imported(store, refs):
    # In a process of its own: here other tests have imported every step.
    command = [sys.executable, "-m", "flows.cli", "gc", "--store", store.uri, "--keep", "1", "--yes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "removed 2 artifacts" in done.stdout
    assert there(store, refs) == [False, True, True, False]
