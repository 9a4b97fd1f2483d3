"""The audit of the LLM judge, read from the manifest of the judge step, and the warnings that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.store import Ref, Store
from tasks.wording import count, interval, percent

LOW_PRECISION = 0.9  # below this share of right answers among those that the LLM accepted, the report warns


Facts = dict[str, Any]  # Any: JSON values, as `tasks.judge.audit.summary` writes them


@dataclass(frozen=True)
class Audit:
    """The audit of one judge step.

    Attributes:
        of: What the step judged: answers or rewrites.
        fell_short: How the judge missed the precision that the recipe asks for; gold is then trained on where it
            accepted. None where it did not miss it.
    """

    of: str
    n_probes: int
    threshold: float
    min_precision: float | None
    fell_short: str | None
    classes: list[Facts]
    kinds: list[Facts]
    sweep: list[Facts]
    warnings: list[str]


def audits(store: Store, artifacts: Mapping[str, Ref]) -> list[Audit]:
    """The audits of a run; empty where only rules judged, or no audit was asked for."""
    found = []
    for name, of in (("verdicts", "answers"), ("rewrite_verdicts", "rewrites")):
        manifest = store.manifest(**artifacts[name]) if name in artifacts else None
        if facts := manifest.facts.get("audit") if manifest else None:
            found.append(Audit(of, **{name: facts[name] for name in Audit.__dataclass_fields__ if name != "of"}))
    return found


def audit_warnings(found: Sequence[Audit]) -> Iterator[str]:
    """What a reader should know of the judge. Steps with the same judge share probes, so each warning stands once."""
    yield from dict.fromkeys(warning for audit in found for warning in audit.warnings)
    for audit in found:
        if audit.fell_short:
            yield (
                f"The audit: {audit.fell_short}, where {audit.min_precision:g} was asked for. What the LLM accepted of "
                f"the {audit.of} counts as unjudged, so gold is trained on."
            )
            continue
        everything = audit.classes[0]
        right, wrong = everything["precision_of_answers"], everything["wrong_accepted_answers"]
        if right is None or (right["value"] is not None and right["value"] >= LOW_PRECISION):
            continue
        those = f"Of the {count(everything['accepted'])} {audit.of} that the LLM accepted,"
        if right["value"] is None:
            yield f"{those} the audit cannot tell how many are wrong."
        else:
            likely = interval(right["low"], right["high"], sign=False)
            yield (
                f"{those} only {percent(right['value'])} {likely} are expected to be right: about "
                f"{count(wrong['value'])} teach an error."
            )
