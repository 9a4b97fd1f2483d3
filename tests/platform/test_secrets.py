"""What nobody may find, anywhere. Runs after the tests that leave something to search."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage import SECRETS, Stage

pytestmark = pytest.mark.slow


def test_no_secret_of_the_environment_is_anywhere(stage: Stage, undisturbed: str) -> None:
    """Runs last: searches all that the tests before it left."""
    found = dict(_everything(stage))
    assert len(found["logs 0"]) > 1000
    assert any(b"rows_generated" in content for content in found.values())
    # What is searched is there: a cell of a compressed table, and the log of a worker.
    assert any(b"What is 3 plus 3?" in content for name, content in found.items() if name.endswith(".parquet decoded"))
    assert any(undisturbed.encode() in content for name, content in found.items() if name.endswith("-cpu-1.log"))
    leaks = [
        (name, variable) for name, content in found.items() for variable, s in SECRETS.items() if s.encode() in content
    ]
    assert leaks == []


def _everything(stage: Stage) -> Iterator[tuple[str, bytes]]:
    """All objects and files with their bytes, tables once more in words, and what the server shows."""
    files = {name: stage.fs.cat_file(name) for name in stage.fs.find("platform")}
    # The folder has the caches of all machines and the logs of their workers.
    files |= {str(path): path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()}
    for name, content in files.items():
        yield name, content
        if name.endswith(".parquet"):
            yield f"{name} decoded", _decoded(content)
    yield "server log", stage.server.log.read_bytes()
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools", "flows"):
        for page in range(20):
            entries = stage.server.ask(f"/{what}/filter", {"limit": 200, "offset": 200 * page})
            yield f"{what} {page}", repr(entries).encode()
            if len(entries) < 200:
                break


def _decoded(content: bytes) -> bytes:
    """Every cell of a Parquet file, whose pages are compressed."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid:  # a machine died while it wrote this one
        return b""
    return repr((table.schema.metadata, table.to_pydict())).encode()
