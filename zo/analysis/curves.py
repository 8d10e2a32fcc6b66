"""What whole curves say: the cost of reaching a loss, and methods compared at equal budgets.

Curves are read between their logged points by straight lines and never continued past their ends.
"""

import numpy as np
import pandas as pd

from zo.analysis.stats import (
    CONTROLS,
    difference_interval,
    lead_cells,
    list_context,
    pick_score,
    select_runs,
)
from zo.analysis.table import Logs

BUDGETS = {
    "steps": "step",
    "tokens": "tokens",
    "forward-pass equivalents": "equivalents",
    "seconds": "seconds",
}


def read_curve(frame: pd.DataFrame, score: str, backward_cost: float = 2.0) -> pd.DataFrame:
    """Return a run's measured points: step, tokens, forward_passes, equivalents, seconds, loss (nats).

    `equivalents` = forward passes + `backward_cost` x backward passes (2 is the usual count of FLOPs).
    """
    name = "val_loss" if score == "final_val_loss" else "loss"
    curve = frame[["step", "tokens", "forward_passes", "seconds"]].copy()
    curve["equivalents"] = frame["forward_passes"] + backward_cost * frame["backward_passes"].fillna(0)
    curve["loss"] = frame[name]
    return curve[np.isfinite(curve["loss"])].reset_index(drop=True)


def cross(cost: np.ndarray, loss: np.ndarray, target: float) -> float:
    """Return the cost at which `loss` first reaches `target`, by straight lines between points, or NaN."""
    below = np.flatnonzero(loss <= target)
    if not len(below):
        return np.nan
    i = below[0]
    if i == 0:
        return float(cost[0])
    part = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
    return float(cost[i - 1] + part * (cost[i] - cost[i - 1]))


def choose_targets(cells: pd.DataFrame, start: float) -> list[float]:
    """Choose loss targets (nats): 50 % and 90 % of the way from `start` to the best ZO loss and to the best.

    Of two closer than a twentieth of the whole way only the first is kept.
    """
    trained = cells[~cells["mode"].isin(CONTROLS)]
    ends = [trained.loc[trained["mode"] == "ZO", "loss"].min(), trained["loss"].min()]
    targets = []
    for end in [end for end in ends if end < start]:
        for target in (start - 0.5 * (start - end), start - 0.9 * (start - end)):
            if all(abs(target - other) > (start - ends[1]) / 20 for other in targets):
                targets.append(round(target, 2))
    return sorted(targets, reverse=True)


def measure_convergence(
    logs: Logs, runs: pd.DataFrame, targets=None, backward_cost: float = 2.0
) -> pd.DataFrame:
    """Measure steps, passes and seconds to each loss target, for every method and q at its best cell.

    `targets` None: chosen for each context by `choose_targets`. A mean is given only where every seed
    reached the target (`reached` of `n`), for the mean of those that did would flatter the method.
    """
    cells, score = lead_cells(runs, ("mode", "q")), pick_score(runs)
    rows = []
    for _, context in cells.groupby(list_context(runs), dropna=False, sort=False):
        chosen = [
            (cell, _read_curves(logs, select_runs(runs, cell), score, backward_cost))
            for _, cell in context.iterrows()
        ]
        starts = [curve["loss"].iloc[0] for _, curves in chosen for curve in curves.values()]
        for target in targets or choose_targets(context, max(starts)):
            rows += [_reach(cell, curves, target) for cell, curves in chosen if cell["mode"] != "Frozen"]
    return pd.DataFrame(rows)


def _read_curves(logs: Logs, runs: pd.DataFrame, score: str, backward_cost: float) -> dict:
    curves = {row.run: read_curve(logs.frames[row.run], score, backward_cost) for row in runs.itertuples()}
    return {run: curve for run, curve in curves.items() if len(curve)}


def _reach(cell: pd.Series, curves: dict, target: float) -> dict:
    row = cell.drop(["loss", "low", "high", "tried", "diverged", "edge", "warning"]).to_dict()
    names = ["step", "forward_passes", "equivalents", "seconds"]
    costs = [
        [cross(c[name].to_numpy(), c["loss"].to_numpy(), target) for name in names] for c in curves.values()
    ]
    reached = sum(curve["loss"].le(target).any() for curve in curves.values())
    mean = np.mean(costs, axis=0) if reached == len(curves) and reached else np.full(4, np.nan)
    return row | {"target": target, "reached": reached} | dict(zip(names, mean, strict=True))


def compare_equal_budgets(logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0) -> pd.DataFrame:
    """Compare every method and q with FO at the largest budget that both reached, for each kind of budget.

    One row a (context, method, q, kind): `budget`, `loss`, `FO_loss` and `difference` (positive: FO is
    ahead) with `low`, `high`, `n`. Empty where the curves share no range. Both keep the learning rate that
    was best at the end of their runs, so an arm cut short by the budget was not tuned for it.
    """
    cells, score = lead_cells(runs, ("mode", "q")), pick_score(runs)
    rows = []
    for _, context in cells.groupby(list_context(runs), dropna=False, sort=False):
        picked = [
            (cell, select_runs(runs, cell)) for _, cell in context.iterrows() if cell["mode"] != "Frozen"
        ]
        arms = [(cell, mine, _read_curves(logs, mine, score, backward_cost)) for cell, mine in picked]
        for fo in [arm for arm in arms if arm[0]["mode"] == "FO"]:
            for arm in [arm for arm in arms if arm[0]["mode"] != "FO"]:
                rows += [_meet(arm, fo, kind) for kind in BUDGETS]
    return pd.DataFrame(rows)


def _meet(arm: tuple, fo: tuple, kind: str) -> dict:
    """Compare two arms (cell, runs, curves) at the end of the range that all their curves share."""
    curves = [curve.dropna(subset=BUDGETS[kind]) for _, _, found in (arm, fo) for curve in found.values()]
    xs = [curve[BUDGETS[kind]] for curve in curves]
    start, end = max((x.min() for x in xs), default=np.nan), min((x.max() for x in xs), default=np.nan)
    row = arm[0].drop(["n", "loss", "low", "high", "tried", "diverged", "edge", "warning"]).to_dict()
    row |= {"FO_lr": fo[0]["lr"], "kind": kind}
    if not start < end:
        return (
            row | dict.fromkeys(["budget", "loss", "FO_loss", "difference", "low", "high"], np.nan) | {"n": 0}
        )
    mine, theirs = (_read_at(found, mine, BUDGETS[kind], end) for _, mine, found in (arm, fo))
    gap = difference_interval(mine, theirs)
    row |= {"budget": end, "loss": mine.mean(), "FO_loss": theirs.mean()}
    return row | {"difference": gap.mean, "low": gap.low, "high": gap.high, "n": gap.n}


def _read_at(curves: dict, runs: pd.DataFrame, cost: str, budget: float) -> pd.Series:
    """Read each run's loss at `budget`, indexed by seed; `budget` lies within every curve."""
    seeds = runs.set_index("run")["seed"]
    values = [np.interp(budget, curve[cost], curve["loss"]) for curve in curves.values()]
    return pd.Series(values, index=[seeds[run] for run in curves], dtype=float)
