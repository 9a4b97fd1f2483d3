"""The files of a store in a local folder. `tasks.artifacts.s3.S3Files` has the same interface for S3."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class StoredFile(NamedTuple):
    """A file as a listing shows it; `changed` in seconds since 1970."""

    name: str
    size: int
    changed: float


@dataclass(frozen=True)
class LocalFiles:
    """The operations of a store in a local folder, by absolute path.

    A file that is written appears whole or not at all, also after a power cut.
    """

    def in_a_hurry(self) -> LocalFiles:
        """These files: a disk answers at once."""
        return self

    def read(self, path: str) -> bytes:
        """The content of a file; FileNotFoundError if it is not there."""
        return Path(path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """Write or replace a file, which appears whole."""
        part = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        put_in_place(part, Path(path))

    def upload(self, source: Path, path: str) -> None:
        """Copy a file into the store, where it appears whole."""
        _copy(source, Path(path))

    def download(self, path: str, target: Path) -> None:
        """Copy a file of the store to a local path, where it appears whole. At its own path it stays as it is."""
        if Path(path) != target:
            _copy(Path(path), target)

    def names(self, path: str) -> list[str]:
        """The names directly below a folder, the one that changed last first; none if there is no such folder."""
        found = []
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(path):
                with suppress(FileNotFoundError):  # another worker has just removed it
                    found.append((entry.stat(follow_symlinks=False).st_mtime, entry.name))
        return [name for _, name in sorted(found, reverse=True)]

    def files(self, path: str) -> list[StoredFile]:
        """Every file below a folder, by its name relative to it; none if there is no such folder."""
        return _files_below(Path(path))

    def remove(self, path: str) -> None:
        """Remove a file; it need not be there."""
        Path(path).unlink(missing_ok=True)

    def remove_folder(self, path: str) -> None:
        """Remove a folder with everything below it; it need not be there."""
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def files_at(path: Path) -> list[StoredFile]:
    """A local file, named ""; or a folder, named so with size 0, and every file below it; none if nothing is there."""
    found = _files_below(path)
    with suppress(FileNotFoundError):  # another worker has just removed it
        stat = path.stat()
        found.append(StoredFile("", 0 if path.is_dir() else stat.st_size, stat.st_mtime))
    return found


def fsync_folder(folder: Path) -> None:
    """Flush a folder with everything below it to the disk, so that a rename afterwards survives a power cut."""
    for path in (folder, *folder.rglob("*")):
        _fsync(path)


def put_in_place(part: Path, target: Path) -> Path:
    """Rename a finished file so that a power cut leaves it whole at its new name, or not there; gives its new name."""
    _fsync(part)
    part.replace(target)
    _fsync(target.parent)
    return target


def share_as(file: Path) -> None:
    """Give the files beside and below this one its permissions: safetensors lets only the owner read what it writes."""
    mode = file.stat().st_mode
    for path in file.parent.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _files_below(folder: Path) -> list[StoredFile]:
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another worker has just removed it
            if not path.is_dir():
                stat = path.lstat()
                found.append(StoredFile(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime))
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.copyfile(source, part)
    put_in_place(part, target)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
