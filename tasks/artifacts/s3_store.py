"""A store on S3: its files are copied to and from the cache folder, and a manifest is written last."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tasks.artifacts.base_store import MANIFEST, Store
from tasks.artifacts.digest import file_digest
from tasks.artifacts.files import StoredFile
from tasks.artifacts.lease import Lease, cache_name
from tasks.artifacts.manifest import FileEntry, Manifest, Ref, describe_files
from tasks.artifacts.s3 import S3Files, at_once
from tasks.errors import StoreError

logger = logging.getLogger(__name__)

_HEX = "[0-9a-f]" * 32


@dataclass(frozen=True)
class S3Store(Store):
    """A store at an `s3://bucket/prefix`."""

    files: S3Files
    leftovers: ClassVar[tuple[str, ...]] = ("staging/*/.staging-*", "rows/*/*/.part-*", f"steps/*/*/**/.*.{_HEX}")

    def copies(self) -> list[Path]:
        """The copies of artifacts in the cache folder, by step and fingerprint."""
        return sorted(self.cache.glob("steps/*/*/"))

    def work_files(self, step: str, fingerprint: str) -> list[StoredFile]:
        """All files of unfinished work, in the cache folder and on the store: what is at both counts twice."""
        return super().work_files(step, fingerprint) + self.files_below("work", step, fingerprint)

    def lease(self, ref: Ref, *, alone: bool) -> Lease:
        """The claim as an object on the store, which runs out unless it is renewed."""
        path = self.path("claims", ref["step"], f"{ref['fingerprint']}.json")
        return Lease(self.files, path, uuid.uuid4().hex, cache_name(self.cache / "claims") if alone else "")

    def _holds(self, folder: str, files: list[FileEntry]) -> bool:
        sizes = {file.name: file.size for file in self.files.files(folder)}
        return all(sizes.get(entry["name"]) == entry["size"] for entry in files)

    def _bring(self, ref: Ref, manifest: Manifest, folder: Path) -> None:
        at_once(lambda entry: self._fetch_file(ref, entry, folder / entry["name"]), manifest.files)

    def _fetch_file(self, ref: Ref, entry: FileEntry, target: Path) -> None:
        if target.exists() and file_digest(target) == entry["sha256"]:
            return
        path = self.path("steps", ref["step"], ref["fingerprint"], entry["name"])
        try:
            for _ in range(2):  # the bytes may have been damaged on the way
                with suppress(ValueError):
                    self.files.download(path, target, sha256=entry["sha256"])
                    return
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.link(ref, entry['name'])}: not there, though the manifest names it. "
                "Run the same command again to make it."
            ) from error
        where, now = self.link(ref, entry["name"]), self.manifest(**ref)
        if now is not None and entry not in now.files:
            raise StoreError(f"{where}: made again while it was read. Run the same command again.")
        # Two workers may have published different bytes of one size at once. By its sizes, every run would take the
        # artifact for complete, and none could read it.
        self.files.remove(self.path("steps", ref["step"], ref["fingerprint"], MANIFEST))
        raise StoreError(
            f"{where}: the content is not what the manifest says, so the artifact counts as not there from now on. "
            "Run the same command again to make it."
        )

    def _staging_folder(self, step: str) -> Path:
        return self.cache / "staging" / step

    def _publish(self, staged: Path, target: str, manifest: Manifest) -> None:
        old = self.manifest(manifest.step, manifest.fingerprint)
        if old is not None and old.content_digest != manifest.content_digest:
            # Its files are about to change: until the new manifest is there, there is no artifact.
            self.files.remove(f"{target}/{MANIFEST}")
        names = [entry["name"] for entry in manifest.files]
        at_once(lambda name: self.files.upload(staged / name, f"{target}/{name}"), names)
        self.files.write(f"{target}/{MANIFEST}", manifest.to_json().encode())
        self._keep_copy(staged, manifest)

    def _keep_copy(self, staged: Path, manifest: Manifest) -> None:
        """Keep what was uploaded for those who read it here; a copy that has the same files stays for its readers."""
        copy = self.cache / "steps" / manifest.step / manifest.fingerprint
        try:
            if copy.exists() and describe_files(copy) == manifest.files:
                return
            shutil.rmtree(copy, ignore_errors=True)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, copy)
        except OSError as error:  # e.g. another step here has just fetched it; it is published, and can be fetched
            logger.debug("%s: no copy kept: %s", copy, error)
