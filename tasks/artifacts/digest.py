"""Digests of JSON values and of files, and random seeds that depend on values alone."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:  # Any: any JSON value
    """The canonical text of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:  # Any: any JSON value
    """sha256 in hex of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 in hex of a file's bytes, read in blocks; cached while size and time of change stay the same."""
    stat = path.stat()
    return _file_digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, names: Iterable[str]) -> str:
    """One digest of the named files of a folder: of their relative names and contents, not of their times."""
    return digest_of({name: file_digest(folder / name) for name in sorted(names)})


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on the parts alone, not on the process or the order of rows."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def stable_rng(*parts: object) -> random.Random:
    """A random generator of its own for these parts."""
    return random.Random(stable_seed(*parts))
