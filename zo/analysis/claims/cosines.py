"""C2, on the probes: the cosine of the estimate with the exact gradient against its law in d and q."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from zo.analysis.claims.arms import Evidence, Lacking
from zo.analysis.claims.compare import BELOW_0, Comparison
from zo.analysis.intervals import Interval, rms_interval
from zo.analysis.probes import check_epsilon

COSINE_TOLERANCE = 0.10
"""C2: how far the RMS cosine may be from its law, as a part of it."""


def compare_cosines(evidence: Evidence) -> Iterator[Comparison]:
    """C2: the RMS cosine over its law lies within 1 +- COSINE_TOLERANCE, and it falls with d at fixed q.

    Over the estimates of all probed runs with Gaussian directions, which the law is for; by it a cosine does
    not depend on its batch's gradient. Of each scope the worst ratio stands for all, of the falls the least
    one, chosen by the widened intervals.
    """
    probes = evidence.probes
    families = probes["run"].map(lambda run: evidence.logs.specs[run].get("direction_family", "gaussian"))
    probes = probes[families == "gaussian"]
    rows = probes[probes["quantity"] == "cosine"]
    if rows.empty:
        raise Lacking("no probes of the cosines of Gaussian directions")
    doubts = tuple(f"{bad.where}: {bad.message}" for bad in check_epsilon(probes, evidence.logs))
    ratios = {key: _compare_law(key, own, doubts) for key, own in rows.groupby(["scope", "d", "at", "q"])}
    falls = [
        _compare_places(below, above)
        for _, own in rows.groupby(["at", "q"])
        for below, above in pairwise(group for _, group in own.groupby("d"))
    ]
    confidence = 1 - 0.05 / (len(ratios) + len(falls))
    for scope in dict.fromkeys(scope for scope, *_ in ratios):
        mine = [ratio for key, ratio in ratios.items() if key[0] == scope]
        worst = max(mine, key=lambda ratio: _badness(ratio.measure(confidence)))
        yield worst._replace(stands_for=len(mine))
    if not falls:
        raise Lacking("no second scope probed: nothing shows how the cosine changes with d")
    yield max(falls, key=lambda fall: fall.measure(confidence).high)._replace(stands_for=len(falls))


def _compare_law(key: tuple, rows: pd.DataFrame, doubts: tuple[str, ...]) -> Comparison:
    """Compare the RMS cosine of one (scope, d, at, q) with its law."""
    scope, d, at, q = key
    measure = partial(rms_interval, rows["value"] / rows["law"])
    said = f"{scope}, d = {d:.0f}, q = {q:.0f}, at the runs' {at}"
    region = (1 - COSINE_TOLERANCE, 1 + COSINE_TOLERANCE)
    return Comparison(f"worst RMS cosine over its law, {scope}", "of the law", measure, said, region, doubts)


def _compare_places(below: pd.DataFrame, above: pd.DataFrame) -> Comparison:
    """Compare the mean squared cosines of two dimensions: Welch's interval of larger d minus smaller."""
    large, small = (rows["value"].to_numpy() ** 2 for rows in (above, below))

    def measure(confidence: float) -> Interval:
        mean, n = float(large.mean() - small.mean()), min(len(large), len(small))
        if n < 2:
            return Interval(mean, np.nan, np.nan, n)
        ends = ttest_ind(large, small, equal_var=False).confidence_interval(confidence)
        return Interval(mean, float(ends.low), float(ends.high), n)

    first, second = above.iloc[0], below.iloc[0]
    said = f"{first['scope']} (d = {first['d']:.0f}) minus {second['scope']} (d = {second['d']:.0f})"
    said += f", q = {first['q']:.0f}, at the runs' {first['at']}"
    return Comparison("least fall of the mean squared cosine with d", "cos^2", measure, said, BELOW_0)


def _badness(ratio: Interval) -> tuple[bool, float]:
    """Sort ratios: those wholly outside the tolerance last, then by how far an end lies from 1."""
    ends = np.array([ratio.low, ratio.high])
    if np.isnan(ends).any():
        return (True, np.inf)
    outside = ratio.low > 1 + COSINE_TOLERANCE or ratio.high < 1 - COSINE_TOLERANCE
    return (bool(outside), float(np.abs(ends - 1).max()))
