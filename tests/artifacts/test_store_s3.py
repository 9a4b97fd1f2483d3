"""A store on S3 that fails: what passes is waited for, all else is said at once, and no half is taken for whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
import s3fs

from tasks.artifacts import s3 as s3_files
from tasks.artifacts import unfinished
from tasks.artifacts.paid_rows import RowStore
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.errors import StoreError

if TYPE_CHECKING:  # pytest loads it itself
    from s3 import S3, S3Proxy

pytest_plugins = ["s3"]

REF = Ref(step="train", fingerprint="f" * 64)
ROWS = pa.schema([("row_key", pa.string()), ("problem", pa.string()), ("retryable", pa.bool_())])
BIG = 40 << 20  # sent and fetched in several pieces


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up at once."""
    monkeypatch.setattr(s3_files, "_REQUEST_TRIES", 1)
    monkeypatch.setattr(s3_files, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(unfinished, "_PATIENCE_SECONDS", 0.1)


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], Store]:
    """The same store as a machine sees it that has no copies of anything."""

    def moved(store: Store) -> Store:
        monkeypatch.setenv("SSR_CACHE", str(tmp_path / "another machine"))
        return open_store(store.uri)

    return moved


def publish(store: Store, ref: Ref = REF, **files: bytes) -> None:
    with store.staging(**ref) as out:
        for name, content in files.items():
            (out / name).write_bytes(content)
        store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))


def contents(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.fetch(REF).iterdir()}


def row_store(store: Store, origin: str = "1") -> RowStore:
    return RowStore(store, "outputs", "space", ROWS, origin=origin * 64)


def row(key: str) -> dict[str, object]:
    return {"row_key": key, "problem": None, "retryable": None}


# --- the preflight ---


def test_a_bucket_that_is_not_there_is_named(s3: S3) -> None:
    with pytest.raises(StoreError, match=r"s3://nosuch/x: there is no such bucket\. Create it"):
        open_store("s3://nosuch/x").preflight()


def test_a_server_that_is_not_there_fails_the_preflight_within_seconds(s3: S3, s3_proxy: S3Proxy) -> None:
    s3_proxy.away()
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"could not write .*, tried for 8 s .*AWS_ENDPOINT_URL is up"):
        open_store(s3.uri).preflight()
    assert time.monotonic() - started < 45


@pytest.mark.slow
def test_a_server_that_never_answers_fails_the_preflight_within_seconds(s3: S3, s3_proxy: S3Proxy) -> None:
    s3_proxy.slow(60)
    started = time.monotonic()
    with pytest.raises(StoreError, match="could not write"):
        open_store(s3.uri).preflight()
    assert time.monotonic() - started < 45


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_credentials_that_are_not_valid_are_said_so_and_not_shown(s3: S3, s3_proxy: S3Proxy, code: str) -> None:
    s3_proxy.refuse(code)
    with pytest.raises(StoreError, match=rf"no valid credentials \({code}.*Set AWS_ACCESS_KEY_ID") as caught:
        open_store(s3.uri).preflight()
    assert s3.secret not in str(caught.value)
    assert len(s3_proxy.calls) == 1, "another try cannot help"


