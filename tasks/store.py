"""Artifacts by what made them: a folder per (step, fingerprint), on a local disk or on S3.

    <store>/steps/<step>/<fingerprint>/manifest.json    written last: without it, the artifact does not exist
    <store>/rows/...                                    see `tasks.rows`
    <store>/work/<step>/<fingerprint>/                  checkpoints of a step that has not finished
    <store>/runs/<run_id>.json                          which artifacts a run used

Publishing is atomic: a local artifact is renamed into place whole, a remote one gets its manifest object last. Two
workers that publish the same step write the same names, and the last manifest wins. No pickle is ever read.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.digest import digest_of, file_digest, fsync_folder
from tasks.errors import SsrError, StoreError

MANIFEST = "manifest.json"
_STORE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}  # of a write
_REPLACE_TRIES = 100  # each is lost only to another worker that published in that very moment


class Ref(TypedDict):
    """A reference to an artifact: all that steps hand to each other."""

    step: str
    fingerprint: str


class FileEntry(TypedDict):
    """One file of an artifact; `name` is relative, with forward slashes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, how it came about, and what is in it.

    Attributes:
        identity: What the fingerprint is the digest of: the reason for a cache hit or miss.
        input_digests: What each input held when this was made; a step made again may hold other bytes (on a GPU).
        counts: Row accounting and other whole numbers, e.g. rows_in, dropped.too_long.
        facts: Measured values that are not part of any table, e.g. seconds, host, versions.
    """

    step: str
    fingerprint: str
    identity: dict[str, Any]  # Any: JSON values
    inputs: dict[str, Ref]
    files: list[FileEntry]
    input_digests: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # Any: JSON values

    @property
    def content_digest(self) -> str:
        """A digest of the artifact's files: equal for equal bytes."""
        return digest_of(list(self.files))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def _manifest_from(text: str) -> Manifest:
    return Manifest(**json.loads(text))


