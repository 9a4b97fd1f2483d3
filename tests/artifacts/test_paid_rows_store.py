"""The row store: a row is paid for once."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import paid_rows
from tasks.artifacts.paid_rows import LATEST_SQL, RowStore, row_key
from tasks.artifacts.store import Store, open_store
from tasks.tables.duckdb_query import query

SCHEMA = pa.schema(
    [("row_key", pa.string()), ("text", pa.string()), ("problem", pa.string()), ("retryable", pa.bool_())]
)
MINE, THEIRS = "1" * 64, "2" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def opened(store: Store, origin: str = MINE, space: str = "space") -> RowStore:
    return RowStore(store, "outputs", space, SCHEMA, origin=origin)


def done(key: str, text: str = "yes") -> dict[str, object]:
    return {"row_key": key, "text": text, "problem": None, "retryable": None}


def failed(key: str, *, retryable: bool) -> dict[str, object]:
    return {"row_key": key, "text": None, "problem": "timeout: 60 s", "retryable": retryable}


def keep(store: Store, *kept: dict[str, object], origin: str = MINE, space: str = "space") -> None:
    into = opened(store, origin, space)
    into.append(list(kept))
    into.flush()


def latest(store: Store, tmp_path: Path) -> dict[str, str | None]:
    with query(LATEST_SQL, {"rows": opened(store).parts()}, spill=tmp_path) as reader:
        return {row["row_key"]: row["text"] for row in reader.read_all().to_pylist()}


def test_a_finished_row_is_done_for_every_later_run(store):
    keep(store, done("a"), done("b"))
    assert opened(store).done() == ({"a", "b"}, set())


def test_rows_of_another_step_count_apart(store):
    keep(store, done("a"))
    keep(store, done("b"), origin=THEIRS)
    assert opened(store).done() == ({"a"}, {"b"})
    assert opened(store, THEIRS).done() == ({"b"}, {"a"})


def test_rows_of_another_space_do_not_count(store):
    keep(store, done("a"), space="other model")
    assert opened(store).done() == (set(), set())


def test_a_failure_that_may_pass_is_tried_again_and_another_is_not(store):
    keep(store, failed("again", retryable=True), failed("never", retryable=False))
    assert opened(store).done().here == {"never"}


def test_by_force_no_failure_is_done(store):
    keep(store, done("a"), failed("never", retryable=False), failed("again", retryable=True))
    keep(store, done("b"), failed("theirs", retryable=False), origin=THEIRS)
    assert opened(store).done(failures=False) == ({"a"}, {"b"})


def test_a_later_success_makes_a_failed_row_done(store, tmp_path):
    keep(store, failed("a", retryable=True), origin=MINE)
    keep(store, done("a", "at last"), origin=THEIRS)
    assert opened(store).done() == (set(), {"a"})
    assert latest(store, tmp_path) == {"a": "at last"}


def test_a_success_counts_before_a_later_failure(store, tmp_path):
    keep(store, done("a", "at first"))
    keep(store, failed("a", retryable=True), origin=THEIRS)
    assert latest(store, tmp_path) == {"a": "at first"}


@pytest.mark.parametrize("final_first", [True, False])
def test_a_final_failure_counts_before_one_that_may_be_tried_again(store, tmp_path, final_first):
    for origin in (MINE, THEIRS):  # of which one is read first
        final = (origin == MINE) == final_first
        keep(store, failed("a", retryable=not final), origin=origin)
    with query(LATEST_SQL, {"rows": opened(store).parts()}, spill=tmp_path) as reader:
        assert [row["retryable"] for row in reader.read_all().to_pylist()] == [False]


def test_each_key_is_read_back_once(store, tmp_path):
    keep(store, done("a"), done("a"), done("b"))
    keep(store, done("a"), failed("c", retryable=False), origin=THEIRS)
    assert latest(store, tmp_path) == {"a": "yes", "b": "yes", "c": None}


def test_the_first_rows_are_safe_at_once(store):
    opened(store).append([done("a")])
    assert opened(store).done().here == {"a"}


def test_rows_are_safe_before_the_step_ends(store, monkeypatch):
    monkeypatch.setattr(paid_rows, "PART_ROWS", 3)
    into = opened(store)
    into.append([done("first")])
    into.append([done("a"), done("b")])
    assert opened(store).done().here == {"first"}
    into.append([done("c")])
    assert opened(store).done().here == {"first", "a", "b", "c"}


def test_rows_are_safe_after_a_few_seconds(store, monkeypatch):
    into = opened(store)
    into.append([done("first")])
    monkeypatch.setattr(paid_rows, "PART_SECONDS", 0.0)
    into.append([done("a")])
    assert opened(store).done().here == {"first", "a"}


def test_nothing_pending_writes_no_part(store):
    opened(store).flush()
    assert opened(store).parts() == []


def test_a_part_that_was_being_written_at_a_kill_is_not_read(store):
    keep(store, done("a"))
    folder = opened(store).parts()[0].parent
    (folder / ".part-1111111111111111-torn.parquet").write_bytes(b"PAR1 half of")
    assert opened(store).done().here == {"a"}


TORN = [b"", bytes(300), b"PAR1 half of", b"PAR1" + b"x" * 60 + b"\x08\0\0\0PAR1"]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_part_is_passed_over_and_its_rows_are_paid_for_again(store, tmp_path, caplog, torn):
    keep(store, done("a"))
    keep(store, done("b"))
    (path,) = (part for part in opened(store).parts() if pq.read_table(part).column("row_key").to_pylist() == ["b"])
    path.write_bytes(torn)
    rows = opened(store)
    assert rows.done().here == {"a"}
    assert rows.done().here == {"a"}
    assert caplog.text.count(f"{path}: skipped, because it cannot be read") == 1
    keep(store, done("b", "again"))
    assert latest(store, tmp_path) == {"a": "yes", "b": "again"}


def test_a_part_is_on_the_disk_before_it_has_its_name_and_so_is_then_the_name(store, monkeypatch):
    synced: list[tuple[str, list[str]]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        folder = path if path.is_dir() else path.parent
        synced.append((path.name[:6], sorted(name.name[:5] for name in folder.iterdir())))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    keep(store, done("a"))
    assert synced == [(".part-", [".part"]), ("space", ["part-"])]


def test_a_key_depends_on_the_space_and_on_all_of_the_prompt():
    keys = {
        row_key("space", [{"role": "user", "content": "a"}], 0),
        row_key("other", [{"role": "user", "content": "a"}], 0),
        row_key("space", [{"role": "user", "content": "b"}], 0),
        row_key("space", [{"role": "system", "content": "a"}], 0),
        row_key("space", [{"role": "user", "content": "a"}], 1),
    }
    assert len(keys) == 5
    assert all(len(key) == 32 for key in keys)
    assert row_key("space", ["a"], 0) == row_key("space", ["a"], 0)
