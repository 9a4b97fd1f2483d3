"""A store in a local folder: its files are used where they are, and an artifact is renamed into place whole."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tasks.artifacts.base_store import MANIFEST, Store
from tasks.artifacts.digest import file_digest
from tasks.artifacts.files import fsync_folder, put_in_place, share_as
from tasks.artifacts.lease import NoLease
from tasks.artifacts.manifest import FileEntry, Manifest, Ref
from tasks.errors import StoreError

_REPLACE_TRIES = 100  # a try fails only if another worker publishes in that very moment


@dataclass(frozen=True)
class LocalStore(Store):
    """A store in a folder, which is its own cache folder."""

    leftovers: ClassVar[tuple[str, ...]] = (
        "steps/*/.staging-*", "rows/*/*/.part-*", "items/.*", "runs/*.part", "current/*.part", "current/*/*.part",
    )  # fmt: skip

    def lease(self, ref: Ref, *, alone: bool) -> NoLease:
        """None is needed: the lock of a file in the cache folder, which is the store, is all."""
        return NoLease(alone)

    def _holds(self, folder: str, files: list[FileEntry]) -> bool:
        for entry in files:
            path = Path(folder, entry["name"])
            try:
                if path.stat().st_size != entry["size"] or file_digest(path) != entry["sha256"]:
                    return False
            except FileNotFoundError:  # it is not there, or another worker is just replacing the artifact
                return False
        return True

    def _bring(self, ref: Ref, manifest: Manifest, folder: Path) -> None:
        """Do nothing: the folder is the artifact."""

    def _staging_folder(self, step: str) -> Path:
        return Path(self.path("steps", step))

    def _publish(self, staged: Path, target: str, manifest: Manifest) -> None:
        (staged / MANIFEST).write_text(manifest.to_json())
        share_as(staged / MANIFEST)
        fsync_folder(staged)
        self._replace_folder(staged, Path(target), manifest)

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
                # Another worker was first, or the step was forced and made the same: readers keep their files.
                with suppress(FileNotFoundError):  # a third worker has just moved it
                    put_in_place(staged / MANIFEST, target / MANIFEST)
                    return
            # The old content is damaged, or a forced step made another: ours takes its place.
            aside = target.with_name(f".staging-old-{uuid.uuid4().hex[:8]}")
            with suppress(FileNotFoundError):  # a third worker has just moved it
                os.replace(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
        raise StoreError(f"{target}: other workers publish it all the time. Run the same command again.")
