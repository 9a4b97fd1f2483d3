"""Where files are found, how they are decoded, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest
import s3fs

from tasks.config import DataConfig, SourceConfig
from tasks.errors import DataError
from tasks.ingest import ingest

pytest_plugins = ["s3"]

ROWS = [{"question": f"{i}?", "answer": str(i)} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def questions(found) -> set[str]:
    return {row["question"] for row in found.rows}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps({"version": 1, "data": ROWS, "more": [1.5]}).encode()),
        ("a.json", LINES),
        ("a.csv", b'question,answer\n"0?",0\n1?,1\n2?,2\n'),
    ],
)
def test_the_same_rows_are_read_from_every_format(run, write, name, content):
    assert questions(run({"path": write(name, content)})) == {"0?", "1?", "2?"}


def test_a_json_array_longer_than_what_is_read_at_once_is_decoded_whole(run, write):
    rows = [{"question": f"{i} {'x' * 9_000}", "answer": i * 1111111} for i in range(40)]
    rows.append({"question": "long " + "y" * 300_000, "answer": "z"})
    found = run({"path": write("a.json", json.dumps(rows).encode())}, max_prompt_chars=10**6)
    assert {(row["question"], row["golds"][0]) for row in found.rows} == {
        (r["question"], str(r["answer"])) for r in rows
    }


def test_a_folder_and_a_glob_stand_for_their_files(run, write, tmp_path):
    for i, row in enumerate(ROWS):
        write(f"data/{i}.jsonl", [row])
    write("data/notes.txt", b"no data")
    write("data/_tmp/x.jsonl", [{"question": "hidden?", "answer": "x"}])
    assert questions(run({"path": str(tmp_path / "data")})) == {"0?", "1?", "2?"}
    assert questions(run({"path": str(tmp_path / "data" / "[01].jsonl")})) == {"0?", "1?"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.jsonl", "none.jsonl: no such file. Set data.sources.0.path to"),
        ("*.jsonl", "no file matches"),
        ("empty", "no data file in this folder"),
    ],
)
def test_a_path_without_files_fails_while_planning(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        ingest.plan(config=DataConfig(sources=(SourceConfig(path=str(tmp_path / path)),)))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "a", "answer": "b"}\n{"question": \n', "a.jsonl:line 2: not JSON"),
        ("a.jsonl", b'{"a": ' * 100_000, "line 1: not JSON"),
        ("a.json", b'[{"question": "a", "answer": "b"},\n{"question" "b"}]', "a.json:line 2: not JSON"),
        ("a.json", b'[{"question": "a", "answer": "b"},\n\n', "a.json:line 3: not JSON"),
        ("a.json", b'[{"question": "a", "answer": "b"},]', "expected a value after ','"),
        ("a.json", b'"text"', "expected '[' or '{'"),
        ("a.jsonl", b'{"question": "a", "answer": "b"}\n{"question": "\xff"}\n', "a.jsonl:line 2 or after: not UTF-8"),
        ("a.json", b'[\n{"question": "\xff"}]', "not UTF-8"),
        ("a.csv", b"question,answer\na,\xff\n", "not UTF-8"),
        ("a.csv", b"question,answer\na,b,c\n", "a.csv:line 2: not as many cells"),
        ("a.csv", b'question,answer\na,"b\n', "not CSV"),
        ("a.parquet", b"PAR1 no", "not Parquet, or damaged"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-12], "cannot be read"),
        ("a.xlsx", b"x", "unknown format '.xlsx'"),
        ("a.jsonl", b"", "there is no row in it"),
        ("a.json", b"[]", "there is no row in it"),
        ("a.csv", b"question,answer\n", "there is no row in it"),
    ],
)
def test_a_broken_file_is_refused_with_its_path_and_place(run, write, name, content, message):
    with pytest.raises(DataError) as caught:
        run({"path": write(name, content)})
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert caught.value.exit_code == 2


def fingerprint(path: str) -> str:
    return ingest.plan(config=DataConfig(sources=(SourceConfig(path=path),))).ref["fingerprint"]


def test_the_same_path_with_other_bytes_is_another_step(write):
    before = fingerprint(write("a.jsonl", ROWS))
    assert fingerprint(write("a.jsonl", ROWS[:2])) != before


@pytest.fixture
def bucket(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir("ingest")
    yield fs
    fs.rm("ingest", recursive=True)


@pytest.mark.parametrize(
    "path", ["s3://ingest/in/a.jsonl", "s3://ingest/in/*.jsonl", "s3://ingest/in", "s3://ingest/in/"]
)
def test_objects_on_s3_are_read_like_files(run, bucket, path):
    bucket.pipe_file("ingest/in/a.jsonl", LINES)
    assert questions(run({"path": path})) == {"0?", "1?", "2?"}


def test_another_object_under_the_same_name_on_s3_is_another_step(bucket):
    bucket.pipe_file("ingest/a.jsonl", LINES)
    before = fingerprint("s3://ingest/a.jsonl")
    assert fingerprint("s3://ingest/a.jsonl") == before
    bucket.pipe_file("ingest/a.jsonl", LINES.replace(b"2", b"3"))
    assert fingerprint("s3://ingest/a.jsonl") != before


def test_a_missing_object_on_s3_is_refused(bucket):
    with pytest.raises(DataError, match=r"s3://ingest/none\.jsonl: no such file"):
        fingerprint("s3://ingest/none.jsonl")
