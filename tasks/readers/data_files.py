"""Finds and opens data files: a local file, a folder, a glob, or the same on S3 through fsspec."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.artifacts.digest import digest_of, file_digest
from tasks.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_NEXT = "Check the path and, for s3://, the credentials and AWS_ENDPOINT_URL."


class DataFile(NamedTuple):
    """One file.

    Attributes:
        path: How messages name it.
        name: Its name in `fs`.
    """

    path: str
    fs: fsspec.AbstractFileSystem
    name: str

    @property
    def suffix(self) -> str:
        """The suffix of its format, e.g. `.jsonl`, without that of compression."""
        return Path(self.name.removesuffix(".gz")).suffix.lower()


def find_files(path: str, *, key: str) -> list[DataFile]:
    """The files of a path, sorted by name. In a folder, only those of a known format.

    Args:
        key: The setting that names the path, for the message.

    Raises:
        DataError: There is no file, or the path cannot be listed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(path, use_listings_cache=False)
        names = _names(fs, root)
    except Exception as error:  # whatever a file system raises, there is nothing to read
        raise DataError(f"{path}: cannot be listed: {type(error).__name__}: {error}. {_NEXT}") from error
    if not names:
        raise DataError(
            f"{path}: {_why_none(fs, root)}. Set {key} to a file, a folder or a glob ({' '.join(SUFFIXES)})."
        )
    shown = (lambda name: name) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol
    return [DataFile(path if name == root else shown(name), fs, name) for name in names]


def _names(fs: fsspec.AbstractFileSystem, root: str) -> list[str]:
    if fs.isfile(root):
        return [root]
    if fs.isdir(root):
        return [name for name in sorted(fs.find(root)) if _is_data(name.removeprefix(root))]
    if any(character in root for character in "*?["):
        return [name for name in sorted(fs.glob(root)) if fs.isfile(name)]
    return []


def _is_data(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.strip("/").split("/"))
    return not hidden and name.lower().removesuffix(".gz").endswith(SUFFIXES)


def _why_none(fs: fsspec.AbstractFileSystem, root: str) -> str:
    if fs.isdir(root):
        return "no data file in this folder"
    return "no file matches" if any(character in root for character in "*?[") else "no such file"


def content_digest(file: DataFile) -> str:
    """A digest that changes with the bytes: sha256 of a local file, size and ETag (or checksum) of a remote one."""
    try:
        if isinstance(file.fs, LocalFileSystem):
            return file_digest(Path(file.name))
        info = file.fs.info(file.name)
        return digest_of([info.get("size"), info.get("ETag") or str(file.fs.checksum(file.name))])
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error}. {_NEXT}") from error


@contextmanager
def opened(file: DataFile) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if its name ends in .gz. Failures to read are raised as DataError."""
    compression = "gzip" if file.name.endswith(".gz") else None
    try:
        with file.fs.open(file.name, "rb", compression=compression) as stream:
            yield cast(BinaryIO, stream)  # fsspec types what it opens as Any
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.path}: cannot be read: {type(error).__name__}: {error}. {_NEXT}") from error
