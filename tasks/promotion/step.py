"""The promote step: do the scores show that the arm's adapter is no worse than the promoted one?"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

from tasks.artifacts.store import Ref
from tasks.config import PromotionConfig
from tasks.errors import StepError
from tasks.measures import metrics
from tasks.running.step import Context, step

logger = logging.getLogger(__name__)


@step(version=2, pool="cpu", table=None, outside=lambda *, config: {"metrics": metrics.declarations()})
def promote(
    ctx: Context, *, config: PromotionConfig, adapter: Ref, scores_base: Ref, scores_arm: Ref,
    current: Ref | None = None, scores_current: Ref | None = None,
) -> None:  # fmt: skip
    """Decide whether the adapter is promoted, and write `decision.json`. `flows.promotion.advance` acts on it.

    Args:
        current: The adapter that is promoted now; None if there is none.
        scores_current: Its scores on the same items; None if it is the arm's adapter.
    """
    from tasks.promotion.decide import ARM, BASE, CURRENT, decide  # scipy and pandas: see tasks/report/step.py

    weights = ctx.store.require(adapter).weights_digest
    is_same = current is not None and ctx.store.require(current).weights_digest == weights
    if current is not None and scores_current is None and current != adapter:
        raise StepError("promote: the adapter promoted now has no scores on these items. Evaluate it first.")
    folders = {BASE: ctx.store.fetch(scores_base), ARM: ctx.store.fetch(scores_arm)}
    if current is not None:
        folders[CURRENT] = ctx.store.fetch(scores_current or scores_arm)
    decision = decide(folders, config, is_current=is_same)
    (ctx.out / "decision.json").write_text(json.dumps(asdict(decision), indent=1, allow_nan=False) + "\n")
    passed = [check.passed for check in decision.checks]
    ctx.counts |= {"promoted": int(decision.outcome == "promoted"), "checks": len(passed), "passed": sum(passed)}
    for reason in decision.reasons:
        logger.info("%s: %s: %s", decision.arm, decision.outcome, reason)
