"""Everything that runs have left on a stage, in bytes, and the secrets of its environment that stand in it."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from stage import SECRETS, Stage


def leaks(found: dict[str, bytes]) -> list[tuple[str, str]]:
    """Where which secret stands."""
    return [(name, secret) for name, content in found.items() for secret, s in SECRETS.items() if s.encode() in content]


def everything_on(stage: Stage) -> Iterator[tuple[str, bytes]]:
    """All objects and files with their bytes, tables once more in words, and what the server shows."""
    files = {name: stage.fs.cat_file(name) for name in stage.fs.find("platform")}
    # The folder has the caches of all machines and the logs of their workers.
    files |= {str(path): path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()}
    for name, content in files.items():
        yield name, content
        if name.endswith(".parquet"):
            yield f"{name} decoded", decoded(content)
    yield "server log", stage.server.log.read_bytes()
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools", "flows"):
        for page in range(20):
            entries = stage.server.ask(f"/{what}/filter", {"limit": 200, "offset": 200 * page})
            yield f"{what} {page}", repr(entries).encode()
            if len(entries) < 200:
                break


def decoded(content: bytes) -> bytes:
    """Every cell of a Parquet file, whose pages are compressed."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid:  # a machine died while it wrote this one
        return b""
    return repr((table.schema.metadata, table.to_pydict())).encode()
