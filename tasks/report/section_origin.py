"""The sections on every artifact behind the report: where its rows went, what it cost, what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.report.blocks import Block, Cell, Listing, Table, row
from tasks.wording import MISSING, count, seconds

if TYPE_CHECKING:
    from tasks.report.findings import Findings
    from tasks.report.provenance import ArtifactRecord


def accounting(found: Findings) -> Iterator[Block]:
    """Rows in, out and dropped, by step."""
    rows = []
    for made in found.steps:
        nothing = MISSING if made.rows_in is None else "0"
        dropped = "; ".join(f"{n:,} {reason}" for reason, n in made.dropped.items()) or nothing
        closes = MISSING if made.closes is None else "yes" if made.closes else "NO"
        adds_up = Cell(closes, tone="bad" if closes == "NO" else "")
        rows.append(row(made.label, count(made.rows_in), count(made.rows_out), dropped, adds_up, _other_counts(made)))
    yield Table(
        ["Step", "Rows in", "Rows out", "Dropped by reason", "Adds up", "Other counts"], rows,
        "Every row that enters a step leaves it or is dropped for a named reason. A dash: the step does not account "
        "for rows.",
        prose=True,
    )  # fmt: skip


def _other_counts(made: ArtifactRecord) -> str:
    shown = {"rows_in", "rows_out", "rows_generated", "rows_reused", *made.tokens}
    left = {name: n for name, n in made.counts.items() if name not in shown and not name.startswith("dropped.")}
    return ", ".join(f"{name} {n:,}" for name, n in left.items()) or MISSING


def cost(found: Findings) -> Iterator[Block]:
    """Time, tokens and rows, by step."""
    rows = [
        row(made.label, seconds(made.seconds), ", ".join(f"{name} {n:,}" for name, n in made.tokens.items()) or MISSING,
            count(made.generated), count(made.reused), made.host or MISSING)
        for made in found.steps
    ]  # fmt: skip
    known = [made.seconds for made in found.steps if made.seconds is not None]
    rows.append(row("all", seconds(sum(known)), *[""] * 4))
    yield Table(
        ["Step", "Time", "Tokens", "Rows generated", "Rows reused", "Host"], rows,
        "What each artifact cost when it was made. An artifact that this run reused cost nothing again. Rows reused: "
        "rows that an earlier run had already paid for.",
    )  # fmt: skip


def provenance(found: Findings) -> Iterator[Block]:
    """Fingerprints and inputs of all artifacts, versions of packages, and the complete recipe."""
    rows = []
    for made in found.steps:
        inputs = ", ".join(f"{name} {ref['fingerprint'][:12]}" for name, ref in made.inputs.items()) or MISSING
        rows.append(row(made.label, made.fingerprint, made.content_digest[:12], inputs))
    yield Table(
        ["Step", "Fingerprint", "Content", "Made from"], rows,
        "A fingerprint is a digest of code version, config, inputs and outside content. "
        "The same fingerprint is the same artifact; the same content digest, the same bytes.",
        prose=True,
    )  # fmt: skip
    versions = sorted({(name, version) for made in found.steps for name, version in made.versions.items()})
    pythons = sorted({("python", made.python) for made in found.steps if made.python})
    yield Table(["Package", "Version"], [row(*package) for package in [*pythons, *versions]],
                "Versions that the artifacts were made with; two lines for a package mean that it changed in between.",
                folded="Versions")  # fmt: skip
    yield Listing(found.recipe_yaml, "The recipe, complete with its defaults")
