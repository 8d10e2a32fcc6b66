"""Intervals over seeds: of a mean, a paired difference, a paired ratio; for one comparison or for several."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import bootstrap

BOOTSTRAP_FROM = 10
"""Seeds from which a skewed quantity is bootstrapped: BCa from fewer covers less than it says."""


class Interval(NamedTuple):
    """A mean over n seeds and its interval; the ends are NaN where n < 2 or a value is infinite."""

    mean: float
    low: float
    high: float
    n: int


NOTHING = Interval(np.nan, np.nan, np.nan, 0)


def mean_interval(values, confidence: float = 0.95) -> Interval:
    """Return mean and two-sided Student t interval of `values`; a NaN among them raises ValueError."""
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any():
        raise ValueError("a NaN among the values: leave out what was not measured before averaging")
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan, n)
    half = find_quantile(n, confidence) * values.std(ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def rms_interval(values, confidence: float = 0.95) -> Interval:
    """Return root mean square and its interval: the roots of those of the mean square."""
    *found, n = mean_interval(np.square(np.asarray(values, dtype=float)), confidence)
    return Interval(*map(float, np.sqrt(np.clip(found, 0, None))), n)


def find_quantile(n: int, confidence: float) -> float:
    """Return Student's t quantile of a two-sided interval of a mean of n values."""
    return float(stdtrit(n - 1, 0.5 + confidence / 2))


def widen(interval: Interval, comparisons: int, confidence: float = 0.95) -> Interval:
    """Widen a t interval of level `confidence` so that `comparisons` such intervals hold all at once.

    Bonferroni: each at level 1 - (1 - confidence) / comparisons. It needs no independence, and unlike Holm's
    steps it gives an interval for each comparison.
    """
    if interval.n < 2:
        return interval
    each = 1 - (1 - confidence) / max(1, comparisons)
    factor = find_quantile(interval.n, each) / find_quantile(interval.n, confidence)
    mean = interval.mean
    return Interval(
        mean, mean - factor * (mean - interval.low), mean + factor * (interval.high - mean), interval.n
    )


def difference_interval(left: pd.Series, right: pd.Series, confidence: float = 0.95) -> Interval:
    """Return the interval of left - right, both indexed by seed, over the seeds that both have.

    Pairing by seed is right here because runs of one seed share their initial weights and their batches.
    Where no seed is shared the means' difference comes back with n = 0. Where both lost infinitely in a seed
    there is no difference, and all is NaN but n.
    """
    shared = pair_seeds(left, right)
    if not len(shared):
        return NOTHING._replace(mean=left.mean() - right.mean())
    if (np.isinf(left[shared]) & np.isinf(right[shared])).any():
        return NOTHING._replace(n=len(shared))
    return mean_interval(left[shared] - right[shared], confidence)


def ratio_interval(left: pd.Series, right: pd.Series, confidence: float = 0.95) -> Interval:
    """Return the interval of left / right, positive costs indexed by seed: geometric mean over shared seeds.

    Costs are skewed, so on logarithms: Student t for few seeds, from `BOOTSTRAP_FROM` on the BCa bootstrap
    (Efron 1987; scipy's, with a fixed generator), which asks for no shape. All NaN where a cost is missing or
    is 0.
    """
    shared = pair_seeds(left, right)
    costs = np.array([left[shared], right[shared]], dtype=float)
    if not len(shared) or not (np.isfinite(costs) & (costs > 0)).all():
        return NOTHING
    logs = np.log(costs[0] / costs[1])
    found = mean_interval(logs, confidence)
    if len(logs) >= BOOTSTRAP_FROM and np.ptp(logs) > 0:
        ends = bootstrap((logs,), np.mean, confidence_level=confidence, rng=np.random.default_rng(0))
        found = found._replace(low=ends.confidence_interval.low, high=ends.confidence_interval.high)
    return Interval(*map(float, np.exp(found[:3])), found.n)


def pair_seeds(left: pd.Series, right: pd.Series) -> pd.Index:
    """Return the seeds that both have; none where a seed is unknown or stands twice."""
    shared = left.index.intersection(right.index)
    known = not shared.hasnans and left.index.is_unique and right.index.is_unique
    return shared if known else shared[:0]
