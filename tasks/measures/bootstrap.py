"""The bootstrap over clusters: what intervals and tests of scores other than independent 0/1 ones are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Clusters = Sequence[str | None]

MIN_CLUSTERS = 20  # with fewer, the clustered bootstrap is too narrow
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


def is_binary(values: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def cluster_numbers(clusters: Clusters | None, kept: NDArray[np.bool_]) -> Ints:
    """The number of each kept item's cluster, from 0; an item without a cluster has one of its own."""
    if clusters is None:
        return np.arange(int(kept.sum()))
    numbers: dict[object, int] = {}
    chosen = [name for name, keep in zip(clusters, kept, strict=True) if keep]
    keys = [(position,) if name is None else name for position, name in enumerate(chosen)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def clustered_error(values: Floats, groups: Ints, mean: float) -> float | None:
    """Standard error of a mean over clusters; with one item a cluster, the usual SD / sqrt(n).

    None where it cannot be estimated: for one cluster, and for several that all have the same mean other than 0.
    """
    n_clusters = int(groups.max()) + 1
    if n_clusters < 2:
        return None
    deviations = np.bincount(groups, weights=values - mean)
    error = float(np.sqrt((deviations**2).sum() * n_clusters / (n_clusters - 1)) / len(values))
    if error > _NOTHING:
        return error
    return 0.0 if abs(mean) <= _NOTHING else None


def bootstrap_means(values: Floats, groups: Ints, method: Method) -> Floats:
    """Means of `n_bootstrap` samples of whole clusters, drawn with replacement."""
    rng = np.random.default_rng(method.seed)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    rows = max(1, _CHUNK // len(sums))
    draws = []
    for start in range(0, method.n_bootstrap, rows):
        drawn = rng.integers(0, len(sums), size=(min(rows, method.n_bootstrap - start), len(sums)))
        draws.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(draws)


def percentiles(draws: Floats, method: Method) -> tuple[float, float]:
    """The two-sided interval of the drawn means at the level `method.confidence`."""
    tail = (1 - method.confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


def bootstrap_p_value(draws: Floats, delta: float) -> float:
    """The two-sided p-value: the share of draws, shifted to a true change of 0, that lie at least `delta` away from it.

    It is never exactly 0.
    """
    as_far = int((np.abs(draws - delta) >= abs(delta) - 1e-12).sum())
    return (1 + as_far) / (1 + len(draws))
