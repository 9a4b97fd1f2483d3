"""The decision: an arm's adapter is promoted if every check shows that it is no worse, and is kept otherwise.

    benchmark   each general benchmark against the base: was anything forgotten?
    task        each in-domain test split against the base, and against the adapter that is promoted now

Each check is a one-sided, paired test of non-inferiority: the lower bound of the change must lie above -margin. A check
that shows nothing, because it has too few items or too few scores, does not pass either.

Several checks need no correction. A bad adapter must pass all of them, and passes the one that it is bad at in at most
1 - confidence of all cases (intersection-union test, Berger 1982). So more checks make a wrong promotion rarer.

Not covered: out-of-domain splits, which the report shows; and a chain of promotions that each lose a little. Such a
chain ends when an adapter fails its check against the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.config import PromotionConfig
from tasks.measures.bootstrap import MIN_CLUSTERS, Method
from tasks.measures.non_inferiority import Bound, lower_bound, non_inferior
from tasks.measures.scores import Key, items_of, keys_of

BASE, ARM, CURRENT = "base", "arm", "current"


@dataclass(frozen=True)
class Check:
    """One test of non-inferiority and its result.

    Scores and changes are from 0 to 1, and null if no item was scored for both sides.

    Attributes:
        kind: benchmark or task.
        against: base or current.
        reason: Why it passed or not, for people.
        low: The lower confidence bound of the change.
        at_best: What `low` would be if no item had changed. If this is not above -margin, no adapter could pass.
        needed: The number of items with which an adapter that changes nothing passes.
    """

    kind: str
    against: str
    benchmark: str
    metric: str
    margin: float
    passed: bool
    reason: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    at_best: float | None
    needed: int
    n: int
    n_unscored: int
    n_clusters: int
    n_gained: int
    n_lost: int
    test: str


@dataclass(frozen=True)
class PromotionDecision:
    """Whether the arm's adapter is promoted, and why.

    Attributes:
        outcome: promoted; kept (the adapter promoted now stays); or current (the arm's adapter is that one already).
        reasons: For people.
        compared_with: base, or current if an adapter is promoted now.
    """

    outcome: str
    arm: str
    compared_with: str
    confidence: float
    reasons: list[str]
    checks: list[Check]


def decide(folders: Mapping[str, Path], config: PromotionConfig, *, is_current: bool) -> PromotionDecision:
    """Compare the arm's adapter with the base and with the adapter that is promoted now.

    Args:
        folders: The scores artifacts of BASE and ARM, and of CURRENT if an adapter is promoted now.
        is_current: Whether the arm's adapter is the one promoted now. Then its checks decide nothing.
    """
    checks = list(_checks(folders, config))
    failed = [check for check in checks if not check.passed]
    missing = [
        f"nothing {what} was measured, so that no loss could be seen"
        for kind, what in (("benchmark", "general"), ("task", "of the task (an in-domain test split)"))
        if not any(check.kind == kind for check in checks)
    ]
    missing += [
        f"{name}: no metric of which more is better has a score, so that no loss could be seen"
        for name in _without_primary_metric(folders)
    ]
    reasons = [*missing, *(check.reason for check in failed)]
    outcome = "kept" if reasons else "promoted"
    if is_current:
        outcome = "current"
        reasons = ["the adapter is the one promoted now", *(f"by today's items {reason}" for reason in reasons)]
    elif outcome == "promoted":
        against = "the base and the adapter promoted until now" if CURRENT in folders else "the base"
        reasons = [f"no worse than {against} on all of {len(checks)} checks"]
    return PromotionDecision(
        outcome, config.arm, CURRENT if CURRENT in folders else BASE, config.confidence, reasons, checks
    )


def _without_primary_metric(folders: Mapping[str, Path]) -> list[str]:
    """The benchmarks that have no primary metric, so that no check can use them."""
    keys = [key for key in keys_of(folders) if key.family != "task-out"]
    return sorted({key.benchmark for key in keys} - {key.benchmark for key in keys if key.primary})


def _checks(folders: Mapping[str, Path], config: PromotionConfig) -> Iterator[Check]:
    for key in keys_of(folders):
        if not key.primary or key.family == "task-out":
            continue
        frame = items_of(folders, key)
        clusters = list(frame.pop("cluster"))
        kind, margin = ("task", config.task_margin) if key.is_task else ("benchmark", config.benchmark_margin)
        for against in (BASE, CURRENT) if key.is_task and CURRENT in folders else (BASE,):
            bound = lower_bound(
                frame[against].to_numpy(), frame[ARM].to_numpy(), clusters=clusters, margin=margin,
                method=Method(config.confidence, config.n_bootstrap, config.seed),
            )  # fmt: skip
            yield _check(kind, against, key, margin, bound, config)


def _check(kind: str, against: str, key: Key, margin: float, bound: Bound, config: PromotionConfig) -> Check:
    problem = _problem(bound, margin, config)
    what = f"{key.benchmark} ({key.metric}) against {against}"
    return Check(
        kind, against, key.benchmark, key.metric, margin, problem is None,
        f"{what}: {problem or f'a loss of {_points(margin)} is ruled out: {_change(bound)}'}",
        bound.before, bound.after, bound.delta, bound.low, bound.at_best, bound.needed, bound.n_pairs, bound.n_missing,
        bound.n_clusters, bound.n_gained, bound.n_lost, bound.test,
    )  # fmt: skip


def _problem(bound: Bound, margin: float, config: PromotionConfig) -> str | None:
    """Why this check is not passed: the most basic reason. None if it is passed."""
    n_items = bound.n_pairs + bound.n_missing
    if not bound.n_pairs:
        return "no item was scored for both"
    if bound.n_missing > config.max_unscored_share * n_items:
        return f"{bound.n_missing:,} of {n_items:,} items have no score, more than promotion.max_unscored_share"
    if bound.low is None:
        return f"not shown: {bound.n_clusters} groups of items are too few to tell, at least {MIN_CLUSTERS} are needed"
    if bound.at_best is not None and not non_inferior(bound.at_best, margin=margin):
        return (
            f"not shown: {bound.n_pairs:,} items rule out a loss of {_points(-bound.at_best)} at best, "
            f"the margin is {_points(margin)}: {bound.needed:,} items are needed"
        )
    if non_inferior(bound.low, margin=margin):
        return None
    return f"a loss of {_points(margin)} is not ruled out: {_change(bound)}"


def _change(bound: Bound) -> str:
    assert bound.delta is not None  # called only where there are pairs
    assert bound.low is not None
    return f"{100 * bound.delta:+.1f}, above {100 * bound.low:+.1f} ({bound.test}, n {bound.n_pairs:,})"


def _points(share: float) -> str:
    return f"{100 * share:.3g} points"
