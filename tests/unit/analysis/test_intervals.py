"""Intervals against scipy, and against made data whose truth is known: how often they cover it."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from zo.analysis import intervals
from zo.analysis.intervals import Interval, difference_interval, ratio_interval, widen


def draw_pairs(n: int, difference: float, noise: float, draws: int, seed: int = 0):
    """Yield pairs of losses by seed: each seed's own level is shared, as in runs of the same batches."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        level = rng.normal(4, 1, n)
        left, right = (level + rng.normal(0, noise, n) for _ in range(2))
        yield pd.Series(left + difference), pd.Series(right)


def test_a_paired_difference_is_scipys_paired_t_test():
    [(left, right)] = draw_pairs(5, 0.3, 0.1, 1)
    gap = difference_interval(left, right)
    wanted = scipy.stats.ttest_rel(left, right).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((wanted.low, wanted.high))


def test_pairing_is_what_makes_a_small_difference_visible():
    [(left, right)] = draw_pairs(5, 0.3, 0.02, 1)
    paired = difference_interval(left, right)
    unpaired = scipy.stats.ttest_ind(left, right).confidence_interval(0.95)
    assert paired.low > 0 > unpaired.low


def test_for_several_comparisons_an_interval_is_scipys_at_bonferronis_level():
    [(left, right)] = draw_pairs(4, 0.3, 0.1, 1)
    wide = widen(difference_interval(left, right), 6)
    wanted = scipy.stats.ttest_rel(left, right).confidence_interval(1 - 0.05 / 6)
    assert (wide.low, wide.high) == pytest.approx((wanted.low, wanted.high))
    assert widen(difference_interval(left, right), 1) == pytest.approx(difference_interval(left, right))
    alone = Interval(1.0, np.nan, np.nan, 1)
    assert widen(alone, 6) is alone


def test_95_percent_intervals_of_three_seeds_cover_the_truth_95_times_in_100():
    gaps = [difference_interval(*pair) for pair in draw_pairs(3, 0.3, 0.1, 4000)]
    covered = np.mean([gap.low <= 0.3 <= gap.high for gap in gaps])
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 4000))


def test_widened_intervals_are_all_right_at_once_95_times_in_100():
    pairs = list(draw_pairs(3, 0.0, 0.1, 6000, seed=1))
    wrong = [not gap.low <= 0 <= gap.high for gap in (widen(difference_interval(*p), 6) for p in pairs)]
    any_wrong = np.reshape(wrong, (1000, 6)).any(axis=1).mean()
    assert any_wrong < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    narrow = [not gap.low <= 0 <= gap.high for gap in (difference_interval(*p) for p in pairs)]
    assert np.reshape(narrow, (1000, 6)).any(axis=1).mean() > 0.2  # what is avoided


def test_an_infinite_loss_has_no_interval_and_two_no_difference():
    finite, lost = pd.Series({0: 4.0, 1: 3.0}), pd.Series({0: np.inf, 1: 3.5})
    assert difference_interval(lost, finite)[::3] == (np.inf, 2)
    both = difference_interval(lost, lost)
    assert both.n == 2
    assert np.isnan(both[:3]).all()


def test_a_ratio_of_costs_is_a_t_interval_of_logarithms_for_few_seeds():
    left, right = pd.Series([30.0, 45.0, 28.0]), pd.Series([10.0, 12.0, 11.0])
    ratio = ratio_interval(left, right)
    wanted = scipy.stats.ttest_rel(np.log(left), np.log(right)).confidence_interval(0.95)
    assert (ratio.low, ratio.high) == pytest.approx((np.exp(wanted.low), np.exp(wanted.high)))
    assert ratio.mean == pytest.approx(scipy.stats.gmean(left / right))
    assert (ratio.n, ratio_interval(right, left).mean) == (3, pytest.approx(1 / ratio.mean))


def test_a_ratio_of_costs_is_scipys_bca_bootstrap_for_many_seeds():
    rng = np.random.default_rng(3)
    left, right = pd.Series(rng.lognormal(3, 1, 20)), pd.Series(rng.lognormal(1, 0.2, 20))
    wanted = scipy.stats.bootstrap(
        (np.log(left / right),), np.mean, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    ratio = ratio_interval(left, right)
    assert (ratio.low, ratio.high) == pytest.approx((np.exp(wanted.low), np.exp(wanted.high)))
    assert ratio == ratio_interval(left, right)  # the same logs give the same bytes


def test_bootstrapped_ratios_cover_the_truth_of_skewed_costs():
    rng = np.random.default_rng(4)
    n = intervals.BOOTSTRAP_FROM
    costs = rng.gamma(2.0, 1.0, (300, 2, n))
    found = [ratio_interval(pd.Series(5 * left), pd.Series(right)) for left, right in costs]
    assert np.mean([ratio.low <= 5 <= ratio.high for ratio in found]) > 0.87


def test_a_ratio_without_a_cost_or_without_a_shared_seed_is_nothing():
    costs = pd.Series([3.0, np.nan])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ratio_interval(costs, pd.Series([1.0, 0.0])).n == 0  # a mode that makes no passes
        assert ratio_interval(pd.Series([0.0]), pd.Series([0.0])).n == 0
    assert ratio_interval(costs, pd.Series([1.0, 1.0])).n == 0
    assert np.isnan(ratio_interval(costs.iloc[:1], pd.Series([1.0], [7])).mean)
    equal = ratio_interval(pd.Series([2.0] * 12), pd.Series([1.0] * 12))
    assert equal == pytest.approx((2, 2, 2, 12))  # no spread: nothing to bootstrap
