"""Rows that were paid for, kept for ever: append-only Parquet parts that any later run reads first.

    <store>/rows/<table>/<space>/part-<origin>-<random>.parquet

A *space* is everything that decides a row's content except its prompt (model, template, sampling); a row's key is the
digest of the prompt within it. A part appears whole or not at all, so that a killed step loses at most the rows since
its last part. The first rows are written as a part at once, so that a store which refuses them ends the step before
much is paid for. For a remote store a part is first written to the cache folder, as unsent; if the connection breaks,
the next run uploads it. A part that is damaged all the same is skipped, and its rows are generated again: an error
would stop every later run, too.

A failed row is a row, too. The next run retries those whose failure may pass (`retryable`). A forced step retries all,
because the server may have caused the failures.

Not covered: order and joins; a step reads its rows back with `LATEST_SQL` and sorts them by example.
"""

from __future__ import annotations

import logging
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

from tasks.artifacts.digest import digest_of
from tasks.artifacts.files import put_in_place
from tasks.artifacts.s3 import at_once
from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import Store

logger = logging.getLogger(__name__)

PART_ROWS = 2_000
PART_SECONDS = 5.0
_UNSENT = "unsent-"


class DoneKeys(NamedTuple):
    """The keys of rows that are done.

    Attributes:
        here: Written by an earlier try of the same step, which has the same fingerprint.
        elsewhere: Written by other steps.
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
    _readable: dict[Path, bool] = field(default_factory=dict)

    def parts(self) -> list[Path]:
        """Local paths of all parts, sorted by name. Parts of a remote store are downloaded to the cache folder once.

        A part that cannot be read is left out, with a warning.
        """
        folder = self._folder()
        for unsent in sorted(folder.glob(f"{_UNSENT}*")):
            self._send(unsent)
        # A listing may be a moment old, and miss what this process has just written.
        names = sorted(self._sent.union(self.store.names("rows", self.table, self.space)))
        paths = [folder / name for name in names if name.startswith("part-")]
        unknown = [path for path in paths if path not in self._readable and path.exists()]
        self._readable |= {path: True for path in unknown if _damage(path) is None}
        # A copy that is damaged in the cache folder may be whole on the store.
        wanted = [path for path in paths if path not in self._readable or not path.exists()]
        at_once(lambda path: self.store.files.download(self._remote(path.name), path), wanted)
        return [path for path in paths if self._is_readable(path)]

    def done(self, *, failures: bool = True) -> DoneKeys:
        """The keys of all rows that are done. A row whose failure is retryable is not.

        Args:
            failures: Whether a final failure counts as done.
        """
        here: set[str] = set()
        elsewhere: set[str] = set()
        for path in self.parts():
            table = pq.read_table(path, columns=["row_key", "problem", "retryable"])
            finished = table.filter(pc.invert(pc.fill_null(table.column("retryable"), False)))
            if not failures:
                finished = finished.filter(pc.is_null(finished.column("problem")))
            mine = path.name.startswith(f"part-{self.origin[:16]}-")
            (here if mine else elsewhere).update(finished.column("row_key").to_pylist())
        return DoneKeys(frozenset(here), frozenset(elsewhere))

    def append(self, rows: list[dict[str, object]]) -> None:
        """Add finished rows. The first are written at once, later ones when a part is full or a few seconds old."""
        self._pending += rows
        if len(self._pending) >= PART_ROWS or time.monotonic() - self._flushed_at >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were added since the last part as a part."""
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        name = f"part-{self.origin[:16]}-{uuid.uuid4().hex}.parquet"
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}"
        pq.write_table(pa.Table.from_pylist(self._pending, schema=self.schema), temporary, compression="zstd")
        self._pending = []
        if isinstance(self.store, S3Store):
            self._send(put_in_place(temporary, folder / f"{_UNSENT}{name}"))
        else:
            put_in_place(temporary, folder / name)

    def _send(self, unsent: Path) -> None:
        name = unsent.name.removeprefix(_UNSENT)
        # Another run on this machine may be uploading the same part: the same bytes to the same name.
        with suppress(FileNotFoundError):
            if damage := _damage(unsent):
                logger.warning(
                    "%s: damaged, and removed instead of uploaded (%s): its rows are generated again", unsent, damage
                )
                unsent.unlink()
                return
            self.store.files.upload(unsent, self._remote(name))
            unsent.replace(unsent.with_name(name))
        self._sent.add(name)

    def _is_readable(self, path: Path) -> bool:
        if path not in self._readable:
            damage = _damage(path)
            self._readable[path] = damage is None
            if damage:
                logger.warning(
                    "%s/rows/%s/%s/%s: skipped, because it cannot be read (%s): its rows are generated again. "
                    "Remove it, or replace it by a copy that is whole.",
                    self.store.uri, self.table, self.space, path.name, damage,
                )  # fmt: skip
        return self._readable[path]

    def _folder(self) -> Path:
        return self.store.cache / "rows" / self.table / self.space

    def _remote(self, name: str) -> str:
        return self.store.path("rows", self.table, self.space, name)


def _damage(path: Path) -> str | None:
    """Why a file is no whole Parquet file; None if it is one.

    Raises:
        FileNotFoundError: It is not there.
    """
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk failed: that says nothing about the content
            raise
        return " ".join(str(error).split())
    return None


# One row of each key: a row without a problem, else a final failure (which is done), else a retryable one. Only narrow
# columns are sorted.
LATEST_SQL = """
    SELECT all_rows.* FROM {rows} AS all_rows
    JOIN (
        SELECT filename, file_row_number FROM {rows}
        QUALIFY row_number() OVER (
            PARTITION BY row_key
            ORDER BY problem IS NOT NULL, coalesce(retryable, false), filename, file_row_number
        ) = 1
    ) AS latest USING (filename, file_row_number)
"""
