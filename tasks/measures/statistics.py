"""Paired statistics over item scores: intervals, tests, and the smallest change that a test could have found.

Two models answer the same items, so they are compared item by item: an unpaired test on paired items would miss most
changes. Scores are arrays with NaN for "not scored". An item that either model has no score of is left out and counted,
never taken for 0. These functions take and give plain numbers and know no tables, arms or benchmarks.

    change = compare(base, arm, clusters=None, method=Method(confidence=0.95, n_bootstrap=2000, seed=0))
    change.delta, change.low, change.high, change.p_value

Whether a model is *no worse* than another is another question: see `tasks.measures.non_inferiority`.

Not covered: few clusters (below MIN_CLUSTERS the clustered bootstrap is too narrow, and there is no interval at all
where there is one cluster or where all changed by the same), and the spread between training seeds, which takes several
arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from tasks.measures.bootstrap import (
    Clusters,
    Floats,
    Method,
    bootstrap_means,
    bootstrap_p_value,
    cluster_numbers,
    clustered_error,
    is_binary,
    percentiles,
)

POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: None where no item was scored; `low` and `high` with it, and where all items are one cluster.
        n: Items that were scored.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_missing: int


@dataclass(frozen=True)
class Comparison:
    """What changed from one model to another on the same items. Every number is None where no pair was scored.

    `low`, `high`, `standard_error`, `p_value` and `detectable` are also None where the items do not show how much
    varies by chance: all items are one cluster, or all clusters changed by the same.

    Attributes:
        before: Mean of the first model over the pairs; `after` that of the second.
        delta: after - before.
        standard_error: Of delta.
        p_value: Two-sided, not adjusted.
        detectable: Smallest true change that this test would find with a power of 80 %; None where nothing varies.
        n_missing: Items left out because either score is missing.
        n_gained: Items on which the second model scores higher; `n_lost` lower.
        test: Name of the test.
    """

    before: float | None
    after: float | None
    delta: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    p_value: float | None
    detectable: float | None
    n_pairs: int
    n_missing: int
    n_clusters: int
    n_gained: int
    n_lost: int
    test: str


@dataclass(frozen=True)
class Average:
    """Mean change over benchmarks, each counting the same.

    Attributes:
        relative: Mean of delta / before, over the benchmarks where before > 0.
        p_value: Of the mean, by the normal approximation.
        worst: The benchmark with the lowest delta.
        benchmarks: Those averaged, in order; `missing` had no scored pair, or no standard error.
    """

    before: float
    after: float
    delta: float
    low: float
    high: float
    standard_error: float
    p_value: float
    detectable: float | None
    relative: float | None
    worst: str
    worst_delta: float
    benchmarks: list[str]
    missing: list[str]


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    if n == 0:
        return Estimate(None, None, None, 0, 0)
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n, 0)


def mean(scores: Floats, *, clusters: Clusters | None, method: Method) -> Estimate:
    """The mean of one model's scores: Wilson's interval for independent 0/1 scores, else the bootstrap's."""
    scored = ~np.isnan(scores)
    values, n_missing = scores[scored], int((~scored).sum())
    if not len(values):
        return Estimate(None, None, None, 0, n_missing)
    groups = cluster_numbers(clusters, scored)
    if is_binary(values) and groups.max() + 1 == len(values):
        return replace(wilson(int(values.sum()), len(values), confidence=method.confidence), n_missing=n_missing)
    if groups.max() == 0:
        return Estimate(float(values.mean()), None, None, len(values), n_missing)
    low, high = percentiles(bootstrap_means(values, groups, method), method)
    return Estimate(float(values.mean()), low, high, len(values), n_missing)


