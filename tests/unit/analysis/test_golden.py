"""Verdicts on made studies whose truth is known: statsmodels' decisions, and how often one is false."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from zo.analysis.intervals import difference_interval, mean_interval
from zo.analysis.stats import ENDS
from zo.analysis.verdicts import judge_methods

METHODS, SCOPES = ("ZO", "Calibrate", "Instruct"), ("full", "reduced")
SEEDS, NOISE = 3, 0.1


def draw_study(rng, truth: float) -> dict[tuple[str, str], tuple[pd.Series, pd.Series]]:
    """Losses of every method, `truth` nats above FO's, and FO's, by (scope, mode).

    Runs of a seed share its level, and the methods of a scope share FO's own noise, as in real studies.
    """
    found = {}
    for scope in SCOPES:
        level = rng.normal(4, 1, SEEDS)
        fo = pd.Series(level + rng.normal(0, NOISE, SEEDS))
        for mode in METHODS:
            found[scope, mode] = pd.Series(level + truth + rng.normal(0, NOISE, SEEDS)), fo
    return found


def judge(study) -> list[str]:
    """The verdicts of the analysis."""
    rows = [
        {"scope": scope, "mode": mode}
        | dict(zip((f"minus_FO{end}" for end in ENDS), difference_interval(own, fo), strict=True))
        for (scope, mode), (own, fo) in study.items()
    ]
    runs = pd.DataFrame({"scope": SCOPES, "mode": "FO", "status": "done"})
    return judge_methods(pd.DataFrame(rows), [], runs)["verdict"].tolist()


def decide(study) -> list[str]:
    """Statsmodels' decisions on the same losses: paired t tests, Bonferroni over all of them."""
    tests = [DescrStatsW(own - fo).ttest_mean(0) for own, fo in study.values()]
    rejected, *_ = multipletests([p for _, p, _ in tests], alpha=0.05, method="bonferroni")
    ahead = ["FO" if t > 0 else mode for (t, _, _), (_, mode) in zip(tests, study, strict=True)]
    return [f"{who} ahead" if no else "undecided" for who, no in zip(ahead, rejected, strict=True)]


@pytest.mark.parametrize("n", [2, 3, 12])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_an_interval_of_a_mean_is_statsmodels_and_scipys(n, level):
    values = np.random.default_rng(n).normal(4, 1, n)
    found = mean_interval(values, level)
    assert found[:3] == pytest.approx((values.mean(), *DescrStatsW(values).tconfint_mean(1 - level)))
    wanted = scipy.stats.ttest_1samp(values, 0).confidence_interval(level)
    assert found[1:3] == pytest.approx((wanted.low, wanted.high))


def test_every_verdict_is_statsmodels_decision_undecided_ones_too():
    rng = np.random.default_rng(5)
    verdicts = []
    for truth in np.repeat([-1.5, -0.4, 0.0, 0.4, 1.5], 20):
        study = draw_study(rng, truth)
        assert judge(study) == decide(study)
        verdicts += judge(study)
    assert min(verdicts.count(kind) for kind in ("FO ahead", "ZO ahead", "undecided")) > 10


def test_studies_without_a_difference_claim_one_in_at_most_5_percent():
    rng, n = np.random.default_rng(6), 400
    claimed = np.mean([set(judge(draw_study(rng, 0.0))) != {"undecided"} for _ in range(n)])
    assert claimed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)


def test_a_large_difference_is_seen_in_each_direction():
    rng = np.random.default_rng(7)
    for truth in (6.0, -6.0):
        wanted = ["FO ahead" if truth > 0 else f"{mode} ahead" for _ in SCOPES for mode in METHODS]
        assert judge(draw_study(rng, truth)) == wanted
