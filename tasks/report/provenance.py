"""What the manifests say of every artifact behind the report: rows, seconds, tokens, host, versions and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.store import Manifest, Ref, Store
from tasks.config import RunConfig
from tasks.errors import StoreError


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
    users: dict[tuple[str, str], list[str]] = {}
    for name, ref in _in_order(artifacts, recipe):
        users.setdefault((ref["step"], ref["fingerprint"]), []).append(name)
    found = []
    for (step, fingerprint), names in users.items():
        manifest = store.manifest(step, fingerprint)
        if manifest is None:
            raise StoreError(
                f"{store.uri}: no manifest of {step}/{fingerprint}. Run the same command again to make it."
            )
        shown = [name for name in names if name]
        found.append(_record(f"{step} {', '.join(shown)}".strip(), manifest))
    return found


def _in_order(artifacts: Mapping[str, Ref], recipe: RunConfig) -> list[tuple[str, Ref]]:
    """Inputs of the report as (what it was made for, ref); those shared by all arms are made for ''."""
    arms = [arm.name for arm in recipe.arms]
    names = ("examples", "outputs", "verdicts", "rewrites", "likelihoods")
    shared = [("", artifacts[name]) for name in names if name in artifacts]
    if "rewrite_verdicts" in artifacts:
        shared.append(("rewrites", artifacts["rewrite_verdicts"]))
    per_arm = [(arm, artifacts[f"{kind}_{i}"]) for kind in ("targets", "adapter") for i, arm in enumerate(arms)]
    scores = [("base", artifacts["scores_base"]), *((arm, artifacts[f"scores_{i}"]) for i, arm in enumerate(arms))]
    if "scores_current" in artifacts:
        scores.append(("the promoted adapter", artifacts["scores_current"]))
    decided = [("", artifacts["decision"])] if "decision" in artifacts else []
    return [*shared, *per_arm, *scores, *decided]


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
