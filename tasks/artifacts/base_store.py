"""What a store on a disk and one on S3 have in common: how an artifact is staged, published, verified and fetched.

The layout of a store is in `tasks.artifacts.store`, which opens one.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks.artifacts.files import LocalFiles, StoredFile, files_at
from tasks.artifacts.lease import Lease, NoLease
from tasks.artifacts.manifest import FileEntry, Manifest, Ref, checked_name
from tasks.artifacts.s3 import S3Files
from tasks.errors import SsrError, StoreError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# A write that fails with one of these cannot be made to this store.
_STORE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@dataclass(frozen=True)
class Store(ABC):
    """A place for artifacts. `open_store` opens one: a `LocalStore` or an `S3Store`.

    Attributes:
        uri: As the user wrote it, without a trailing slash.
        root: The same place as `files` knows it.
        cache: Local folder for work in progress and for copies of remote files. A local store is its own cache folder.
        leftovers: Patterns below the cache folder of what a killed process leaves half-written there.
    """

    uri: str
    root: str
    cache: Path
    files: LocalFiles | S3Files
    leftovers: ClassVar[tuple[str, ...]]

    def path(self, *parts: str) -> str:
        """The path of something below the store, as `files` takes it.

        Raises:
            StoreError: It would lead out of the store: the parts are from a damaged or hostile record.
        """
        return "/".join([self.root, *(checked_name(part, where=self.uri) for part in parts)])

    def link(self, ref: Ref, name: str = "") -> str:
        """Where a person finds an artifact or one of its files."""
        return "/".join(part for part in (self.uri, "steps", ref["step"], ref["fingerprint"], name) if part)

    def preflight(self) -> None:
        """Write, list, read and remove a small object, so that a store that fails does so before a GPU is touched.

        Raises:
            StoreError: Within seconds, also when the server does not answer.
        """
        path = self.path(f".probe-{uuid.uuid4().hex}")
        try:
            files = self.files.in_a_hurry()
            files.write(path, b"ssr")
            files.names(self.root)  # rows and runs are found by listing, which a policy of S3 may forget to permit
            content = files.read(path)
            files.remove(path)
        except Exception as error:  # any failure of any file system means the same: this store cannot be used
            raise StoreError(_unusable(self.uri, error)) from error
        if content != b"ssr":
            raise StoreError(f"{self.uri}: the store gives back other bytes than were written to it")

    # --- artifacts ---

    def manifest(self, step: str, fingerprint: str) -> Manifest | None:
        """The manifest of a published artifact, or None. Does not look at its files.

        Raises:
            StoreError: The store did not answer, which does not mean that there is no artifact.
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

    def require(self, ref: Ref) -> Manifest:
        """The manifest of an artifact that must be there.

        Raises:
            StoreError: It is not.
        """
        manifest = self.manifest(**ref)
        if manifest is None:
            raise StoreError(f"{self.link(ref)}: no such artifact. Run the same command again to make it.")
        return manifest

    def weights_digest(self, adapter: Ref) -> str | None:
        """One digest of an adapter's weights as they are in the store now; None if the adapter is gone."""
        manifest = self.manifest(**adapter)
        return manifest.weights_digest if manifest else None

    def verified(self, step: str, fingerprint: str) -> Manifest | None:
        """The manifest if every file is there with the recorded size and, on a local store, the recorded digest.

        A remote file's digest is checked when it is fetched.
        """
        manifest = self.manifest(step, fingerprint)
        return manifest if manifest and self._holds(self.path("steps", step, fingerprint), manifest.files) else None

    def fetch(self, ref: Ref) -> Path:
        """A local folder with the artifact's files; remote ones are downloaded once and checked.

        Raises:
            StoreError: The artifact is not there, or a file is not what its manifest says.
        """
        manifest, folder = self.require(ref), self.cache / "steps" / ref["step"] / ref["fingerprint"]
        self._bring(ref, manifest, folder)
        return folder

    @contextmanager
    def staging(self, step: str, fingerprint: str) -> Iterator[Path]:
        """A fresh local folder beside the place it will be published to; removed if it was not published."""
        folder = self._staging_folder(step) / f".staging-{fingerprint[:16]}-{uuid.uuid4().hex[:8]}"
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
            self._publish(staged, target, manifest)
        except Exception as error:
            raise StoreError(_unusable(self.uri, error)) from error

    def remove(self, ref: Ref) -> None:
        """Remove an artifact, its manifest first: without one it does not exist, so a kill leaves no half of one."""
        folder = self.path("steps", ref["step"], ref["fingerprint"])
        self.files.remove(f"{folder}/{MANIFEST}")
        self.files.remove_folder(folder)

    def copies(self) -> list[Path]:
        """The local copies of artifacts of a remote store, as folders `<step>/<fingerprint>` of the cache folder."""
        return []

    def fingerprints(self, step: str) -> list[str]:
        """All fingerprints published for a step, newest first where the file system tells."""
        return [name for name in self._names("steps", step) if not name.startswith(".")]

    @abstractmethod
    def lease(self, ref: Ref, *, alone: bool) -> Lease | NoLease:
        """The claim of an artifact among machines, not yet taken.

        Args:
            alone: A file lock makes sure that no other process with this cache folder has claimed it.
        """

    @abstractmethod
    def _holds(self, folder: str, files: list[FileEntry]) -> bool: ...

    @abstractmethod
    def _bring(self, ref: Ref, manifest: Manifest, folder: Path) -> None: ...

    @abstractmethod
    def _staging_folder(self, step: str) -> Path: ...

    @abstractmethod
    def _publish(self, staged: Path, target: str, manifest: Manifest) -> None: ...

    # --- unfinished work ---

    def work_folder(self, step: str, fingerprint: str) -> Path:
        """A local folder that outlives a killed step: checkpoints. `done_with_work` removes it."""
        folder = self.cache / "work" / step / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def work_files(self, step: str, fingerprint: str) -> list[StoredFile]:
        """All files of unfinished work, in the cache folder and on the store, and the folder itself with size 0."""
        return files_at(self.cache / "work" / step / fingerprint)

    def done_with_work(self, step: str, fingerprint: str) -> None:
        """Remove the work folder, here and on the store."""
        shutil.rmtree(self.work_folder(step, fingerprint), ignore_errors=True)
        try:
            self.files.remove_folder(self.path("work", step, fingerprint))
        except (StoreError, OSError) as error:  # the artifact is safe, and nothing reads these files any more
            logger.warning("%s: its unfinished work could not be removed from the store: %s", step, error)

    # --- files and folders ---

    def read(self, *parts: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: It is not there.
            StoreError: The store did not answer.
        """
        return self.files.read(self.path(*parts))

    def names(self, *parts: str) -> list[str]:
        """The names in a folder, sorted; none if it is not there.

        Raises:
            StoreError: One of them leads out of the folder. To pass over it might pay for its rows again.
        """
        return sorted(self._names(*parts))

    def files_below(self, *parts: str) -> list[StoredFile]:
        """Every file below a folder, by its name relative to it; none if it is not there."""
        where = "/".join([self.uri, *parts])
        found = self.files.files(self.path(*parts))
        return [file._replace(name=checked_name(file.name, where=where)) for file in found]

    def _names(self, *parts: str) -> list[str]:
        where = "/".join([self.uri, *parts])
        return [checked_name(name, where=where) for name in self.files.names(self.path(*parts))]

    # --- small JSON documents ---

    def write_json(self, value: Any, *parts: str) -> None:  # Any: JSON values
        """Replace a small JSON document at once."""
        path = self.path(*parts)
        try:
            self.files.write(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
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


def _unusable(uri: str, error: Exception) -> str:
    if isinstance(error, SsrError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"{uri}: the disk is full. Free space (`ssr gc` removes what no run uses) and run the same command again."
        )
    reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return f"{uri}: the store cannot be used: {reason}. Check the path, the permissions and the credentials."
