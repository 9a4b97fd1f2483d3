"""Statistics against numbers worked out by hand or taken from the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tasks.measures import statistics
from tasks.measures.bootstrap import Method
from tasks.measures.statistics import Comparison, average, compare, holm, mcnemar, wilson

METHOD = Method(confidence=0.95, n_bootstrap=2000, seed=0)


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263, score method.
    found = wilson(81, 263)
    assert found.low == pytest.approx(0.2553, abs=5e-5)
    assert found.high == pytest.approx(0.3662, abs=5e-5)
    assert wilson(0, 0).value is None


def test_mcnemar_is_the_binomial_test_of_the_items_that_changed() -> None:
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_zero_one_scores_are_compared_by_mcnemar_and_agresti_min() -> None:
    before = np.array([1.0] * 60 + [0.0] * 40)
    after = np.array([1.0] * 51 + [0.0] * 9 + [1.0] * 3 + [0.0] * 37)
    found = compare(before, after, clusters=None, method=METHOD)
    assert (found.n_gained, found.n_lost, found.test) == (3, 9, "McNemar exact")
    assert found.delta == pytest.approx(-0.06)
    assert found.p_value == pytest.approx(stats.binomtest(3, 12, 0.5).pvalue)
    error = math.sqrt(3.5 + 9.5 - 36 / 102) / 102
    assert found.low == pytest.approx(-6 / 102 - 1.959964 * error)
    assert found.high == pytest.approx(-6 / 102 + 1.959964 * error)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * error)


def test_no_changed_item_still_has_an_interval_and_a_smallest_detectable_drop() -> None:
    same = np.array([1.0, 0.0] * 50)
    found = compare(same, same, clusters=None, method=METHOD)
    assert found.delta == 0
    assert found.p_value == 1
    assert found.low is not None
    assert found.low < 0 < (found.high or 0)
    assert (found.detectable or 0) > 0


def test_items_without_a_score_are_left_out_in_pairs_and_counted() -> None:
    before = np.array([1.0, math.nan, 0.0, 1.0])
    after = np.array([1.0, 1.0, math.nan, 0.0])
    found = compare(before, after, clusters=None, method=METHOD)
    assert (found.n_pairs, found.n_missing, found.before, found.after) == (2, 2, 1.0, 0.5)
    nothing = compare(np.array([math.nan]), np.array([1.0]), clusters=None, method=METHOD)
    assert nothing.delta is None
    assert nothing.p_value is None
    assert nothing.n_missing == 1
    assert statistics.mean(np.array([math.nan, 1.0]), clusters=None, method=METHOD).n_missing == 1


def test_the_bootstrap_agrees_with_the_t_test_on_well_behaved_scores() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(size=400)
    after = before + rng.normal(0.02, 0.2, size=400)
    found = compare(before, after, clusters=None, method=Method(0.95, 10_000, 0))
    differences = after - before
    error = differences.std(ddof=1) / 20
    assert found.test == "paired bootstrap"
    assert found.standard_error == pytest.approx(error)
    assert found.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert found.p_value == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)


def test_the_seed_decides_the_bootstrap() -> None:
    before, after = np.linspace(0, 1, 50), np.linspace(0, 1, 50) ** 2
    first, again, other = (
        compare(before, after, clusters=None, method=Method(0.95, 500, seed)) for seed in (7, 7, 8)
    )  # fmt: skip
    assert first == again
    assert first.low != other.low


def test_clustered_items_have_the_standard_error_of_their_clusters() -> None:
    """Four copies of each item must not look like four times the evidence."""
    rng = np.random.default_rng(2)
    before, after = rng.uniform(size=100), rng.uniform(size=100)
    once = compare(before, after, clusters=None, method=METHOD)
    names = [f"c{i}" for i in range(100) for _ in range(4)]
    repeated = compare(np.repeat(before, 4), np.repeat(after, 4), clusters=names, method=METHOD)
    assert repeated.test == "clustered bootstrap"
    assert repeated.n_clusters == 100
    assert repeated.standard_error == pytest.approx(once.standard_error)
    assert repeated.low == pytest.approx(once.low or 0, abs=1e-9)


def test_clusters_of_one_leave_zero_one_scores_to_mcnemar() -> None:
    before, after = np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0])
    assert compare(before, after, clusters=["a", None, None], method=METHOD).test == "McNemar exact"
    assert compare(before, after, clusters=["a", "a", None], method=METHOD).test == "clustered bootstrap"


def _shifted(n: int, by: float, names: list[str | None] | None) -> Comparison:
    before = np.linspace(0.1, 0.7, n)
    return compare(before, before + by, clusters=names, method=METHOD)


@pytest.mark.parametrize(
    ("n", "names"), [(30, ["a"] * 30), (1, None), (30, ["a"] * 10 + ["b"] * 10 + ["c"] * 10), (30, None)]
)
def test_items_that_cannot_tell_chance_have_no_interval_and_are_in_no_average(n: int, names: Any) -> None:
    """One cluster, or all clusters changed by the same: no spread was seen, and that is not a spread of 0."""
    found = _shifted(n, 0.1, names)
    assert found.delta == pytest.approx(0.1)
    assert (found.low, found.high, found.standard_error, found.p_value, found.detectable) == (None,) * 5
    assert average({"x": found}, method=METHOD) is None
    mixed = average({"x": found, "y": _change(0.5, 0.55, 0.04)}, method=METHOD)
    assert mixed is not None
    assert (mixed.benchmarks, mixed.missing) == (["y"], ["x"])


def test_items_that_did_not_change_in_several_clusters_still_count_as_no_change() -> None:
    found = _shifted(30, 0.0, ["a"] * 10 + ["b"] * 20)
    assert (found.delta, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    mean = average({"x": found}, method=METHOD)
    assert mean is not None
    assert mean.p_value == 1


def test_a_mean_over_one_cluster_has_no_interval() -> None:
    found = statistics.mean(np.array([0.0, 1.0, 1.0]), clusters=["a"] * 3, method=METHOD)
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(2 / 3), None, None, 3)
    several = statistics.mean(np.array([0.0, 1.0, 1.0]), clusters=["a", "a", None], method=METHOD)
    assert several.low is not None


def test_holm_steps_down_and_never_reverses_the_order() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


def _change(before: float, after: float, error: float) -> Comparison:
    delta = after - before
    return Comparison(before, after, delta, delta, delta, error, 0.5, None, 10, 0, 10, 1, 1, "McNemar exact")


def test_the_average_gives_every_benchmark_the_same_weight_in_points_and_relative() -> None:
    nothing = compare(np.array([math.nan]), np.array([1.0]), clusters=None, method=METHOD)
    found = average({"x": _change(0.8, 0.6, 0.03), "y": _change(0.5, 0.55, 0.04), "z": nothing}, method=METHOD)
    assert found is not None
    assert found.delta == pytest.approx(-0.075)
    assert found.relative == pytest.approx((-0.25 + 0.1) / 2)
    assert found.standard_error == pytest.approx(0.025)
    assert found.low == pytest.approx(-0.075 - 1.959964 * 0.025)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(3))
    assert (found.worst, found.benchmarks, found.missing) == ("x", ["x", "y"], ["z"])
    assert average({"z": nothing}, method=METHOD) is None
