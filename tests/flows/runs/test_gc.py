"""Removing what no kept run uses, and what unfinished and killed work left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from in_process import ssr

from flows.runs import gc
from flows.runs.gc import collect, collected_lines
from flows.runs.records import RunRecord, StepRecord
from tasks.artifacts import unfinished
from tasks.artifacts.claims import claimed
from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.paid_rows import RowStore
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.errors import StoreError

if TYPE_CHECKING:  # pytest loads it itself
    from s3 import S3, S3Proxy

pytest_plugins = ["s3"]

ROOT = Path(__file__).parents[3]
TRAIN = Ref(step="train", fingerprint="f" * 64)
DEAD = b'{"owner": "x", "place": "y", "who": "gone", "expires": 1}'


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


# --- unfinished work ---


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3").uri)


def checkpoint(store: Store, ref: Ref = TRAIN) -> None:
    """Ten bytes of work of a step that is not done, here and, on a remote store, there."""
    folder = store.work_folder(**ref) / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("0123456789")
    unfinished.push(store, ref, "checkpoints/checkpoint-3", only_newest=True)


def has_work(store: Store, ref: Ref = TRAIN) -> bool:
    """Whether there is any, here or on the store."""
    here = store.cache / "work" / ref["step"] / ref["fingerprint"]
    return here.exists() or bool(store.names("work", ref["step"], ref["fingerprint"]))


def grown_old(path: Path, days: float = 2) -> None:
    """As if nothing there had changed for days."""
    then = time.time() - days * 24 * 3600
    for one in [*path.rglob("*"), path]:
        os.utime(one, (then, then))


def test_the_work_of_a_run_that_was_given_up_goes_when_it_is_old(any_store: Store) -> None:
    checkpoint(any_store)
    assert collect(any_store, keep=10, days=1, remove=True).work == []
    assert has_work(any_store)
    would = collect(any_store, keep=10, days=0, remove=False)
    assert would.work == [f"train/{'f' * 64}"]
    assert has_work(any_store)
    assert collect(any_store, keep=10, days=0, remove=True) == would
    assert not has_work(any_store)
    assert collect(any_store, keep=10, days=0, remove=True).work == []


def test_the_bytes_of_work_are_told_by_kind_and_in_all(local: Store) -> None:
    checkpoint(local)
    publish(local, "train", "a")
    found = collect(local, keep=0, days=0, remove=False)
    assert (found.n_bytes_of["work"], found.n_bytes_of["artifacts"], found.n_bytes) == (10, 5, 15)


def test_work_on_s3_counts_there_and_in_the_cache_folder(s3: S3) -> None:
    store = open_store(s3.uri)
    checkpoint(store)
    lists = sum(len(content) for name, content in s3.objects().items() if name.endswith(".complete"))
    assert collect(store, keep=0, days=0, remove=False).n_bytes == 20 + lists


def test_another_machine_removes_work_that_is_only_on_s3(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(open_store(s3.uri))
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "another machine"))
    assert collect(open_store(s3.uri), keep=0, days=0, remove=True).work == [f"train/{'f' * 64}"]
    assert s3.objects() == {}


@pytest.fixture
def local(store: Store) -> Store:
    return store


def test_work_goes_by_its_newest_file(local: Store) -> None:
    checkpoint(local)
    folder = local.work_folder(**TRAIN)
    grown_old(folder, days=30)
    (folder / "checkpoints" / "checkpoint-3" / "weights").write_text("written now")
    assert collect(local, keep=0, remove=False).work == []
    grown_old(folder, days=30)
    assert collect(local, keep=0, remove=False).work == [f"train/{'f' * 64}"]


def test_the_work_of_a_kept_run_stays_however_old(any_store: Store) -> None:
    checkpoint(any_store)
    save_run(any_store, 1, TRAIN, status="failed")
    assert collect(any_store, keep=1, days=0, remove=True).work == []
    assert has_work(any_store)
    assert collect(any_store, keep=0, days=0, remove=True).work != []


def test_a_killed_run_stays_running_for_ever_and_keeps_artifacts_but_not_old_work(local: Store) -> None:
    made = publish(local, "ingest", "b")
    checkpoint(local)
    save_run(local, 1, made, TRAIN, status="running")
    assert collect(local, keep=0, remove=True).work == []
    found = collect(local, keep=0, days=0, remove=True)
    assert (found.artifacts, found.work) == ([], [f"train/{'f' * 64}"])


def test_the_work_of_a_step_that_is_done_goes_at_once(any_store: Store) -> None:
    save_run(any_store, 1, publish(any_store, "train", "f"))
    checkpoint(any_store)
    found = collect(any_store, keep=1, remove=True)
    assert (found.artifacts, found.work) == ([], [f"train/{'f' * 64}"])
    assert not has_work(any_store)
    assert any_store.verified(**TRAIN) is not None


def test_what_a_worker_is_at_stays(any_store: Store) -> None:
    publish(any_store, "train", "f")
    checkpoint(any_store)
    with claimed(any_store, TRAIN):
        found = collect(any_store, keep=0, days=0, remove=True)
        assert (found.artifacts, found.work, found.claims) == ([], [], [])
        assert has_work(any_store)
    assert collect(any_store, keep=0, days=0, remove=True).work != []


def test_work_that_a_worker_claims_while_it_is_looked_for_stays_and_is_not_told(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(any_store)
    with claimed(any_store, TRAIN):
        monkeypatch.setattr(gc, "is_claimed", lambda store, ref: False)  # as a moment before
        found = collect(any_store, keep=0, days=0, remove=True)
    assert (found.work, found.claims) == ([], [])
    assert has_work(any_store)


# --- claims, copies, leftovers ---


def test_the_claim_of_a_dead_worker_goes(any_store: Store) -> None:
    lock = any_store.cache / "claims" / "train" / f"{'e' * 64}.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("gone")
    names = [f"train/{'e' * 64}"]
    if not isinstance(any_store, LocalStore):
        any_store.files.write(any_store.path("claims", "train", f"{'d' * 64}.json"), DEAD)
        names.insert(0, f"train/{'d' * 64}")
    with claimed(any_store, TRAIN):
        assert collect(any_store, keep=0, remove=False).claims == names
        assert lock.exists()
        assert collect(any_store, keep=0, remove=True).claims == names
        assert not lock.exists()
        left = [name for name in any_store.names("claims", "train") if not name.startswith("f")]
        assert left == []
        assert any_store.names("claims", "train") != []
    assert collect(any_store, keep=0, remove=True).claims == []


def test_copies_of_artifacts_that_are_gone_or_go_now_are_removed_from_the_cache_folder(s3: S3) -> None:
    store = open_store(s3.uri)
    kept, unused, elsewhere = (publish(store, "train", letter) for letter in "abc")
    save_run(store, 1, kept)
    store.files.remove_folder(store.path("steps", "train", elsewhere["fingerprint"]))  # by another machine
    found = collect(store, keep=1, remove=True)
    assert found.artifacts == [f"train/{unused['fingerprint']}"]
    assert found.copies == [f"train/{unused['fingerprint']}", f"train/{elsewhere['fingerprint']}"]
    assert [path.name for path in (store.cache / "steps" / "train").iterdir()] == [kept["fingerprint"]]
    assert (store.fetch(kept) / "rows").exists()


def test_what_a_kill_left_half_written_goes_when_it_is_a_day_old(any_store: Store) -> None:
    base = any_store.cache
    names = ["rows/outputs/space/.part-1.parquet"]
    if isinstance(any_store, LocalStore):
        names += ["steps/train/.staging-1234/weights", "items/.abcd", "runs/a.json.12345678.part"]
    else:
        names += ["staging/train/.staging-1234/weights", f"steps/train/{'a' * 64}/adapter/.weights.{'0' * 32}"]
        publish(any_store, "train", "a")
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("12345")
    save_run(any_store, 1, Ref(step="train", fingerprint="a" * 64))
    assert collect(any_store, keep=1, remove=True).leftovers == []
    for name in names:
        grown_old(base / name)
        grown_old((base / name).parent)
    found = collect(any_store, keep=1, remove=True)
    assert sorted(found.leftovers) == sorted(name.removesuffix("/weights") for name in names)
    assert found.n_bytes == 5 * len(names)
    assert [name for name in names if (base / name).exists()] == []


def test_what_is_staged_by_a_step_that_runs_for_days_stays(any_store: Store) -> None:
    with claimed(any_store, TRAIN), any_store.staging(**TRAIN) as out:
        grown_old(out)
        assert collect(any_store, keep=0, remove=True).leftovers == []
        assert out.exists()


def test_what_was_paid_for_stays(any_store: Store, s3: S3, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, also those that could not be sent yet, and benchmark items."""
    schema = pa.schema([("row_key", pa.string()), ("problem", pa.string()), ("retryable", pa.bool_())])
    rows = RowStore(any_store, "outputs", "space", schema, origin="1" * 64)
    item = any_store.path("items", "key.parquet")
    any_store.files.write(item, b"paid for")
    rows.append([{"row_key": "sent", "problem": None, "retryable": None}])
    rows.flush()
    if not isinstance(any_store, LocalStore):
        monkeypatch.setattr("tasks.artifacts.s3.PATIENCE_SECONDS", 0.1)
        s3_proxy.refuse("AccessDenied", only="PUT /")
        again = RowStore(open_store(s3.uri), "outputs", "space", schema, origin="1" * 64)
        with pytest.raises(StoreError):
            again.append([{"row_key": "unsent", "problem": None, "retryable": None}])
        s3_proxy.heal()
    grown_old(any_store.cache, days=30)
    found = collect(any_store, keep=0, days=0, remove=True)
    assert found.n_bytes == 0
    assert any_store.files.read(item) == b"paid for"
    done = RowStore(any_store, "outputs", "space", schema, origin="1" * 64).done()
    assert done.here == ({"sent"} if isinstance(any_store, LocalStore) else {"sent", "unsent"})


