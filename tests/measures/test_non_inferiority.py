"""Whether a loss is ruled out: the one-sided bound keeps its promise on every kind of score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tasks.measures import non_inferiority
from tasks.measures.bootstrap import Method
from tasks.measures.non_inferiority import Bound, lower_bound, non_inferior

METHOD = Method(confidence=0.95, n_bootstrap=2000, seed=0)


def test_non_inferiority_asks_for_the_whole_interval_above_the_margin() -> None:
    assert non_inferior(-0.009, margin=0.01)
    assert not non_inferior(-0.011, margin=0.01)


def _bound(before: list[float], after: list[float], **more: object) -> Bound:
    options: dict[str, Any] = {"clusters": None, "margin": 0.02, "method": METHOD} | more
    return lower_bound(np.array(before, float), np.array(after, float), **options)


def test_tangos_bound_is_where_his_score_test_is_just_significant() -> None:
    # Against the score statistic written down another way: the nuisance share by search instead of by formula.
    n, gained, lost, z = 300, 6, 9, stats.norm.ppf(0.95)
    found = _bound([1.0] * lost + [0.0] * (n - lost), [0.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained))
    assert (found.test, found.n_gained, found.n_lost) == ("Tango score", gained, lost)
    assert found.low is not None
    low = found.low
    shares = np.linspace(max(0.0, -low) + 1e-9, 0.2, 400_001)
    likelihood = (
        gained * np.log(shares + low) + lost * np.log(shares) + (n - gained - lost) * np.log(1 - 2 * shares - low)
    )
    share = shares[int(np.argmax(likelihood))]
    variance = n * (2 * share + low - low**2)
    assert ((gained - lost) - n * low) / math.sqrt(variance) == pytest.approx(z, abs=1e-3)


@pytest.mark.parametrize("gained", [0.0, 0.005, 0.02, 0.1])
@pytest.mark.parametrize(("n", "margin"), [(200, 0.02), (500, 0.02), (1000, 0.01), (1000, 0.05)])
def test_a_true_loss_of_the_margin_is_ruled_out_in_at_most_one_draw_in_twenty(
    n: int, margin: float, gained: float
) -> None:
    # Exactly, by adding up every outcome that has a probability, and not by drawing some.
    most = int(n * (2 * gained + margin) + 8 * math.sqrt(n * (2 * gained + margin)) + 10)
    z, ruled_out = stats.norm.ppf(0.95), 0.0
    lost_share = gained + margin
    for n_gained in range(most + 1) if gained else [0]:
        weight = stats.binom.pmf(n_gained, n, gained)
        if weight < 1e-9:
            continue
        rest = n - n_gained
        # More lost items, a lower bound: the largest count that still passes is found by halving.
        passes, fails = -1, min(rest, most) + 1
        while fails - passes > 1:
            middle = (passes + fails) // 2
            if non_inferiority._tango(n_gained, middle, n, z) > -margin:
                passes = middle
            else:
                fails = middle
        ruled_out += weight * stats.binom.cdf(passes, rest, lost_share / (1 - gained))
    assert ruled_out <= 0.0515


@pytest.mark.parametrize(("size", "n", "clustered"), [(1.0, 400, True), (0.5, 300, False), (0.9, 600, False)])
def test_a_loss_of_graded_scores_is_ruled_out_in_at_most_one_draw_in_twenty(
    size: float, n: int, clustered: bool
) -> None:
    margin, n_draws = 0.02, 300
    names = [str(i // 4) for i in range(n)] if clustered else None
    rng, ruled_out = np.random.default_rng(0), 0
    for draw in range(n_draws):
        # In clusters, some are hit much harder than others.
        risk = margin / size * (rng.exponential(size=n // 4).repeat(4) if clustered else 1.0)
        before = np.full(n, 0.95 if size < 0.95 else 1.0)
        after = before - np.where(rng.random(n) < risk, size, 0.0)
        method = Method(0.95, 200, seed=draw)
        found = lower_bound(before, after, clusters=names, margin=margin, method=method)
        ruled_out += found.low is not None and non_inferior(found.low, margin=margin)
    assert ruled_out / n_draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / n_draws)


@pytest.mark.parametrize("score", [1.0, 0.5])
def test_items_that_did_not_change_rule_out_no_more_than_their_number_allows(score: float) -> None:
    found = _bound([score] * 500, [score] * 500, margin=0.01)
    assert found.low is not None
    assert -0.007 < found.low < -0.004
    assert found.at_best == pytest.approx(found.low, abs=1e-3)
    enough, too_few = (_bound([score] * n, [score] * n, margin=0.01) for n in (found.needed + 3, found.needed - 3))
    assert enough.low is not None
    assert too_few.low is not None
    assert enough.low > -0.01 > too_few.low


def test_few_clusters_say_nothing_about_a_bound() -> None:
    names = [str(i % 19) for i in range(190)]
    found = _bound([0.5] * 190, [0.6] * 190, clusters=names)
    assert (found.low, found.n_clusters, found.delta) == (None, 19, pytest.approx(0.1))


def test_a_bound_leaves_out_items_without_a_score_and_counts_them() -> None:
    nan = float("nan")
    found = _bound([1, 1, nan, 0], [1, nan, 1, 1])
    assert (found.n_pairs, found.n_missing, found.n_gained, found.n_lost) == (2, 2, 1, 0)
    assert _bound([nan], [1]).low is None