def test_without_credentials_their_names_are_said(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()  # clients that know them already
    with pytest.raises(StoreError, match=r"no valid credentials .*Set AWS_ACCESS_KEY_ID"):
        open_store(s3.uri).preflight()
    s3fs.S3FileSystem.clear_instance_cache()  # and those that have none


@pytest.mark.parametrize("missing", ["PUT /", "GET /", "DELETE /", "list-type=2"])
def test_each_missing_permission_fails_the_preflight(s3: S3, s3_proxy: S3Proxy, missing: str) -> None:
    s3_proxy.refuse("AccessDenied", only=missing)
    with pytest.raises(StoreError, match=r"no permission to .*s3:PutObject"):
        open_store(s3.uri).preflight()


@pytest.mark.parametrize("uri", ["s3://", "gs://bucket/x", "https://host/x"])
def test_only_a_folder_and_s3_are_stores(uri: str) -> None:
    with pytest.raises(StoreError, match=r"It is a folder or s3://bucket/prefix"):
        open_store(uri)


# --- faults that pass ---


def test_everything_works_while_one_call_in_five_fails(
    s3: S3, s3_proxy: S3Proxy, another_machine: Callable[[Store], Store]
) -> None:
    s3_proxy.fail(0.2, seed=1)
    store = open_store(s3.uri)
    store.preflight()
    files = {f"file_{i}": bytes([i]) * 1000 for i in range(10)}
    publish(store, **files)
    rows = row_store(store)
    for key in "abcdefghij":
        rows.append([row(key)])
        rows.flush()
    store.write_json({"status": "completed"}, "runs", "a.json")
    (store.work_folder(**REF) / "part").write_text("1")
    assert unfinished.push(store, REF, "part")

    elsewhere = another_machine(store)
    assert elsewhere.verified(**REF) is not None
    assert contents(elsewhere) == files
    assert row_store(elsewhere, "2").done().elsewhere == set("abcdefghij")
    assert elsewhere.read_json("runs", "a.json") == {"status": "completed"}
    assert unfinished.pull(elsewhere, REF, "part")
    assert {"500", "503", "reset", "lost"} <= {call.outcome for call in s3_proxy.calls}


def test_a_server_that_goes_away_for_some_seconds_is_waited_for(s3: S3, s3_proxy: S3Proxy) -> None:
    store = open_store(s3.uri)
    store.preflight()
    s3_proxy.away(6)
    publish(store, rows=b"1\n")
    assert store.verified(**REF) is not None


@pytest.mark.parametrize("size", [1000, BIG])
def test_an_upload_that_is_cut_is_sent_again(
    s3: S3, s3_proxy: S3Proxy, another_machine: Callable[[Store], Store], size: int
) -> None:
    s3_proxy.cut(uploads=2, only="/rows")
    content = b"0123456789abcdef" * (size // 16)
    publish(open_store(s3.uri), rows=content)
    assert [call.outcome for call in s3_proxy.calls].count("cut upload") == 2
    assert contents(another_machine(open_store(s3.uri))) == {"rows": content}


@pytest.mark.parametrize("size", [1000, BIG])
def test_a_download_that_is_cut_is_fetched_again(
    s3: S3, s3_proxy: S3Proxy, another_machine: Callable[[Store], Store], size: int
) -> None:
    content = b"0123456789abcdef" * (size // 16)
    publish(open_store(s3.uri), rows=content)
    s3_proxy.cut(downloads=3, only="/rows")
    assert contents(another_machine(open_store(s3.uri))) == {"rows": content}
    assert [call.outcome for call in s3_proxy.calls].count("cut download") == 3


# --- faults that stay ---


@pytest.mark.usefixtures("impatient")
def test_an_upload_that_never_arrives_publishes_nothing(s3: S3, s3_proxy: S3Proxy) -> None:
    s3_proxy.cut(uploads=1000, only="/rows")
    with pytest.raises(StoreError, match=r"could not write .*/rows, tried for .* the same command goes on from here"):
        publish(open_store(s3.uri), other=b"x", rows=b"1\n" * 1000)
    assert not any(name.endswith("manifest.json") for name in s3.objects())
    s3_proxy.heal()
    assert open_store(s3.uri).verified(**REF) is None


@pytest.mark.usefixtures("impatient")
def test_an_artifact_that_is_being_replaced_does_not_exist_half_way(s3: S3, s3_proxy: S3Proxy) -> None:
    store = open_store(s3.uri)
    publish(store, a=b"old", b=b"old")
    s3_proxy.refuse("InternalError", status=500, only=f"PUT /{s3.bucket}/team/ssr/steps/train/{'f' * 64}/b")
    with pytest.raises(StoreError):
        publish(store, a=b"new", b=b"new")
    s3_proxy.heal()
    assert store.manifest(**REF) is None, "its files are of two artifacts"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.manifest(**REF), lambda store: store.verified(**REF), lambda store: store.fetch(REF),
        lambda store: store.names("steps"), lambda store: store.read_json("runs", "a.json"),
        lambda store: row_store(store).done(),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("InternalError", 500), ("NoSuchBucket", 404)])
def test_an_error_is_never_taken_for_not_there(
    s3: S3, s3_proxy: S3Proxy, look: Callable[[Store], object], code: str, status: int
) -> None:
    store = open_store(s3.uri)
    publish(store, rows=b"1\n")
    s3_proxy.refuse(code, status=status)
    with pytest.raises(StoreError, match=r"permission|could not|no such bucket"):
        look(store)


@pytest.mark.usefixtures("impatient")
def test_an_error_while_the_files_are_checked_does_not_make_the_step_run_again(s3: S3, s3_proxy: S3Proxy) -> None:
    store = open_store(s3.uri)
    publish(store, rows=b"1\n")
    s3_proxy.refuse("InternalError", status=500, only="list-type=2")
    with pytest.raises(StoreError, match="could not list"):
        store.verified(**REF)


def test_what_another_try_cannot_help_is_asked_once(s3: S3, s3_proxy: S3Proxy) -> None:
    store = open_store(s3.uri)
    s3_proxy.refuse("AccessDenied", only="PUT /")
    with pytest.raises(StoreError, match="no permission to write"):
        store.write_json({}, "runs", "a.json")
    assert len(s3_proxy.calls) == 1


# --- rows ---


@pytest.mark.usefixtures("impatient")
def test_rows_that_could_not_be_sent_are_sent_by_the_next_run(
    s3: S3, s3_proxy: S3Proxy, another_machine: Callable[[Store], Store]
) -> None:
    rows = row_store(open_store(s3.uri))
    s3_proxy.refuse("InternalError", status=500, only="PUT /")
    with pytest.raises(StoreError, match="could not write"):
        rows.append([row("a"), row("b")])
    s3_proxy.heal()
    assert s3.objects() == {}
    assert row_store(open_store(s3.uri)).done().here == {"a", "b"}
    assert row_store(another_machine(open_store(s3.uri)), "2").done().elsewhere == {"a", "b"}


def test_a_part_is_fetched_once_by_each_machine(
    s3: S3, s3_proxy: S3Proxy, another_machine: Callable[[Store], Store]
) -> None:
    rows = row_store(open_store(s3.uri))
    rows.append([row("a")])
    rows.flush()
    rows.done()
    elsewhere = another_machine(open_store(s3.uri))
    for _ in range(3):
        row_store(elsewhere).done()
    fetched = [
        call for call in s3_proxy.calls if call.method == "GET" and call.path.partition("?")[0].endswith(".parquet")
    ]
    assert len(fetched) == 1, "by the machine that did not write it"


def test_a_torn_part_on_the_store_is_passed_over_by_every_machine(
    s3: S3, another_machine: Callable[[Store], Store], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3.uri)
    row_store(store).append([row("a")])
    torn = store.path("rows", "outputs", "space", f"part-{'1' * 16}-torn.parquet")
    store.files.write(torn, b"")
    for one in (store, another_machine(store)):
        caplog.clear()
        assert row_store(one).done().here == {"a"}
        assert f"s3://{torn}: skipped" in caplog.text


def test_a_torn_copy_is_fetched_again(s3: S3) -> None:
    store = open_store(s3.uri)
    row_store(store).append([row("a")])
    (path,) = row_store(store).parts()
    path.write_bytes(b"")
    assert row_store(store).done().here == {"a"}


@pytest.mark.usefixtures("impatient")
def test_a_torn_part_that_was_not_sent_never_is(s3: S3, s3_proxy: S3Proxy, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(s3.uri)
    s3_proxy.refuse("InternalError", status=500, only="PUT /")
    with pytest.raises(StoreError, match="could not write"):
        row_store(store).append([row("a")])
    s3_proxy.heal()
    (unsent,) = store.cache.rglob("unsent-*")
    unsent.write_bytes(b"")
    assert row_store(store).done() == (set(), set())
    assert "damaged, and removed instead of uploaded" in caplog.text
    assert s3.objects() == {}
    assert not list(store.cache.rglob("*.parquet"))


def test_own_parts_count_though_a_listing_does_not_show_them_yet(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = row_store(open_store(s3.uri))
    rows.append([row("a")])
    rows.flush()
    monkeypatch.setattr(Store, "names", lambda *parts: [])
    assert rows.done().here == {"a"}


# --- two publishers ---


def test_an_artifact_that_two_workers_have_mixed_is_made_again_by_the_next_run(
    s3: S3, another_machine: Callable[[Store], Store]
) -> None:
    store = open_store(s3.uri)
    publish(store, rows=b"1\n", other=b"x")
    store.files.write(store.path("steps", "train", "f" * 64, "rows"), b"2\n")  # of the same size
    elsewhere = another_machine(store)
    assert elsewhere.verified(**REF) is not None, "by its sizes it is whole"
    with pytest.raises(StoreError, match=r"not what the manifest says.*Run the same command again to make it"):
        elsewhere.fetch(REF)
    assert elsewhere.verified(**REF) is None
    publish(elsewhere, rows=b"2\n", other=b"x")
    assert contents(elsewhere)["rows"] == b"2\n"


def test_an_artifact_that_is_made_again_while_it_is_read_stays(
    s3: S3, another_machine: Callable[[Store], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3.uri)
    publish(store, rows=b"1\n")
    elsewhere, real, told = another_machine(store), Store.manifest, []

    def manifest(self: Store, step: str, fingerprint: str) -> Manifest | None:
        found = real(self, step, fingerprint)
        if self is elsewhere and not told:
            told.append(found)
            publish(store, rows=b"2\n")
        return found

    monkeypatch.setattr(Store, "manifest", manifest)
    with pytest.raises(StoreError, match="made again while it was read"):
        elsewhere.fetch(REF)
    assert contents(elsewhere)["rows"] == b"2\n"


def test_bytes_that_were_damaged_on_the_way_are_fetched_again(
    s3: S3, another_machine: Callable[[Store], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3.uri)
    publish(store, rows=b"1\n")
    real, spoilt = s3_files.file_digest, []

    def digest(path: Path) -> str:
        if not spoilt:
            spoilt.append(path)
            path.write_bytes(b"X\n")
        return real(path)

    monkeypatch.setattr(s3_files, "file_digest", digest)
    assert contents(another_machine(store)) == {"rows": b"1\n"}
    assert len(spoilt) == 1


# --- work in progress ---


def checkpoint(store: Store, n: int) -> str:
    name = f"checkpoints/checkpoint-{n}"
    folder = store.work_folder(**REF) / name
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_text(f"weights {n}")
    (folder / "inner" / "state").write_text(f"state {n}")
    return name


def test_the_newest_checkpoint_is_there_for_another_machine(s3: S3, another_machine: Callable[[Store], Store]) -> None:
    store = open_store(s3.uri)
    for n in (3, 6):
        assert unfinished.push(store, REF, checkpoint(store, n), only_newest=True)
    elsewhere = another_machine(store)
    assert unfinished.pushed(elsewhere, REF, "checkpoints") == ["checkpoints/checkpoint-6"]
    assert unfinished.pull(elsewhere, REF, "checkpoints/checkpoint-6")
    folder = elsewhere.work_folder(**REF) / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-6"]
    assert (folder / "checkpoint-6" / "weights").read_text() == "weights 6"
    assert (folder / "checkpoint-6" / "inner" / "state").read_text() == "state 6"


@pytest.mark.usefixtures("impatient")
def test_a_checkpoint_that_is_half_sent_does_not_count_and_the_one_before_stays(
    s3: S3, s3_proxy: S3Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3.uri)
    assert unfinished.push(store, REF, checkpoint(store, 3), only_newest=True)
    s3_proxy.refuse("InternalError", status=500, only="checkpoint-6/weights")
    assert not unfinished.push(store, REF, checkpoint(store, 6), only_newest=True)
    assert "checkpoint-6 is only on this machine" in caplog.text
    s3_proxy.heal()
    assert unfinished.pushed(store, REF, "checkpoints") == ["checkpoints/checkpoint-3"]
    assert unfinished.push(store, REF, checkpoint(store, 9), only_newest=True)
    assert {name.split("/")[4].partition(".")[0] for name in s3.objects()} == {"checkpoint-9"}


def test_a_checkpoint_whose_content_is_not_what_was_kept_is_not_used(
    s3: S3, another_machine: Callable[[Store], Store], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3.uri)
    name = checkpoint(store, 3)
    unfinished.push(store, REF, name)
    store.files.write(store.path("work", "train", "f" * 64, name, "weights"), b"weights X")
    elsewhere = another_machine(store)
    assert not unfinished.pull(elsewhere, REF, name)
    assert "damaged and not used" in caplog.text
    assert [path for path in elsewhere.work_folder(**REF).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["../../../../evil", "/tmp/evil", "", "inner/../../evil", None])
def test_work_that_names_a_file_outside_is_not_used_and_nothing_is_written_there(
    s3: S3, another_machine: Callable[[Store], Store], caplog: pytest.LogCaptureFixture, name: object
) -> None:
    store = open_store(s3.uri)
    kept = checkpoint(store, 3)
    unfinished.push(store, REF, kept)
    path = store.path("work", "train", "f" * 64, f"{kept}.complete")
    entries = json.loads(store.files.read(path))
    entries[0]["name"] = name
    store.files.write(path, json.dumps(entries).encode())
    if name:
        s3.fs.pipe_file(f"{store.root}/work/train/{'f' * 64}/{name}", b"state 3")
    elsewhere = another_machine(store)
    assert not unfinished.pull(elsewhere, REF, kept)
    assert f"{kept}.complete: {name!r} does not name a file below it" in caplog.text
    assert [file for file in elsewhere.cache.rglob("*") if file.is_file()] == []


def test_a_checkpoint_whose_name_leads_out_of_its_folder_is_an_error(s3: S3) -> None:
    store = open_store(s3.uri)
    s3.fs.pipe_file(f"{store.root}/work/train/{'f' * 64}/checkpoints/...complete", b"[]")
    with pytest.raises(StoreError, match=rf"{'f' * 64}/checkpoints: '\.\.' does not name a file below it"):
        unfinished.pushed(store, REF, "checkpoints")


def test_a_part_of_rows_whose_name_leads_out_of_its_folder_is_an_error(
    s3: S3, another_machine: Callable[[Store], Store]
) -> None:
    store = open_store(s3.uri)
    rows = row_store(store)
    rows.append([row("a")])
    rows.flush()
    s3.fs.pipe_file(f"{store.root}/rows/outputs/space/..", b"rows")
    elsewhere = another_machine(store)
    with pytest.raises(StoreError, match=r"rows/outputs/space: '\.\.' does not name a file below it"):
        row_store(elsewhere).done()
    assert not list(elsewhere.cache.rglob("*.parquet"))


def test_work_that_was_made_from_other_inputs_is_gone_for_every_machine(
    s3: S3, another_machine: Callable[[Store], Store]
) -> None:
    store = open_store(s3.uri)
    unfinished.keep_only_if(store, REF, "first")
    name = checkpoint(store, 3)
    unfinished.push(store, REF, name)
    elsewhere = another_machine(store)
    unfinished.keep_only_if(elsewhere, REF, "first")
    assert unfinished.pushed(elsewhere, REF, "checkpoints") == [name]
    unfinished.keep_only_if(elsewhere, REF, "second")
    assert unfinished.pushed(elsewhere, REF, "checkpoints") == []
    new = checkpoint(elsewhere, 6)
    unfinished.push(elsewhere, REF, new)

    unfinished.keep_only_if(store, REF, "second")
    assert not (store.work_folder(**REF) / name).exists()
    assert unfinished.pushed(store, REF, "checkpoints") == [new], "what was made from the same inputs stays"


def test_what_nobody_has_kept_is_not_pulled(s3: S3) -> None:
    store = open_store(s3.uri)
    assert unfinished.pushed(store, REF, "checkpoints") == []
    assert not unfinished.pull(store, REF, "part.parquet")


def test_a_finished_step_leaves_no_work_behind(s3: S3) -> None:
    store = open_store(s3.uri)
    (store.work_folder(**REF) / "part").write_text("1")
    unfinished.push(store, REF, "part")
    assert sorted(s3.objects()) == [f"work/train/{'f' * 64}/part", f"work/train/{'f' * 64}/part.complete"]
    store.done_with_work(**REF)
    assert s3.objects() == {}


def test_a_manifest_names_no_credential(s3: S3) -> None:
    publish(open_store(s3.uri), rows=b"1\n")
    assert all(s3.secret.encode() not in content for content in s3.objects().values())
    assert json.loads(s3.objects()[f"steps/train/{'f' * 64}/manifest.json"])["files"]
