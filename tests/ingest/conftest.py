"""Running the ingest step over toy files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import open_store
from tasks.config import DataConfig
from tasks.ingest import ingest


class Ingested(NamedTuple):
    """What a run of the step left behind."""

    rows: list[dict[str, Any]]
    counts: dict[str, int]
    content: bytes

    def by_question(self) -> dict[str, dict[str, Any]]:
        return {row["question"]: row for row in self.rows}


Run = Callable[..., Ingested]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ingest sources given as dicts; other keywords are fields of DataConfig."""

    def run(*sources: dict[str, Any], **data: Any) -> Ingested:
        # Few rows and a hash: without a small share, a toy table could land in the test split whole.
        config = DataConfig.model_validate({"sources": sources, "test_share": 0.001} | data)
        store = open_store(str(tmp_path / "store"))
        ref = ingest.plan(config=config).execute(store)
        path = store.fetch(ref) / "examples.parquet"
        manifest = store.manifest(**ref)
        assert manifest is not None
        assert [entry["name"] for entry in manifest.files] == ["examples.parquet"]
        return Ingested(pq.read_table(path).to_pylist(), manifest.counts, path.read_bytes())

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """Write a file of JSON lines (an iterable of rows), a JSON document (a dict) or bytes; its path."""

    def write(name: str, content: dict[str, Any] | Iterable[Any] | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, dict):
            path.write_text(json.dumps(content))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return str(path)

    return write
