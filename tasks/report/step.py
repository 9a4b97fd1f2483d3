"""The report step: everything that a run found, as a page to mail around, a page for the UI, and plain numbers.

Not covered: the spread between training seeds (each seed is an arm of its own).
"""

from __future__ import annotations

import logging

from tasks.artifacts.store import Ref
from tasks.config import RunConfig
from tasks.measures import metrics
from tasks.report.sections import page_sections, section_versions
from tasks.running.step import Context, step

logger = logging.getLogger(__name__)


@step(
    version=7, pool="cpu", table=None,
    outside=lambda *, recipe: {"sections": section_versions(), "metrics": metrics.declarations()},
)  # fmt: skip
def report(ctx: Context, *, recipe: RunConfig, **artifacts: Ref) -> None:
    """Write report.html, report.md and report.json.

    Args:
        artifacts: examples, outputs, verdicts, scores_base, where some policy reads them rewrites, rewrite_verdicts and
            likelihoods, and for each arm by its place in the recipe targets_0,
            adapter_0, scores_0 and so on; where the recipe promotes an adapter decision, and scores_current where one
            is promoted already.
    """
    # scipy, pandas and matplotlib take seconds to import, and `ssr --help` and loading a deployment need none of them.
    from tasks.report.findings import find
    from tasks.report.pages import html_page, markdown_page

    found = find(ctx, recipe, artifacts)
    shown = page_sections(found)
    (ctx.out / "report.json").write_text(found.to_json(), encoding="utf-8")
    (ctx.out / "report.html").write_text(html_page(found, shown), encoding="utf-8")
    (ctx.out / "report.md").write_text(markdown_page(found, shown), encoding="utf-8")
    ctx.counts |= {
        "arms": len(found.measured.arms), "scores": len(found.measured.base),
        "examples_shown": len(found.judged.examples), "warnings": len(found.warnings),
    }  # fmt: skip
    for line in (*found.verdict, *found.warnings):
        logger.info("%s", line)