def compare(before: Floats, after: Floats, *, clusters: Clusters | None, method: Method) -> Comparison:
    """Compare two models item by item.

    Independent 0/1 scores: McNemar's exact test, and the interval of Agresti and Min (2005), which adds half an item
    to each cell of the 2 x 2 table and so does not collapse when no item changed. Otherwise the paired bootstrap,
    which resamples whole clusters where there are any.

    Args:
        before: One score an item, NaN where it has none; `after` has the same items in the same order.
        clusters: Items that share a name are not independent; None stands alone.
    """
    paired = ~(np.isnan(before) | np.isnan(after))
    first, second = before[paired], after[paired]
    n_missing = int((~paired).sum())
    if not len(first):
        return Comparison(*(None,) * 8, n_pairs=0, n_missing=n_missing, n_clusters=0, n_gained=0, n_lost=0, test="none")
    differences, groups = second - first, cluster_numbers(clusters, paired)
    n_clusters = int(groups.max()) + 1
    n_gained, n_lost = int((differences > 0).sum()), int((differences < 0).sum())
    delta = float(differences.mean())
    low: float | None
    high: float | None
    error: float | None
    p_value: float | None
    if n_clusters == len(differences) and is_binary(first) and is_binary(second):
        test = "McNemar exact"
        low, high, error = _agresti_min(n_gained, n_lost, len(differences), method)
        p_value = mcnemar(n_gained, n_lost)
    else:
        test = "paired bootstrap" if n_clusters == len(differences) else "clustered bootstrap"
        low = high = p_value = None
        error = clustered_error(differences, groups, delta)
        if error is not None:
            draws = bootstrap_means(differences, groups, method)
            low, high = percentiles(draws, method)
            p_value = bootstrap_p_value(draws, delta)
    smallest = None if error is None else detectable(error, method)
    return Comparison(
        float(first.mean()), float(second.mean()), delta, low, high, error, p_value, smallest,
        len(differences), n_missing, n_clusters, n_gained, n_lost, test,
    )  # fmt: skip


def mcnemar(n_gained: int, n_lost: int) -> float:
    """The p-value of McNemar's exact test that a changed item is as often gained as lost; 1 where none changed."""
    changed = n_gained + n_lost
    return float(stats.binomtest(n_gained, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values, by name, adjusted for the number of tests (Holm 1979)."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return adjusted


def detectable(standard_error: float, method: Method) -> float | None:
    """The smallest true change that a two-sided test finds with 80 % power: (z_alpha/2 + z_power) * standard error.

    Bloom 1995, "Minimum detectable effects"; for evaluations of language models Miller 2024 (arXiv 2411.00640), section
    5. The standard error is that of the paired differences that were observed, so fewer changed items or more
    agreement between the models let the test find a smaller drop.
    """
    if standard_error == 0:
        return None
    return float(_z(method) + stats.norm.ppf(POWER)) * standard_error


def average(changes: Mapping[str, Comparison], *, method: Method) -> Average | None:
    """Mean change over benchmarks, by name; None where none has a scored pair and a standard error.

    Benchmarks share no items, so the standard error of the mean is sqrt(sum of squares) / k.
    """
    found = {name: c for name, c in changes.items() if c.delta is not None and c.standard_error is not None}
    if not found:
        return None
    k = len(found)
    deltas = {name: c.delta or 0.0 for name, c in found.items()}
    error = math.sqrt(sum((c.standard_error or 0.0) ** 2 for c in found.values())) / k
    delta = sum(deltas.values()) / k
    shares = [deltas[name] / c.before for name, c in found.items() if c.before]
    worst = min(deltas, key=lambda name: (deltas[name], name))
    return Average(
        before=sum(c.before or 0.0 for c in found.values()) / k,
        after=sum(c.after or 0.0 for c in found.values()) / k,
        delta=delta, low=delta - _z(method) * error, high=delta + _z(method) * error, standard_error=error,
        p_value=float(2 * stats.norm.sf(abs(delta) / error)) if error else 1.0,  # nothing changed
        detectable=detectable(error, method),
        relative=sum(shares) / len(shares) if shares else None,
        worst=worst, worst_delta=deltas[worst],
        benchmarks=list(found), missing=[name for name in changes if name not in found],
    )  # fmt: skip


def _z(method: Method) -> float:
    return float(stats.norm.ppf((1 + method.confidence) / 2))


def _agresti_min(n_gained: int, n_lost: int, n: int, method: Method) -> tuple[float, float, float]:
    """Interval and standard error of a paired difference of proportions (Agresti and Min 2005, section 3)."""
    gained, lost, total = n_gained + 0.5, n_lost + 0.5, n + 2
    delta = (gained - lost) / total
    error = math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return max(-1.0, delta - _z(method) * error), min(1.0, delta + _z(method) * error), error
