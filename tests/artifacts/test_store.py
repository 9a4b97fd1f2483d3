"""Artifacts: published whole or not at all, checked before they are used. On a local folder and on S3."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.manifest import checked_name
from tasks.artifacts.paid_rows import RowStore
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.errors import StoreError

pytest_plugins = ["s3"]

REF = Ref(step="train", fingerprint="f" * 64)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    return open_store(f"{request.getfixturevalue('s3').uri}/")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def publish(store: Store, ref: Ref = REF, *, seconds: float = 0.0, **files: str) -> None:
    """Publish an artifact of text files; `__` in a name stands for a folder."""
    with store.staging(**ref) as out:
        for name, text in files.items():
            path = out / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        facts = {"seconds": seconds}
        store.publish(out, Manifest(**ref, identity={"a": 1}, inputs={}, files=describe_files(out), facts=facts))


def object_path(store: Store, name: str) -> str:
    return store.path("steps", REF["step"], REF["fingerprint"], name)


def test_an_artifact_is_fetched_as_it_was_published(store):
    publish(store, rows="1\n2\n", adapter__weights="w")
    folder = store.fetch(REF)
    assert (folder / "rows").read_text() == "1\n2\n"
    assert (folder / "adapter" / "weights").read_text() == "w"
    manifest = store.verified(**REF)
    assert manifest is not None
    assert [entry["name"] for entry in manifest.files] == ["adapter/weights", "rows"]
    assert manifest.identity == {"a": 1}


def test_an_artifact_is_fetched_on_a_machine_that_did_not_make_it(store, tmp_path, monkeypatch):
    publish(store, rows="1\n", adapter__weights="w")
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "another machine"))
    folder = open_store(store.uri).fetch(REF)
    assert (folder / "adapter" / "weights").read_text() == "w"


def test_an_artifact_without_a_manifest_does_not_exist(store):
    publish(store, rows="1\n")
    store.files.remove(object_path(store, "manifest.json"))
    assert store.manifest(**REF) is None
    assert store.verified(**REF) is None
    with pytest.raises(StoreError, match="no such artifact"):
        store.fetch(REF)


@pytest.mark.parametrize("content", [b'{"step": "train", "fing', b"", b"[]", b'{"foreign": 1}', b"\xff\xfe"])
def test_a_torn_or_foreign_manifest_counts_as_none(store, content):
    publish(store, rows="1\n")
    store.files.write(object_path(store, "manifest.json"), content)
    assert store.manifest(**REF) is None
    publish(store, rows="2\n")
    assert (store.fetch(REF) / "rows").read_text() == "2\n"


def test_a_missing_or_truncated_file_is_not_verified(store):
    publish(store, rows="1\n2\n")
    store.files.write(object_path(store, "rows"), b"1\n")
    assert store.verified(**REF) is None
    store.files.remove(object_path(store, "rows"))
    assert store.verified(**REF) is None


def test_a_file_of_the_same_size_with_other_bytes_is_noticed(store, tmp_path, monkeypatch):
    publish(store, rows="1\n2\n")
    store.files.write(object_path(store, "rows"), b"1\n3\n")
    if isinstance(store, LocalStore):
        assert store.verified(**REF) is None
        return
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(StoreError, match="not what the manifest says"):
        open_store(store.uri).fetch(REF)


def test_a_damaged_copy_of_a_remote_file_is_fetched_again(store):
    publish(store, rows="1\n")
    if not isinstance(store, LocalStore):
        (store.fetch(REF) / "rows").write_text("2\n")
    assert (store.fetch(REF) / "rows").read_text() == "1\n"


def test_publishing_again_replaces_all_of_it(store):
    publish(store, rows="1\n", old="x")
    publish(store, rows="2\n")
    assert (store.fetch(REF) / "rows").read_text() == "2\n"
    manifest = store.verified(**REF)
    assert manifest is not None
    assert [entry["name"] for entry in manifest.files] == ["rows"]
    assert store.fingerprints("train") == [REF["fingerprint"]]


def test_whoever_may_read_the_manifest_may_read_the_files(local):
    with local.staging(**REF) as out:
        (out / "adapter").mkdir()
        (out / "adapter" / "weights").touch(mode=0o600)  # as safetensors writes them
        local.publish(out, Manifest(**REF, identity={}, inputs={}, files=describe_files(out)))
    folder = Path(local.path("steps", *REF.values()))
    assert (folder / "adapter" / "weights").stat().st_mode == (folder / "manifest.json").stat().st_mode


def test_an_error_before_publishing_leaves_nothing(store):
    def fail() -> None:
        with store.staging(**REF) as out:
            (out / "rows").write_text("half of")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert store.manifest(**REF) is None
    assert store.fingerprints("train") == []
    assert [path for path in store.cache.rglob("*") if path.is_file()] == []
    assert not list(store.cache.rglob(".staging-*"))


def test_an_upload_that_breaks_off_publishes_nothing(store, monkeypatch):
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("connection reset")

    with monkeypatch.context() as patched:
        if isinstance(store, LocalStore):
            patched.setattr("tasks.artifacts.local_store.fsync_folder", broken)
        else:
            patched.setattr(store.files.fs, "pipe_file", broken)
        with pytest.raises(StoreError, match="connection reset"):
            publish(store, rows="1\n")
    assert store.manifest(**REF) is None


def test_what_is_being_staged_is_not_listed(store):
    publish(store, rows="1\n")
    with store.staging(step="train", fingerprint="e" * 64):
        assert store.fingerprints("train") == [REF["fingerprint"]]


def test_an_unknown_step_has_no_fingerprints(store):
    assert store.fingerprints("nothing") == []


def test_a_store_that_works_passes_the_preflight_and_keeps_nothing_of_it(store):
    store.preflight()
    assert store.names() == []


def test_documents_are_replaced_and_listed(store):
    store.write_json({"status": "running"}, "runs", "b.json")
    store.write_json({"status": "completed"}, "runs", "b.json")
    store.write_json({}, "runs", "a.json")
    assert store.read_json("runs", "b.json") == {"status": "completed"}
    assert store.names("runs") == ["a.json", "b.json"]


def test_a_document_that_is_missing_or_torn_is_named(store):
    with pytest.raises(StoreError, match=r"runs/a\.json: not there"):
        store.read_json("runs", "a.json")
    store.write_json({}, "runs", "a.json")
    store.files.write(store.path("runs", "a.json"), b'{"sta')
    with pytest.raises(StoreError, match=r"runs/a\.json: not there or not JSON"):
        store.read_json("runs", "a.json")


def test_a_folder_that_is_not_there_has_no_names(store):
    assert store.names("runs") == []


def test_all_files_below_a_folder_are_listed_with_their_sizes(store):
    publish(store, rows="12345", adapter__weights="w")
    found = {file.name: file.size for file in store.files_below("steps", REF["step"], REF["fingerprint"])}
    assert found.pop("manifest.json") > 0
    assert found == {"rows": 5, "adapter/weights": 1}
    assert all(abs(time.time() - file.changed) < 3600 for file in store.files_below("steps"))
    assert store.files_below("nothing") == []


def test_a_work_folder_outlives_the_process_until_the_step_is_done(store):
    (store.work_folder(**REF) / "checkpoint").write_text("1")
    assert (open_store(store.uri).work_folder(**REF) / "checkpoint").read_text() == "1"
    store.done_with_work(**REF)
    assert list(store.work_folder(**REF).iterdir()) == []


def test_rows_are_shared_between_machines(store, tmp_path, monkeypatch):
    schema = pa.schema([("row_key", pa.string()), ("problem", pa.string()), ("retryable", pa.bool_())])
    rows = RowStore(store, "outputs", "space", schema, origin="1" * 64)
    rows.append([{"row_key": "a", "problem": None, "retryable": None}])
    rows.flush()
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "another machine"))
    elsewhere = RowStore(open_store(store.uri), "outputs", "space", schema, origin="2" * 64)
    assert elsewhere.done().elsewhere == {"a"}


# --- names from a store that is damaged or hostile ---

OUTSIDE = ["../evil", "../../../../evil", "a/../../evil", "/tmp/evil", "", ".", "a//b", "a/", "nul\0", 7, None]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_its_folder_is_refused(name):
    with pytest.raises(StoreError, match=r"s3://bucket/x: .* does not name a file below it"):
        checked_name(name, where="s3://bucket/x")


@pytest.mark.parametrize("name", ["rows", "adapter/weights", "..a", "a..b/.hidden", "a b\\c"])
def test_a_name_that_stays_in_its_folder_is_not_changed(name):
    assert checked_name(name, where="") == name


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_artifact_whose_manifest_names_a_file_outside_does_not_exist_and_is_made_again(
    store, tmp_path, monkeypatch, caplog, name
):
    publish(store, rows="1\n")
    raw = json.loads(store.read("steps", REF["step"], REF["fingerprint"], "manifest.json"))
    raw["files"][0]["name"] = name
    store.files.write(object_path(store, "manifest.json"), json.dumps(raw).encode())
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "another machine"))
    elsewhere = open_store(store.uri)
    assert elsewhere.manifest(**REF) is None
    assert f"{store.uri}/steps/train/{REF['fingerprint']}/manifest.json: {name!r} does not name a file" in caplog.text
    assert elsewhere.verified(**REF) is None
    with pytest.raises(StoreError, match="no such artifact"):
        elsewhere.fetch(REF)
    publish(elsewhere, rows="1\n")
    assert elsewhere.verified(**REF) is not None


@pytest.mark.parametrize("ref", [Ref(step="..", fingerprint="f"), Ref(step="train", fingerprint="../../f")])
def test_a_reference_that_leads_out_of_the_store_is_refused(store, ref):
    for look in (store.manifest, store.verified):
        with pytest.raises(StoreError, match="does not name a file below it"):
            look(**ref)
    with pytest.raises(StoreError, match="does not name a file below it"):
        store.fetch(ref)


def test_what_is_published_again_on_s3_leaves_the_copy_on_this_machine_to_its_readers(s3, monkeypatch):
    store = open_store(s3.uri)
    publish(store, rows="same", seconds=1.0)
    before = os.stat(store.fetch(REF) / "rows").st_ino
    publish(store, rows="same", seconds=2.0)
    assert os.stat(store.fetch(REF) / "rows").st_ino == before

    def taken(source: Path, target: Path) -> None:
        raise OSError(39, "Directory not empty")  # by a step that has just fetched it

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", taken)
        publish(store, rows="other")
    assert (store.fetch(REF) / "rows").read_text() == "other"


# --- local only ---


@pytest.mark.parametrize("other_worker", ["takes the old one away first", "is first to put its own there"])
def test_two_workers_that_publish_the_same_step_at_once_both_succeed(local, tmp_path, monkeypatch, other_worker):
    publish(local, rows="old")
    real_replace, target = os.replace, local.path("steps", REF["step"], REF["fingerprint"])
    calls = []

    def replace(source: str | Path, goal: str | Path) -> None:
        first = str(source) == target and not calls
        if first:
            calls.append(goal)
            if other_worker == "takes the old one away first":
                real_replace(target, tmp_path / "taken")
        real_replace(source, goal)
        if first:
            (Path(target) / "rows").parent.mkdir()
            (Path(target) / "rows").write_text("theirs")

    monkeypatch.setattr(os, "replace", replace)
    publish(local, rows="new")
    assert calls, "the old content was never moved: this test shows nothing"
    assert (local.fetch(REF) / "rows").read_text() == "new"
    assert [path.name for path in Path(local.path("steps", "train")).iterdir()] == [REF["fingerprint"]]


def test_who_reads_an_artifact_goes_on_reading_while_the_same_is_published_again(local):
    publish(local, rows="same", adapter__weights="w", seconds=1.0)
    with open(local.fetch(REF) / "rows") as reading:
        before = os.stat(local.fetch(REF) / "adapter" / "weights").st_ino
        publish(local, rows="same", adapter__weights="w", seconds=2.0)
        assert os.stat(local.fetch(REF) / "rows").st_ino == os.fstat(reading.fileno()).st_ino
    assert os.stat(local.fetch(REF) / "adapter" / "weights").st_ino == before
    found = local.verified(**REF)
    assert found is not None
    assert found.facts == {"seconds": 2.0}  # the manifest is that of the last


def test_an_artifact_that_goes_while_its_files_are_read_is_not_verified(local, monkeypatch):
    publish(local, rows="old")

    def gone(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr("tasks.artifacts.local_store.file_digest", gone)
    assert local.verified(**REF) is None


def test_a_store_below_a_file_fails_the_preflight(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/store: the store cannot be used: .*permissions"):
        open_store(str(tmp_path / "file" / "store")).preflight()


def test_a_store_below_a_file_cannot_stage(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match="the store cannot be used"),
        open_store(str(tmp_path / "file" / "store")).staging(**REF),
    ):
        pytest.fail("there is no folder to write in")


def test_a_document_that_cannot_be_written_whole_leaves_the_old_one(local, monkeypatch):
    local.write_json({"status": "running"}, "runs", "a.json")

    def disk_full(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(StoreError, match="the disk is full"):
        local.write_json({"status": "completed"}, "runs", "a.json")
    assert local.read_json("runs", "a.json") == {"status": "running"}


def test_an_address_of_an_unknown_sort_is_refused():
    with pytest.raises(StoreError, match="nosuch://bucket"):
        open_store("nosuch://bucket/x")


def test_a_trailing_slash_and_a_file_address_are_the_same_place(tmp_path):
    roots = {open_store(uri).root for uri in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}")}
    assert roots == {str(tmp_path)}


def test_the_content_digest_follows_the_bytes_alone(local):
    digests: list[str] = []
    for fingerprint, text in (("a" * 64, "1"), ("b" * 64, "1"), ("c" * 64, "2")):
        publish(local, Ref(step="train", fingerprint=fingerprint), rows=text)
        manifest = local.manifest("train", fingerprint)
        assert manifest is not None
        digests.append(manifest.content_digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_of_weights_follows_the_safetensors_alone(local):
    digests = []
    for letter, weights, settings in (("a", "w", "r=8"), ("b", "w", "r=16"), ("c", "other", "r=8")):
        ref = Ref(step="train", fingerprint=letter * 64)
        publish(local, ref, **{"adapter__model.safetensors": weights, "adapter__config.json": settings})
        digests.append(local.weights_digest(ref))
    assert digests[0] == digests[1] != digests[2]
    assert local.weights_digest(Ref(step="train", fingerprint="d" * 64)) is None


def test_a_manifest_is_plain_json(local):
    publish(local, rows="1\n")
    found: dict[str, Any] = json.loads(Path(object_path(local, "manifest.json")).read_text())
    assert found["files"] == [{"name": "rows", "sha256": hashlib.sha256(b"1\n").hexdigest(), "size": 2}]
