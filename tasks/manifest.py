"""What an artifact is: its reference, its files, and the manifest that says how it came about."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tasks.digest import digest_of, file_digest


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

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest in a text.

        Raises:
            ValueError, TypeError: It is torn, or something else.
        """
        return cls(**json.loads(text))


def describe_files(folder: Path) -> list[FileEntry]:
    """Every file below a staged folder, sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [
        FileEntry(name=p.relative_to(folder).as_posix(), size=p.stat().st_size, sha256=file_digest(p)) for p in files
    ]
