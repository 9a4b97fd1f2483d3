"""Paired statistics over item scores: intervals, tests, and what a test of this size could have seen.

Two models answer the same items, so everything compares item by item: an unpaired test on paired items misses most
of what there is to see. Scores are arrays with NaN for "not scored"; such items are left out in pairs and counted,
never taken for 0. Plain numbers in and out: nothing here knows tables, arms or benchmarks.

    change = compare(base, arm, clusters=None, method=Method(confidence=0.95, n_bootstrap=2000, seed=0))
    change.delta, change.low, change.high, change.p_value

Whether a model is *no worse* than another is a question of its own, with a bound of its own: `lower_bound`.

Not covered: a few clusters only (below about 20 the clustered bootstrap is too narrow; `lower_bound` refuses, and where
there is but one, or all changed by the same, there is no interval at all), and the spread between training seeds, which
takes several arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Clusters = Sequence[str | None]

POWER = 0.8
MIN_CLUSTERS = 20
_NOTHING = 1e-12  # what rounding leaves of 0
_CHUNK = 4_000_000  # random indices at a time: the memory of a bootstrap does not grow with its draws


@dataclass(frozen=True)
class Method:
    """How intervals and tests are made.

    Attributes:
        confidence: Level of the intervals; 1 - confidence is the level of the tests.
    """

    confidence: float = 0.95
    n_bootstrap: int = 2000
    seed: int = 0


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

    `low`, `high`, `standard_error`, `p_value` and `detectable` are None, too, where the items do not tell how far
    chance reaches: they are one cluster, or all clusters changed by the same.

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
class Bound:
    """How large a loss from one model to another may be, given their scores on the same items.

    Attributes:
        before: Mean of the first model over the pairs; `after` that of the second. None where no pair was scored.
        low: The true change lies above this, at the one-sided level asked for; None where nothing can be said.
        at_best: What `low` would be had no item changed: no margin smaller than that could ever be met.
        needed: Independent items that it takes, without any change, to meet the margin.
        n_missing: Items left out because either score is missing.
    """

    before: float | None
    after: float | None
    delta: float | None
    low: float | None
    at_best: float | None
    needed: int
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
    groups = _groups(clusters, scored)
    if _is_binary(values) and groups.max() + 1 == len(values):
        interval = wilson(int(values.sum()), len(values), confidence=method.confidence)
        return Estimate(interval.value, interval.low, interval.high, len(values), n_missing)
    if groups.max() == 0:
        return Estimate(float(values.mean()), None, None, len(values), n_missing)
    low, high = _percentiles(_bootstrap(values, groups, method), method)
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
    differences, groups = second - first, _groups(clusters, paired)
    n_clusters = int(groups.max()) + 1
    n_gained, n_lost = int((differences > 0).sum()), int((differences < 0).sum())
    delta = float(differences.mean())
    low: float | None
    high: float | None
    error: float | None
    p_value: float | None
    if n_clusters == len(differences) and _is_binary(first) and _is_binary(second):
        test = "McNemar exact"
        low, high, error = _agresti_min(n_gained, n_lost, len(differences), method)
        p_value = mcnemar(n_gained, n_lost)
    else:
        test = "paired bootstrap" if n_clusters == len(differences) else "clustered bootstrap"
        low = high = p_value = None
        error = _standard_error(differences, groups, delta)
        if error is not None:
            draws = _bootstrap(differences, groups, method)
            low, high = _percentiles(draws, method)
            p_value = _bootstrap_p(draws, delta)
    smallest = None if error is None else detectable(error, method)
    return Comparison(
        float(first.mean()), float(second.mean()), delta, low, high, error, p_value, smallest,
        len(differences), n_missing, n_clusters, n_gained, n_lost, test,
    )  # fmt: skip


def mcnemar(n_gained: int, n_lost: int) -> float:
    """McNemar's exact test: are the items that changed as often gained as lost? 1 where none changed."""
    changed = n_gained + n_lost
    return float(stats.binomtest(n_gained, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for having asked several questions at once (Holm 1979), by name."""
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
    agreement between the models let a smaller drop be seen.
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


def non_inferior(low: float, *, margin: float) -> bool:
    """Whether a loss of `margin` or more is ruled out: the interval of the change lies above -margin."""
    return low > -margin


def lower_bound(before: Floats, after: Floats, *, clusters: Clusters | None, margin: float, method: Method) -> Bound:
    """The one-sided lower bound of the change, at the level `method.confidence`, for a test of non-inferiority.

    Independent 0/1 scores: Tango's score interval (Tango 1998, Statistics in Medicine 17:891). The interval of
    `compare` is too bold for this: with few changed items, all of them lost, it lets a loss of the whole margin pass in
    up to 13 % of draws where Tango's stays at 5.4 %. Otherwise the bootstrap over clusters, with one item more that is
    lost whole: where no loss was seen this is the rule of three, and not the certainty that a plain bootstrap claims.
    Not covered: a loss that strikes a few clusters whole, of which the sample may hold none.

    Args:
        margin: The loss that is to be ruled out; only `needed` reads it.
    """
    paired = ~(np.isnan(before) | np.isnan(after))
    first, second = before[paired], after[paired]
    n, n_missing, alpha = len(first), int((~paired).sum()), 1 - method.confidence
    z = float(stats.norm.ppf(method.confidence))
    differences, groups = second - first, _groups(clusters, paired)
    n_clusters = int(groups.max()) + 1 if n else 0
    n_gained, n_lost = int((differences > 0).sum()), int((differences < 0).sum())
    is_whole = n_clusters == n and _is_binary(first) and _is_binary(second)
    needed = math.ceil(z**2 * (1 - margin) / margin if is_whole else max(MIN_CLUSTERS, -math.log(alpha) / margin))
    if not n:
        return Bound(None, None, None, None, None, needed, 0, n_missing, 0, 0, 0, "none")
    low: float | None
    if is_whole:
        test, low, at_best = "Tango score", _tango(n_gained, n_lost, n, z), -(z**2) / (n + z**2)
    else:
        test = "paired bootstrap" if n_clusters == n else "clustered bootstrap"
        low, at_best = None, math.log(alpha) / n
        if n_clusters >= MIN_CLUSTERS:
            draws = _bootstrap(np.append(differences, -1.0), np.append(groups, n_clusters), method)
            low = float(np.quantile(draws, alpha))
    return Bound(
        float(first.mean()), float(second.mean()), float(differences.mean()), low, max(-1.0, at_best), needed, n,
        n_missing, n_clusters, n_gained, n_lost, test,
    )  # fmt: skip


def _tango(n_gained: int, n_lost: int, n: int, z: float) -> float:
    """The change at which the score test of "the true change is this or less" is just significant."""

    def excess(delta: float) -> float:
        # The share lost that is most likely if the true change were delta (Tango 1998, equation 9).
        b = (2 * n - n_gained + n_lost) * delta - n_gained - n_lost
        lost = (math.sqrt(max(0.0, b * b + 8 * n * n_lost * delta * (1 - delta))) - b) / (4 * n)
        variance = n * (2 * lost + delta * (1 - delta))
        return n_gained - n_lost - n * delta - z * math.sqrt(max(0.0, variance))

    # Not the change itself: where no item, or every item, changed, it is a root of its own.
    highest = (n_gained - n_lost) / n - 1e-9
    if highest <= -1.0 or excess(-1.0) <= 0:
        return -1.0
    return float(optimize.brentq(excess, -1.0, highest, xtol=1e-12))


def _z(method: Method) -> float:
    return float(stats.norm.ppf((1 + method.confidence) / 2))


def _is_binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _groups(clusters: Clusters | None, kept: NDArray[np.bool_]) -> Ints:
    """The number of each kept item's cluster, from 0; an item without a cluster has one of its own."""
    if clusters is None:
        return np.arange(int(kept.sum()))
    numbers: dict[object, int] = {}
    chosen = [name for name, keep in zip(clusters, kept, strict=True) if keep]
    keys = [(position,) if name is None else name for position, name in enumerate(chosen)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _agresti_min(n_gained: int, n_lost: int, n: int, method: Method) -> tuple[float, float, float]:
    """Interval and standard error of a paired difference of proportions (Agresti and Min 2005, section 3)."""
    gained, lost, total = n_gained + 0.5, n_lost + 0.5, n + 2
    delta = (gained - lost) / total
    error = math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return max(-1.0, delta - _z(method) * error), min(1.0, delta + _z(method) * error), error


def _standard_error(values: Floats, groups: Ints, mean: float) -> float | None:
    """Standard error of a mean over clusters; with one item a cluster, the usual SD / sqrt(n).

    None where it cannot be told: of one cluster, and of several that all have the same mean, unless that is 0.
    """
    n_clusters = int(groups.max()) + 1
    if n_clusters < 2:
        return None
    deviations = np.bincount(groups, weights=values - mean)
    error = float(np.sqrt((deviations**2).sum() * n_clusters / (n_clusters - 1)) / len(values))
    if error > _NOTHING:
        return error
    return 0.0 if abs(mean) <= _NOTHING else None


def _bootstrap(values: Floats, groups: Ints, method: Method) -> Floats:
    """Means of `n_bootstrap` samples of whole clusters, drawn with replacement."""
    rng = np.random.default_rng(method.seed)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    rows = max(1, _CHUNK // len(sums))
    draws = []
    for start in range(0, method.n_bootstrap, rows):
        drawn = rng.integers(0, len(sums), size=(min(rows, method.n_bootstrap - start), len(sums)))
        draws.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(draws)


def _percentiles(draws: Floats, method: Method) -> tuple[float, float]:
    tail = (1 - method.confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


def _bootstrap_p(draws: Floats, delta: float) -> float:
    """Share of draws, moved to a true change of 0, at least as far out as the change seen; never exactly 0."""
    as_far = int((np.abs(draws - delta) >= abs(delta) - 1e-12).sum())
    return (1 + as_far) / (1 + len(draws))