@dataclass(frozen=True)
class Store:
    """A place for artifacts. Open one with `open_store`.

    Attributes:
        uri: As the user wrote it, without a trailing slash.
        root: The same place as `fs` knows it.
        cache: Local folder for work in progress and for copies of remote files.
    """

    uri: str
    fs: fsspec.AbstractFileSystem
    root: str
    cache: Path

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def link(self, ref: Ref, name: str = "") -> str:
        """Where a person finds an artifact or one of its files."""
        return "/".join(part for part in (self.uri, "steps", ref["step"], ref["fingerprint"], name) if part)

    def preflight(self) -> None:
        """Write, read and remove a small object, so that a store that fails does so before a GPU is touched."""
        probe = self.path(f".probe-{uuid.uuid4().hex}")
        try:
            if self.is_local:
                self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(probe, b"ssr")
            content = self.fs.cat_file(probe)
            self.fs.rm_file(probe)
        except Exception as error:  # any failure of any file system means the same: this store cannot be used
            raise StoreError(_unusable(self.uri, error)) from error
        if content != b"ssr":
            raise StoreError(f"{self.uri}: what was written is not what is read back")

    # --- artifacts ---

    def manifest(self, step: str, fingerprint: str) -> Manifest | None:
        """The manifest of a published artifact, or None. Does not look at its files."""
        try:
            return _manifest_from(self.fs.cat_file(self.path("steps", step, fingerprint, MANIFEST)).decode())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, UnicodeDecodeError):
            return None  # torn or foreign: the artifact does not exist, the step runs again

    def verified(self, step: str, fingerprint: str) -> Manifest | None:
        """The manifest if every file is there with the recorded size and, on a local store, the recorded digest.

        A remote file's digest is checked when it is fetched.
        """
        manifest = self.manifest(step, fingerprint)
        if manifest is None:
            return None
        for entry in manifest.files:
            path = self.path("steps", step, fingerprint, entry["name"])
            try:
                if self.fs.size(path) != entry["size"]:
                    return None
            except FileNotFoundError:
                return None
            if self.is_local and file_digest(Path(path)) != entry["sha256"]:
                return None
        return manifest

    def fetch(self, ref: Ref) -> Path:
        """A local folder with the artifact's files; remote ones are downloaded once and checked.

        Raises:
            StoreError: The artifact is not there, or a file is not what its manifest says.
        """
        manifest = self.manifest(**ref)
        if manifest is None:
            raise StoreError(f"{self.link(ref)}: no such artifact. Run the same command again to make it.")
        if self.is_local:
            return Path(self.path("steps", ref["step"], ref["fingerprint"]))
        folder = self.cache / "steps" / ref["step"] / ref["fingerprint"]
        for entry in manifest.files:
            self._fetch_file(ref, entry, folder / entry["name"])
        return folder

    def _fetch_file(self, ref: Ref, entry: FileEntry, target: Path) -> None:
        if target.exists() and file_digest(target) == entry["sha256"]:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        self.fs.get_file(self.path("steps", ref["step"], ref["fingerprint"], entry["name"]), str(part))
        if file_digest(part) != entry["sha256"]:
            part.unlink()
            raise StoreError(
                f"{self.link(ref, entry['name'])}: the content is not what the manifest says. "
                f"Make it again: ssr run RECIPE --force {ref['step']}"
            )
        part.replace(target)

    @contextmanager
    def staging(self, step: str, fingerprint: str) -> Iterator[Path]:
        """A fresh local folder beside the place it will be published to; removed if it was not published."""
        parent = Path(self.path("steps", step)) if self.is_local else self.cache / "staging" / step
        folder = parent / f".staging-{fingerprint[:16]}-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            if error.errno not in _STORE_ERRNOS:
                raise
            raise StoreError(_unusable(self.uri, error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, manifest: Manifest) -> None:
        """Make the staged files the artifact, all at once; `manifest.files` must already describe them."""
        target = self.path("steps", manifest.step, manifest.fingerprint)
        try:
            if self.is_local:
                (staged / MANIFEST).write_text(manifest.to_json())
                fsync_folder(staged)
                self._replace_folder(staged, Path(target))
                return
            for entry in manifest.files:
                self.fs.put_file(str(staged / entry["name"]), f"{target}/{entry['name']}")
            self.fs.pipe_file(f"{target}/{MANIFEST}", manifest.to_json().encode())
        except Exception as error:
            raise StoreError(_unusable(self.uri, error)) from error
        self._keep_copy(staged, manifest)

    def _replace_folder(self, staged: Path, target: Path) -> None:
        for _ in range(_REPLACE_TRIES):
            try:
                os.replace(staged, target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Another worker was first, or the old content is damaged or made again by force: ours takes its place.
            aside = target.with_name(f".staging-old-{uuid.uuid4().hex[:8]}")
            with suppress(FileNotFoundError):  # a third worker has just moved it
                os.replace(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
        raise StoreError(f"{target}: other workers publish it all the time. Run the same command again.")

    def _keep_copy(self, staged: Path, manifest: Manifest) -> None:
        copy = self.cache / "steps" / manifest.step / manifest.fingerprint
        shutil.rmtree(copy, ignore_errors=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, copy)

    def work_folder(self, step: str, fingerprint: str) -> Path:
        """A local folder that outlives a killed step: checkpoints. `done_with_work` removes it."""
        base = Path(self.root) if self.is_local else self.cache
        folder = base / "work" / step / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done_with_work(self, step: str, fingerprint: str) -> None:
        shutil.rmtree(self.work_folder(step, fingerprint), ignore_errors=True)

    def fingerprints(self, step: str) -> list[str]:
        """All fingerprints published for a step, newest first where the file system tells."""
        try:
            entries = self.fs.ls(self.path("steps", step), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        entries.sort(key=lambda e: str(e.get("mtime") or e.get("LastModified") or ""), reverse=True)
        names = [e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries]
        return [name for name in names if not name.startswith(".")]

    # --- small JSON documents ---

    def write_json(self, value: Any, *parts: str) -> None:  # Any: JSON values
        """Replace a small JSON document at once."""
        path = self.path(*parts)
        content = (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
        try:
            if not self.is_local:
                self.fs.pipe_file(path, content)
                return
            part = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            part.replace(path)
        except Exception as error:
            raise StoreError(_unusable(self.uri, error)) from error

    def read_json(self, *parts: str) -> Any:  # Any: JSON values
        """A small JSON document.

        Raises:
            StoreError: It is not there or not JSON.
        """
        try:
            return json.loads(self.fs.cat_file(self.path(*parts)))
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{self.uri}/{'/'.join(parts)}: not there or not JSON") from error

    def names(self, *parts: str) -> list[str]:
        """The names in a folder, sorted; none if it is not there."""
        try:
            found = self.fs.ls(self.path(*parts), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)


def describe_files(folder: Path) -> list[FileEntry]:
    """Every file below a staged folder, sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [
        FileEntry(name=p.relative_to(folder).as_posix(), size=p.stat().st_size, sha256=file_digest(p)) for p in files
    ]


def open_store(uri: str) -> Store:
    """Open a store at a folder or an `s3://bucket/prefix`.

    Credentials and endpoint of S3 come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).

    Raises:
        StoreError: The address cannot be understood. Whether it can be written, `preflight` tells.
    """
    uri = uri.rstrip("/") or "/"
    try:
        fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False) if "://" in uri else (LocalFileSystem(), "")
    except (ValueError, ImportError) as error:
        raise StoreError(f"{uri}: {error}") from error
    if isinstance(fs, LocalFileSystem):
        folder = Path(uri.removeprefix("file://")).expanduser().absolute()
        return Store(uri, fs, str(folder), folder)
    return Store(uri, fs, root.rstrip("/"), cache_folder() / digest_of(uri)[:16])


def cache_folder() -> Path:
    """Where this machine keeps copies of remote artifacts: SSR_CACHE, else the user's cache folder."""
    base = os.environ.get("SSR_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ssr")
    return Path(base).expanduser().absolute()


def _unusable(uri: str, error: Exception) -> str:
    if isinstance(error, SsrError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"{uri}: the disk is full. Free space (`ssr gc` removes what no run uses) and run the same command again."
        )
    reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return f"{uri}: the store cannot be used: {reason}. Check the path, the permissions and the credentials."
