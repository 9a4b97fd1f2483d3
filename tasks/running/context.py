"""What the body of a step works with: its inputs, its output folder, and where it records what it counted."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts.store import Ref, Store
from tasks.errors import StepError
from tasks.running import progress


@dataclass
class Context:
    """What a step's body works with.

    Attributes:
        ref: The artifact being made.
        out: Write files here; they become the artifact.
        inputs: The artifacts it is made from, by parameter name.
        counts: Whole numbers for the manifest; `account` checks that rows add up.
        facts: Other measured values for the manifest.
        progress: Call it with (done, total, detail).
        force: The artifact is made again although the store has it. The body must then reuse nothing that was
            measured before, and asks again for the rows that failed.
    """

    store: Store
    ref: Ref
    out: Path
    inputs: dict[str, Ref]
    progress: progress.Progress = progress.silent
    force: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # Any: JSON values

    @functools.cached_property
    def work(self) -> Path:
        """A folder that outlives a killed step, for checkpoints; removed when the step is done."""
        return self.store.work_folder(**self.ref)

    def path(self, ref: Ref, name: str) -> Path:
        """A local path of one file of an input."""
        return self.store.fetch(ref) / name

    def counts_of(self, ref: Ref) -> dict[str, int]:
        """The counts in the manifest of an input.

        Raises:
            StepError: The input is no longer in the store.
        """
        manifest = self.store.manifest(**ref)
        if manifest is None:
            raise StepError(f"{self.store.link(ref)}: gone while {self.ref['step']} ran. Run the same command again.")
        return manifest.counts

    def account(self, rows_in: int, kept: int, dropped: Mapping[str, int]) -> None:
        """Record where every row went.

        Raises:
            StepError: The rows do not add up: one was lost or doubled, which is a defect of this program.
        """
        total = kept + sum(dropped.values())
        if rows_in != total:
            raise StepError(f"{self.ref['step']}: {rows_in} rows in, but {kept} kept + {dict(dropped)} = {total}")
        self.counts |= {"rows_in": rows_in, "rows_out": kept}
        self.counts |= {f"dropped.{reason}": n for reason, n in sorted(dropped.items())}
