"""Rows that were paid for, kept for ever: append-only Parquet parts that any later run reads first.

    <store>/rows/<table>/<space>/part-<origin>-<random>.parquet

A *space* is everything that decides a row's content except its prompt (model, template, sampling); a row's key is the
digest of the prompt within it. A part appears whole or not at all, so that a killed step loses at most the rows since
its last part. The first rows make a part at once: a store that refuses them ends the step before much is paid for. For
a remote store a part is first written here, as unsent: what a lost connection kept back is sent by the next run. Failed
rows are rows: those that another try may help are tried again by the next run, alone.

Not covered: order and joins; a step reads its rows back with `LATEST_SQL` and sorts them by example.
"""

from __future__ import annotations

import math
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.digest import digest_of
from tasks.remote_files import at_once
from tasks.store import Store

PART_ROWS = 2_000
PART_SECONDS = 5.0
_UNSENT = "unsent-"


class DoneKeys(NamedTuple):
    """Keys that need no more work.

    Attributes:
        here: Written by the same step identity: an earlier try of this very step.
        elsewhere: Written by others.
    """

    here: frozenset[str]
    elsewhere: frozenset[str]


def row_key(space: str, *parts: object) -> str:
    """The key of a row: hex, 32 characters."""
    return digest_of([space, *parts])[:32]


@dataclass
class RowStore:
    """The rows of one space.

    Attributes:
        schema: Columns of a part; it must hold `row_key`, `problem` and `retryable`.
        origin: Fingerprint of the step that writes.
    """

    store: Store
    table: str
    space: str
    schema: pa.Schema
    origin: str
    _pending: list[dict[str, object]] = field(default_factory=list)
    _flushed_at: float = -math.inf
    _sent: set[str] = field(default_factory=set)

    def parts(self) -> list[Path]:
        """Local paths of all parts, by name; remote ones are downloaded once, unless another run here did."""
        folder = self._folder()
        if not self.store.is_local:
            for unsent in sorted(folder.glob(f"{_UNSENT}*")):
                self._send(unsent)
        # A listing may be a moment old: what this process wrote is there all the same.
        names = sorted(self._sent.union(self.store.names("rows", self.table, self.space)))
        paths = [folder / name for name in names if name.startswith("part-")]
        if not self.store.is_local:
            at_once(lambda path: self.store.remote.download(self._remote(path.name), path), _missing(paths))
        return paths

    def done(self) -> DoneKeys:
        """Which keys need no more work; a retryable failure is not done."""
        here: set[str] = set()
        elsewhere: set[str] = set()
        for path in self.parts():
            table = pq.read_table(path, columns=["row_key", "retryable"])
            finished = table.filter(pc.invert(pc.fill_null(table.column("retryable"), False)))
            mine = path.name.startswith(f"part-{self.origin[:16]}-")
            (here if mine else elsewhere).update(finished.column("row_key").to_pylist())
        return DoneKeys(frozenset(here), frozenset(elsewhere))

    def append(self, rows: list[dict[str, object]]) -> None:
        """Keep finished rows; the first are safe at once, others when their part is full or a few seconds old."""
        self._pending += rows
        if len(self._pending) >= PART_ROWS or time.monotonic() - self._flushed_at >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a part."""
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        name = f"part-{self.origin[:16]}-{uuid.uuid4().hex}.parquet"
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}"
        pq.write_table(pa.Table.from_pylist(self._pending, schema=self.schema), temporary, compression="zstd")
        self._pending = []
        if self.store.is_local:
            temporary.replace(folder / name)
        else:
            self._send(temporary.replace(folder / f"{_UNSENT}{name}"))

    def _send(self, unsent: Path) -> None:
        name = unsent.name.removeprefix(_UNSENT)
        # Another run on this machine may be sending the same part: the same bytes to the same name.
        with suppress(FileNotFoundError):
            self.store.remote.upload(unsent, self._remote(name))
            unsent.replace(unsent.with_name(name))
        self._sent.add(name)

    def _folder(self) -> Path:
        base = Path(self.store.root) if self.store.is_local else self.store.cache
        return base / "rows" / self.table / self.space

    def _remote(self, name: str) -> str:
        return self.store.path("rows", self.table, self.space, name)


def _missing(paths: list[Path]) -> list[Path]:
    return [path for path in paths if not path.exists()]


# The row of each key that counts: one without a problem before one with. Decided over narrow columns alone.
LATEST_SQL = """
    SELECT all_rows.* FROM {rows} AS all_rows
    JOIN (
        SELECT filename, file_row_number FROM {rows}
        QUALIFY row_number() OVER (
            PARTITION BY row_key ORDER BY problem IS NOT NULL, filename, file_row_number
        ) = 1
    ) AS latest USING (filename, file_row_number)
"""
