"""The sections on every artifact behind the report: where its rows went, what it cost, what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.report.blocks import Block, Cell, Listing, Table
from tasks.wording import MISSING, count, seconds

if TYPE_CHECKING:
    from tasks.report.findings import Findings
    from tasks.report.provenance import ArtifactRecord


def accounting(found: Findings) -> Iterator[Block]:
    """Rows in, out and dropped, by step."""
    rows = []
    for made in found.steps:
        dropped = "; ".join(f"{n:,} {reason}" for reason, n in made.dropped.items()) or (
            "0" if made.rows_in is not None else MISSING
        )
        closes = MISSING if made.closes is None else "yes" if made.closes else "NO"
        rows.append(
            [Cell(made.label), Cell(count(made.rows_in)), Cell(count(made.rows_out)), Cell(dropped),
             Cell(closes, tone="bad" if closes == "NO" else ""), Cell(_other_counts(made))]
        )  # fmt: skip
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
        [
            Cell(made.label), Cell(seconds(made.seconds)),
            Cell(", ".join(f"{name} {n:,}" for name, n in made.tokens.items()) or MISSING),
            Cell(count(made.generated)), Cell(count(made.reused)), Cell(made.host or MISSING),
        ]
        for made in found.steps
    ]  # fmt: skip
    known = [made.seconds for made in found.steps if made.seconds is not None]
    rows.append([Cell("all"), Cell(seconds(sum(known))), *(Cell("") for _ in range(4))])
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
        rows.append([Cell(made.label), Cell(made.fingerprint), Cell(made.content_digest[:12]), Cell(inputs)])
    yield Table(
        ["Step", "Fingerprint", "Content", "Made from"], rows,
        "A fingerprint is a digest of code version, config, inputs and outside content. "
        "The same fingerprint is the same artifact; the same content digest, the same bytes.",
        prose=True,
    )  # fmt: skip
    versions = sorted({(name, version) for made in found.steps for name, version in made.versions.items()})
    pythons = sorted({("python", made.python) for made in found.steps if made.python})
    yield Table(["Package", "Version"], [[Cell(name), Cell(version)] for name, version in [*pythons, *versions]],
                "Versions that the artifacts were made with; two lines for a package mean that it changed in between.",
                folded="Versions")  # fmt: skip
    yield Listing(found.recipe_yaml, "The recipe, complete with its defaults")
