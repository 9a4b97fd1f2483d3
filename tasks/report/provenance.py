"""What the manifests say of every artifact behind the report: rows, seconds, tokens, host, versions and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.store import Manifest, Ref, Store
from tasks.config import RunConfig


@dataclass(frozen=True)
class ArtifactRecord:
    """One artifact, as its manifest describes it.

    Attributes:
        label: The step, and the arms the artifact was made for unless all arms share it.
        content_digest: Digest of its files; the same digest means the same bytes.
        dropped: Dropped rows by reason.
        closes: Whether rows_in = rows_out + dropped; None for a step that does not account for rows.
        tokens: Counts of tokens by their name in the manifest.
        generated: Rows that this artifact paid for; `reused`: rows that an earlier run had paid for.
        counts: Every count of the manifest, also those above.
    """

    label: str
    step: str
    fingerprint: str
    content_digest: str
    seconds: float | None
    rows_in: int | None
    rows_out: int | None
    dropped: dict[str, int]
    closes: bool | None
    tokens: dict[str, int]
    generated: int | None
    reused: int | None
    counts: dict[str, int]
    inputs: dict[str, Ref]
    host: str | None
    python: str | None
    versions: dict[str, str]


def artifact_records(store: Store, artifacts: Mapping[str, Ref], recipe: RunConfig) -> list[ArtifactRecord]:
    """Every artifact behind the report, in the order of the steps; one that several arms share stands once.

    Raises:
        StoreError: An artifact has no manifest.
    """
    arms = [arm.name for arm in recipe.arms]
    users: dict[str, list[str]] = {}
    manifests: dict[str, Manifest] = {}
    for name, ref in sorted(artifacts.items(), key=lambda named: _place(named[0])):
        manifests[ref["fingerprint"]] = store.require(ref)
        users.setdefault(ref["fingerprint"], []).append(_made_for(name, arms))
    ranks = _ranks(manifests)
    ordered = sorted(manifests.values(), key=lambda manifest: (ranks[manifest.step], manifest.step))
    return [_record(f"{one.step} {', '.join(filter(None, users[one.fingerprint]))}".strip(), one) for one in ordered]


_NOT_FOR_AN_ARM = {"rewrite_verdicts": "rewrites", "scores_base": "base", "scores_current": "the promoted adapter"}


def _place(name: str) -> tuple[int, str]:
    """Sorts the inputs of the report: those of an arm, which end with its number, come last and in its order."""
    number = name.rpartition("_")[2]
    return (int(number) if number.isdecimal() else -1, name)


def _made_for(name: str, arms: list[str]) -> str:
    """What an input of the report was made for: an arm, or "" where all arms share it."""
    number = _place(name)[0]
    return arms[number] if number >= 0 else _NOT_FOR_AN_ARM.get(name, "")


def _ranks(manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """The order of the steps: each comes after those that made the inputs of its artifacts."""

    def depth(manifest: Manifest) -> int:
        inputs = [manifests[ref["fingerprint"]] for ref in manifest.inputs.values() if ref["fingerprint"] in manifests]
        return 1 + max((depth(one) for one in inputs), default=0)

    ranks: dict[str, int] = {}
    for manifest in manifests.values():
        ranks[manifest.step] = max(ranks.get(manifest.step, 0), depth(manifest))
    return ranks


def _record(label: str, manifest: Manifest) -> ArtifactRecord:
    counts, facts = manifest.counts, manifest.facts
    dropped = {name.removeprefix("dropped."): n for name, n in counts.items() if name.startswith("dropped.")}
    rows_in, rows_out = counts.get("rows_in"), counts.get("rows_out")
    closes = None if rows_in is None or rows_out is None else rows_in == rows_out + sum(dropped.values())
    versions: dict[str, Any] = facts.get("versions") or {}  # Any: JSON values
    return ArtifactRecord(
        label=label, step=manifest.step, fingerprint=manifest.fingerprint, content_digest=manifest.content_digest,
        seconds=facts.get("seconds"),
        rows_in=rows_in, rows_out=rows_out, dropped=dropped, closes=closes,
        tokens={name: n for name, n in counts.items() if "tokens" in name},
        generated=counts.get("rows_generated"), reused=counts.get("rows_reused"),
        counts=dict(sorted(counts.items())), inputs=dict(sorted(manifest.inputs.items())),
        host=facts.get("host"), python=facts.get("python"),
        versions={name: str(version) for name, version in sorted(versions.items())},
    )  # fmt: skip
