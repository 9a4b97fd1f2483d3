"""The pages' content in its order. `report.html` and `report.md` are both made from it, so that they say the same."""

from __future__ import annotations

from tasks.report.blocks import PageSection
from tasks.report.findings import Findings
from tasks.report.section_audit import audit_blocks
from tasks.report.section_origin import accounting, cost, provenance
from tasks.report.section_promotion import promotion
from tasks.report.section_results import comparison, results
from tasks.report.section_training import example, judge_and_targets, training


def sections(found: Findings) -> list[PageSection]:
    """All sections after the verdict."""
    return [
        *promotion(found.promotion),
        PageSection("Base and arms", blocks=list(results(found))),
        PageSection("Forgetting and task gain", blocks=list(comparison(found))),
        PageSection("Judge and target mix", blocks=[*judge_and_targets(found), *audit_blocks(found)]),
        PageSection("Training", blocks=list(training(found))),
        PageSection("Examples", _EXAMPLES_TEXT, blocks=[example(e) for e in found.judged.examples]),
        PageSection("Row accounting", blocks=[accounting(found)]),
        PageSection("Cost", blocks=[cost(found)]),
        PageSection("Provenance", blocks=list(provenance(found))),
    ]


_EXAMPLES_TEXT = (
    "The first of each verdict by example id, so not chosen by anyone. Long texts are cut in the middle. "
    "A target is what an arm was trained to answer."
)