def test_a_name_in_the_store_that_leads_out_of_it_removes_nothing(s3: S3) -> None:
    store = open_store(s3.uri)
    publish(store, "train", "a")
    s3.fs.pipe_file(f"{s3.uri.removeprefix('s3://')}/steps/train/../manifest.json", b"{}")
    with pytest.raises(StoreError, match=r"steps/train: '\.\.' does not name a file below it"):
        collect(store, keep=0, remove=True)
    assert (store.cache / "steps" / "train" / ("a" * 64) / "rows").exists()


def test_people_are_told_each_kind_with_its_size(local: Store) -> None:
    checkpoint(local)
    lines = list(collected_lines(collect(local, keep=0, days=0, remove=False), removed=False))
    assert lines == [
        "would remove 0 artifacts, 0.0 MB", "would remove 1 folders of unfinished work, 0.0 MB",
        f"    train/{'f' * 64}", "in all 0.0 MB",
    ]  # fmt: skip


def test_the_command_tells_first_and_removes_when_told(local: Store) -> None:
    checkpoint(local)
    grown_old(local.work_folder(**TRAIN), days=3)

    def gc(*arguments: str) -> str:
        return ssr("gc", "--store", local.uri, *arguments).stdout

    assert json.loads(gc("--json"))["work"] == []
    would = json.loads(gc("--days", "2", "--json"))
    assert (would["work"], would["n_bytes"]) == ([f"train/{'f' * 64}"], 10)
    assert has_work(local)
    assert "removed 1 folders of unfinished work" in gc("--days", "2", "--yes")
    assert not has_work(local)
