"""How far each arm has drifted from the base on the task's prompts: forward KL a token, with its interval.

Drift is the divergence of whole answers, divided by their mean length. The mean of every answer's own divergence a
token would be another number: it weighs short answers as much as long ones, so an arm that only answers more briefly
could get a drift below 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.measures import statistics
from tasks.measures.bootstrap import Method
from tasks.measures.statistics import Estimate
from tasks.tables.schema import DRIFT, read_table


@dataclass(frozen=True)
class Drift:
    """Drift of one arm.

    Attributes:
        per_token: Forward KL from base to arm, nats a token. Both models scored `per_token.n` answers of the base.
        mean_tokens: Mean tokens of those answers, each with its end; None where there are none.
        unscored: The number of prompts without a score, by the kind of their problem.
    """

    per_token: Estimate
    mean_tokens: float | None
    unscored: dict[str, int]


def drift_of(scores: Path, method: Method) -> Drift | None:
    """The drift in a scores artifact; None where it was not measured."""
    path = scores / "drift.parquet"
    if not path.exists():
        return None
    table = read_table(path, DRIFT)
    if not table.num_rows:
        return None
    problems = (problem.partition(":")[0] for problem in table.column("problem").to_pylist() if problem)
    unscored = dict(sorted(Counter(problems).items()))
    before, after, n_tokens = (
        table.column(name).to_numpy().astype(np.float64) for name in ("base_nll", "nll", "n_tokens")
    )
    scored = ~np.isnan(after)
    if not scored.any():
        return Drift(Estimate(None, None, None, 0, len(scored)), None, unscored)
    weights = n_tokens / n_tokens[scored].mean()
    ratio = float(((after - before) * weights)[scored].mean())
    # The linearised ratio: the mean of these rows is the ratio of sums (divergence over tokens), and bootstrapping them
    # gives the ratio's spread, because a resampled row changes the numerator and the denominator together.
    rows = ratio + (after - before - ratio) * weights
    clusters = table.column("cluster").to_pylist()
    change = statistics.compare(before, before + rows, clusters=clusters, method=method)
    estimate = Estimate(ratio, change.low, change.high, change.n_pairs, change.n_missing)
    return Drift(estimate, float(n_tokens[scored].mean()), unscored)
