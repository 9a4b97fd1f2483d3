"""Artifacts by what made them: a folder per (step, fingerprint), on a local disk or on S3.

    <store>/steps/<step>/<fingerprint>/manifest.json    written last: without it, the artifact does not exist
    <store>/steps/promoted/<digest>/                    copies of promoted adapters, see `flows.promotion.copies`
    <store>/rows/...                                    see `tasks.artifacts.paid_rows`
    <store>/items/...                                   see `tasks.evaluate.kept`
    <store>/work/<step>/<fingerprint>/                  checkpoints of an unfinished step: `tasks.artifacts.unfinished`
    <store>/claims/<step>/<fingerprint>...              who is making it right now, see `tasks.artifacts.claims`
    <store>/runs/<run_id>.json                          which artifacts a run used
    <store>/current/<recipe>...                         which adapter is promoted, see `flows.promotion.advance`
    <store>/prefect/                                    Prefect's records of cached tasks, see `flows.execution.runner`

Publishing is atomic: a local artifact is renamed into place whole, a remote one gets its manifest object last. Two
workers that publish the same step write the same names, and the last manifest wins. No pickle is ever read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.artifacts.digest import digest_of, file_digest, fsync_folder
from tasks.artifacts.manifest import FileEntry as FileEntry
from tasks.artifacts.manifest import Manifest as Manifest
from tasks.artifacts.manifest import Ref as Ref
from tasks.artifacts.manifest import checked_name
from tasks.artifacts.manifest import describe_files as describe_files
from tasks.artifacts.s3 import FIRST_PATIENCE_SECONDS, S3Files, at_once, in_words, open_s3, patiently
from tasks.errors import SsrError, StoreError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_STORE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}  # of a write
_REPLACE_TRIES = 100  # each is lost only to another worker that published in that very moment


class StoredFile(NamedTuple):
    """A file as a listing shows it; `changed` in seconds since 1970."""

    name: str
    size: int
    changed: float


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
        """Where something below the store is.

        Raises:
            StoreError: It would be elsewhere: the parts are from a damaged or hostile record.
        """
        return "/".join([self.root, *(checked_name(part, where=self.uri) for part in parts)])

    def link(self, ref: Ref, name: str = "") -> str:
        """Where a person finds an artifact or one of its files."""
        return "/".join(part for part in (self.uri, "steps", ref["step"], ref["fingerprint"], name) if part)

    @property
    def remote(self) -> S3Files:
        """The file operations of a store that is not local."""
        return S3Files(self.uri, self.fs)

    def preflight(self) -> None:
        """Write, list, read and remove a small object, so that a store that fails does so before a GPU is touched.

        Raises:
            StoreError: Within seconds, also when the server does not answer.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            if self.is_local:
                self.fs.makedirs(self.root, exist_ok=True)
                content = _probe(self.fs, self.root, probe)
            else:
                fs, root = open_s3(self.uri, in_a_hurry=True)
                content = patiently(lambda: _probe(fs, root, probe), FIRST_PATIENCE_SECONDS)
        except Exception as error:  # any failure of any file system means the same: this store cannot be used
            say = _unusable(self.uri, error)
            if not self.is_local:
                say = in_words(self.uri, "use this store", error, FIRST_PATIENCE_SECONDS)
            raise StoreError(say) from error
        if content != b"ssr":
            raise StoreError(f"{self.uri}: what was written is not what is read back")

    # --- artifacts ---

    def manifest(self, step: str, fingerprint: str) -> Manifest | None:
        """The manifest of a published artifact, or None. Does not look at its files.

        Raises:
            StoreError: The store could not be asked: that is not to say that there is none.
        """
        try:
            content = self.read("steps", step, fingerprint, MANIFEST)
        except FileNotFoundError:
            return None
        # Torn, foreign or hostile: the artifact does not exist, the step runs again and replaces it.
        try:
            return Manifest.from_json(content.decode(), where=f"{self.uri}/steps/{step}/{fingerprint}/{MANIFEST}")
        except (ValueError, TypeError, KeyError):
            return None
        except StoreError as error:
            logger.warning("%s", error)
            return None

    def verified(self, step: str, fingerprint: str) -> Manifest | None:
        """The manifest if every file is there with the recorded size and, on a local store, the recorded digest.

        A remote file's digest is checked when it is fetched.
        """
        manifest = self.manifest(step, fingerprint)
        if manifest is None:
            return None
        if not self.is_local:
            sizes = self.remote.sizes(self.path("steps", step, fingerprint))
            return manifest if all(sizes.get(entry["name"]) == entry["size"] for entry in manifest.files) else None
        folder = Path(self.path("steps", step, fingerprint))
        for entry in manifest.files:
            try:
                if (folder / entry["name"]).stat().st_size != entry["size"]:
                    return None
                if file_digest(folder / entry["name"]) != entry["sha256"]:
                    return None
            except FileNotFoundError:  # or another worker is just putting others in their place
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
        at_once(lambda entry: self._fetch_file(ref, entry, folder / entry["name"]), manifest.files)
        return folder

    def _fetch_file(self, ref: Ref, entry: FileEntry, target: Path) -> None:
        if target.exists() and file_digest(target) == entry["sha256"]:
            return
        # Twice, because of what may happen on the way.
        if self._fetched(ref, entry, target) or self._fetched(ref, entry, target):
            return
        where, now = self.link(ref, entry["name"]), self.manifest(**ref)
        if now is not None and entry not in now.files:
            raise StoreError(f"{where}: made again while it was read. Run the same command again.")
        # Two workers may have published different bytes of one size at once. By its sizes, every run would take the
        # artifact for whole, and none could read it.
        self.remote.remove(self.path("steps", ref["step"], ref["fingerprint"], MANIFEST))
        raise StoreError(
            f"{where}: the content is not what the manifest says, so the artifact counts as not there from now on. "
            "Run the same command again to make it."
        )

    def _fetched(self, ref: Ref, entry: FileEntry, target: Path) -> bool:
        """Whether it is what the manifest says; only then it is at its place."""
        path = self.path("steps", ref["step"], ref["fingerprint"], entry["name"])
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            self.remote.download(path, part)
            if file_digest(part) != entry["sha256"]:
                return False
            part.replace(target)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.link(ref, entry['name'])}: not there, though the manifest names it. "
                "Run the same command again to make it."
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return True

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
                share_as(staged / MANIFEST)
                fsync_folder(staged)
                self._replace_folder(staged, Path(target), manifest)
                return
            self._upload_all(staged, target, manifest)
        except Exception as error:
            raise StoreError(_unusable(self.uri, error)) from error
        self._keep_copy(staged, manifest)

    def _upload_all(self, staged: Path, target: str, manifest: Manifest) -> None:
        old = self.manifest(manifest.step, manifest.fingerprint)
        if old is not None and old.content_digest != manifest.content_digest:
            # Its files are about to change under it: until the new manifest is there, there is no artifact.
            self.remote.remove(f"{target}/{MANIFEST}")
        names = [entry["name"] for entry in manifest.files]
        at_once(lambda name: self.remote.upload(staged / name, f"{target}/{name}"), names)
        self.remote.write(f"{target}/{MANIFEST}", manifest.to_json().encode())

    def _replace_folder(self, staged: Path, target: Path, manifest: Manifest) -> None:
        for _ in range(_REPLACE_TRIES):
            try:
                os.replace(staged, target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            there = self.verified(manifest.step, manifest.fingerprint)
            if there is not None and there.content_digest == manifest.content_digest:
                # Another worker was first, or the same was made by force: whoever reads the files goes on reading.
                with suppress(FileNotFoundError):  # a third worker has just moved it
                    put_in_place(staged / MANIFEST, target / MANIFEST)
                    return
            # The old content is damaged, or made again by force and another: ours takes its place.
            aside = target.with_name(f".staging-old-{uuid.uuid4().hex[:8]}")
            with suppress(FileNotFoundError):  # a third worker has just moved it
                os.replace(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
        raise StoreError(f"{target}: other workers publish it all the time. Run the same command again.")

    def _keep_copy(self, staged: Path, manifest: Manifest) -> None:
        """Keep what was uploaded for who reads it here: one that has the same files goes on reading them."""
        copy = self.cache / "steps" / manifest.step / manifest.fingerprint
        try:
            if copy.exists() and describe_files(copy) == manifest.files:
                return
            shutil.rmtree(copy, ignore_errors=True)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, copy)
        except OSError as error:  # another step here has just fetched it, say; it is published, and can be fetched
            logger.debug("%s: no copy kept: %s", copy, error)

    def work_folder(self, step: str, fingerprint: str) -> Path:
        """A local folder that outlives a killed step: checkpoints. `done_with_work` removes it."""
        base = Path(self.root) if self.is_local else self.cache
        folder = base / "work" / step / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done_with_work(self, step: str, fingerprint: str) -> None:
        shutil.rmtree(self.work_folder(step, fingerprint), ignore_errors=True)
        if self.is_local:
            return
        try:
            self.remote.remove_folder(self.path("work", step, fingerprint))
        except StoreError as error:  # the artifact is safe, and nothing reads these any more
            logger.warning("%s: what it kept while it ran could not be removed: %s", step, error)

    def fingerprints(self, step: str) -> list[str]:
        """All fingerprints published for a step, newest first where the file system tells."""
        entries = self._entries("steps", step)
        entries.sort(key=lambda e: str(e.get("mtime") or e.get("LastModified") or ""), reverse=True)
        names = [self._name(entry, "steps", step) for entry in entries]
        return [name for name in names if not name.startswith(".")]

    # --- files and folders ---

    def read(self, *parts: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: It is not there.
            StoreError: The store could not be asked.
        """
        path = self.path(*parts)
        return Path(path).read_bytes() if self.is_local else self.remote.read(path)

    def names(self, *parts: str) -> list[str]:
        """The names in a folder, sorted; none if it is not there.

        Raises:
            StoreError: One of them leads out of the folder. To pass over it might pay for its rows again.
        """
        return sorted(self._name(entry, *parts) for entry in self._entries(*parts))

    def files(self, *parts: str) -> list[StoredFile]:
        """Every file below a folder, by its name relative to it; none if it is not there."""
        if self.is_local:
            return local_files(Path(self.path(*parts)))
        found: list[StoredFile] = []
        for entry in self._entries(*parts):
            name = self._name(entry, *parts)
            if entry["type"] == "directory":
                found += [one._replace(name=f"{name}/{one.name}") for one in self.files(*parts, name)]
            else:
                found.append(StoredFile(name, entry["size"], entry["LastModified"].timestamp()))
        return found

    def _name(self, entry: dict[str, Any], *parts: str) -> str:  # Any: as fsspec describes a file
        return checked_name(entry["name"].rstrip("/").rsplit("/", 1)[-1], where="/".join([self.uri, *parts]))

    def _entries(self, *parts: str) -> list[dict[str, Any]]:  # Any: as fsspec describes a file
        if not self.is_local:
            return self.remote.entries(self.path(*parts))
        try:
            return list(self.fs.ls(self.path(*parts), detail=True))
        except FileNotFoundError:
            return []

    # --- small JSON documents ---

    def write_json(self, value: Any, *parts: str) -> None:  # Any: JSON values
        """Replace a small JSON document at once."""
        path = self.path(*parts)
        content = (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
        try:
            if not self.is_local:
                self.remote.write(path, content)
                return
            part = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            put_in_place(part, Path(path))
        except Exception as error:
            raise StoreError(_unusable(self.uri, error)) from error

    def read_json(self, *parts: str) -> Any:  # Any: JSON values
        """A small JSON document.

        Raises:
            StoreError: It is not there or not JSON.
        """
        try:
            return json.loads(self.read(*parts))
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{self.uri}/{'/'.join(parts)}: not there or not JSON") from error


def open_store(uri: str) -> Store:
    """Open a store at a folder or an `s3://bucket/prefix`.

    Credentials and endpoint of S3 come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).

    Raises:
        StoreError: The address cannot be understood. Whether it can be written, `preflight` tells.
    """
    protocol, _, place = uri.rpartition("://")
    uri = uri.rstrip("/") or "/"
    if protocol in ("", "file"):
        folder = Path(place).expanduser().absolute()
        return Store(uri, LocalFileSystem(), str(folder), folder)
    if protocol != "s3" or not place.strip("/"):
        raise StoreError(f"{uri}: not an address of a store. It is a folder or s3://bucket/prefix.")
    fs, root = open_s3(uri)
    return Store(uri, fs, root, cache_folder() / digest_of(uri)[:16])


def cache_folder() -> Path:
    """Where this machine keeps copies of remote artifacts: SSR_CACHE, else the user's cache folder."""
    base = os.environ.get("SSR_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ssr")
    return Path(base).expanduser().absolute()


def local_files(folder: Path) -> list[StoredFile]:
    """Every file below a local folder, by its name relative to it; none if it is not there."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # others work here
            if not path.is_dir():
                stat = path.lstat()
                found.append(StoredFile(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime))
    return found


def put_in_place(part: Path, target: Path) -> Path:
    """Rename a finished file so that a power cut leaves it whole at its new name, or not there; gives its new name."""
    _fsync(part)
    part.replace(target)
    _fsync(target.parent)
    return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share_as(file: Path) -> None:
    """Let whoever may read this file read those beside and below it, too: safetensors writes for the owner alone."""
    mode = file.stat().st_mode
    for path in file.parent.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _probe(fs: fsspec.AbstractFileSystem, root: str, name: str) -> bytes:
    path = f"{root}/{name}"
    fs.pipe_file(path, b"ssr")
    fs.ls(path)  # rows and runs are found by listing, which S3 may forget to permit
    content = fs.cat_file(path)
    fs.rm_file(path)
    return bytes(content)


def _unusable(uri: str, error: Exception) -> str:
    if isinstance(error, SsrError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"{uri}: the disk is full. Free space (`ssr gc` removes what no run uses) and run the same command again."
        )
    reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return f"{uri}: the store cannot be used: {reason}. Check the path, the permissions and the credentials."
