"""The manifest of an artifact: what identifies it, its files, and how it was made; references to artifacts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tasks.artifacts.digest import digest_of, file_digest
from tasks.errors import StoreError

_WEIGHTS = ".safetensors"


class Ref(TypedDict):
    """A reference to an artifact. Steps hand nothing else to each other."""

    step: str
    fingerprint: str


class FileEntry(TypedDict):
    """One file of an artifact; `name` is relative, with forward slashes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What identifies an artifact, how it was made, and its files.

    Attributes:
        identity: The values whose digest is the fingerprint. They explain a cache hit or miss.
        input_digests: The content digest of each input when this was made. A forced step may change it (on a GPU).
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

    @property
    def weights_digest(self) -> str:
        """A digest of the weights of a model or adapter: its safetensors files, by name, without its settings."""
        return digest_of({entry["name"]: entry["sha256"] for entry in self.files if entry["name"].endswith(_WEIGHTS)})

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read a manifest from the text of a file at `where`.

        Raises:
            ValueError, TypeError, KeyError: The text is damaged, or is no manifest.
            StoreError: The manifest names a file outside its folder.
        """
        raw = json.loads(text)
        return cls(**{**raw, "files": checked_files(raw["files"], where=where)})


def describe_files(folder: Path) -> list[FileEntry]:
    """Every file below a staged folder, sorted by name."""
    return [file_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]


def file_entry(folder: Path, path: Path) -> FileEntry:
    """One file below a folder."""
    return FileEntry(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=file_digest(path))


def checked_name(name: object, *, where: str) -> str:
    """Check a relative name from a store before it is joined to a folder; gives it back unchanged.

    Raises:
        StoreError: It leads out of the folder, or is no name. This program writes no such name, so the store is damaged
            or hostile.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(parts):
        return name
    raise StoreError(
        f"{where}: {name!r} does not name a file below it, and is not used. No version of this program writes such "
        "a name: find out who else writes to the store, and remove it."
    )


def checked_files(entries: list[FileEntry], *, where: str) -> list[FileEntry]:
    """Check a list of files from a store.

    Raises:
        ValueError, TypeError, KeyError: It is no list of files.
        StoreError: It names a file outside its folder.
    """
    return [
        FileEntry(name=checked_name(entry["name"], where=where), size=int(entry["size"]), sha256=str(entry["sha256"]))
        for entry in entries
    ]
