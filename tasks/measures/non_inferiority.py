"""Whether one model is no worse than another: the one-sided lower bound of the change, given scores on the same items.

    bound = lower_bound(base, arm, clusters=None, margin=0.02, method=Method(confidence=0.95))
    bound.low is not None and non_inferior(bound.low, margin=0.02)

Not covered: a loss that strikes a few clusters whole, of which the sample may hold none. With fewer than MIN_CLUSTERS
clusters there is no bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from tasks.measures.bootstrap import MIN_CLUSTERS, Clusters, Floats, Method, bootstrap_means, cluster_numbers, is_binary


@dataclass(frozen=True)
class Bound:
    """The largest loss from one model to another that their scores on the same items leave possible.

    Attributes:
        before: Mean of the first model over the pairs; `after` that of the second. None where no pair was scored.
        low: The true change lies above this, at the one-sided level asked for; None where nothing can be said.
        at_best: What `low` would be if no item had changed: a smaller margin cannot be met with this many items.
        needed: The number of independent items with which the margin is met if none of them changes.
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


def non_inferior(low: float, *, margin: float) -> bool:
    """Whether a loss of `margin` or more is ruled out: the interval of the change lies above -margin."""
    return low > -margin


def lower_bound(before: Floats, after: Floats, *, clusters: Clusters | None, margin: float, method: Method) -> Bound:
    """The one-sided lower bound of the change, at the level `method.confidence`, for a test of non-inferiority.

    Independent 0/1 scores: Tango's score interval (Tango 1998, Statistics in Medicine 17:891). The interval of
    `compare` is too bold for this: with few changed items, all of them lost, it lets a loss of the whole margin pass in
    up to 13 % of draws where Tango's stays at 5.4 %. Otherwise the bootstrap over clusters, with one item more that is
    lost whole: where no loss was seen this is the rule of three, and not the certainty that a plain bootstrap claims.

    Args:
        margin: The loss that is to be ruled out; only `needed` reads it.
    """
    paired = ~(np.isnan(before) | np.isnan(after))
    first, second = before[paired], after[paired]
    n, n_missing, alpha = len(first), int((~paired).sum()), 1 - method.confidence
    z = float(stats.norm.ppf(method.confidence))
    differences, groups = second - first, cluster_numbers(clusters, paired)
    n_clusters = int(groups.max()) + 1 if n else 0
    n_gained, n_lost = int((differences > 0).sum()), int((differences < 0).sum())
    is_whole = n_clusters == n and is_binary(first) and is_binary(second)
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
            draws = bootstrap_means(np.append(differences, -1.0), np.append(groups, n_clusters), method)
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

    # The search ends just below the observed change, because that is another root where no item or every item changed.
    highest = (n_gained - n_lost) / n - 1e-9
    if highest <= -1.0 or excess(-1.0) <= 0:
        return -1.0
    return float(optimize.brentq(excess, -1.0, highest, xtol=1e-12))
