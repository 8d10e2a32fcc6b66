"""Comparisons of arms: an effect, its interval at any confidence, and the region that a claim wants it in."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from zo.analysis.alike import tell_apart
from zo.analysis.claims.arms import Arm, Budget, Choice, Evidence
from zo.analysis.intervals import Interval, difference_interval, mean_interval

Region = tuple[float, float] | None
ABOVE_0, BELOW_0 = (0.0, np.inf), (-np.inf, 0.0)
GAIN = "of FO's gain"


class Comparison(NamedTuple):
    """One effect. `measure`: its interval at a confidence; `region`: where the claim wants it, None: shown.

    `doubts`: what takes a verdict away. `stands_for`: of so many intervals this one is the worst; 0: another
    row has it already.
    """

    quantity: str
    unit: str
    measure: Callable[[float], Interval]
    compared: str
    region: Region = None
    doubts: tuple[str, ...] = ()
    stands_for: int = 1


def oppose(evidence: Evidence, left: Arm, right: Arm, kind: str, region: Region = None) -> Comparison:
    """Compare two arms at the largest budget of `kind` that both reach, each at its best for it."""
    budget = evidence.share_budget(kind, left, right)
    chosen = [evidence.choose(arm, budget) for arm in (left, right)]
    first, second = (arm.mode if arm.q is None else f"q={arm.q}" for arm in (left, right))
    return subtract(*chosen, f"{first} minus {second} at equal {kind}", budget, region)


def subtract(left: Choice, right: Choice, quantity: str, budget: Budget, region: Region = None) -> Comparison:
    """Compare two choices' losses, paired by seed."""
    measure = partial(difference_interval, left.losses, right.losses)
    said = f"{left.told} against {right.told}, at {budget}"
    doubts = left.doubts + right.doubts + doubt_settings(left, right)
    return Comparison(quantity, "nats", measure, said, region, doubts)


def doubt_settings(*choices: Choice) -> tuple[str, ...]:
    """Doubt a comparison of arms that differ in what is no method's own."""
    apart = tell_apart({choice.cell.name: choice.settings for choice in choices})
    return (f"more than the method differs: {', '.join(apart.values())}",) * bool(apart)


class Contest(NamedTuple):
    """ZO between a floor and FO in one way of training, at a budget."""

    way: str
    floor: Choice
    zo: Choice
    fo: Choice
    budget: Budget

    @property
    def shares(self) -> pd.Series:
        """(floor - ZO) / (floor - FO) by seed: the part of FO's gain that ZO reaches; no gain has none."""
        shares = (self.floor.losses - self.zo.losses) / (self.floor.losses - self.fo.losses)
        return shares[np.isfinite(shares)]

    @property
    def arms(self) -> tuple[Choice, Choice, Choice]:
        """All three."""
        return self.floor, self.zo, self.fo

    @property
    def told(self) -> str:
        """What was chosen."""
        return f"{self.zo.told} between {self.floor.told} and {self.fo.told}"

    @property
    def doubts(self) -> tuple[str, ...]:
        """Those of the choices, and that a gain of nothing has no shares."""
        empty = not (self.floor.losses - self.fo.losses > 0).all()
        said = (f"{self.way}: FO gains nothing in some seed, so there is nothing to share",) * empty
        return tuple(doubt for arm in self.arms for doubt in arm.doubts) + said


def hold_contest(evidence: Evidence, way: str, budget: Budget, *arms: Arm) -> Contest:
    """Choose floor, ZO and FO at a budget."""
    return Contest(way, *(evidence.choose(arm, budget) for arm in arms), budget)


def subtract_shares(left: Contest, right: Contest, doubts: tuple[str, ...] = ()) -> Comparison:
    """Compare ZO's shares of FO's gain in two ways of training, paired by seed; wanted above 0."""
    measure = partial(difference_interval, left.shares, right.shares)
    quantity, said = f"ZO's share of FO's gain, {left.way} minus {right.way}", f"{left.told}; {right.told}"
    doubts = left.doubts + right.doubts + doubt_settings(*left.arms, *right.arms) + doubts
    return Comparison(quantity, GAIN, measure, f"{said}; at {left.budget}", ABOVE_0, doubts)


def show_share(contest: Contest) -> Comparison:
    """Show ZO's share of FO's gain in one way of training."""
    said = f"{contest.told}, at {contest.budget}"
    return Comparison(
        f"ZO's share of FO's gain, {contest.way}", GAIN, partial(mean_interval, contest.shares), said
    )
