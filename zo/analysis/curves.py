"""What whole curves say: the cost of reaching a loss, and methods compared at equal budgets.

Curves are read between their logged points by straight lines and never continued past their ends.
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from zo.analysis.intervals import NOTHING, difference_interval, ratio_interval
from zo.analysis.runs import Logs
from zo.analysis.stats import (
    CONTROLS,
    best_learning_rates,
    index_by_seed,
    lead_cells,
    list_context,
    match_rows,
    pick_score,
    select_runs,
)
from zo.methods import METHODS, uses_backprop

BUDGETS = {
    "steps": "step",
    "tokens": "tokens",
    "forward-pass equivalents": "equivalents",
    "seconds": "seconds",
}
MEMORY = "peak memory"
SLACK = 1.01
"""A method fits in another's memory within a percent: resident memory on a CPU is no exact count."""


def read_curve(frame: pd.DataFrame, score: str, backward_cost: float = 2.0) -> pd.DataFrame:
    """Return a run's measured points: step, tokens, forward_passes, equivalents, seconds, loss (nats)."""
    name = "val_loss" if score == "final_val_loss" else "loss"
    curve = frame[["step", "tokens", "forward_passes", "seconds"]].copy()
    curve["equivalents"] = count_equivalents(frame, backward_cost)
    curve["loss"] = frame[name]
    return curve[np.isfinite(curve["loss"])].reset_index(drop=True)


def count_equivalents(rows: pd.DataFrame, backward_cost: float) -> pd.Series:
    """Return forward passes + `backward_cost` x backward passes (2 is the usual count of FLOPs).

    Backward passes that were not logged are none of a method without backprop, and of another unknown.
    """
    none = rows["mode"].map(lambda mode: mode in METHODS and not uses_backprop(mode)).astype(bool)
    backward = rows["backward_passes"].astype(float)
    return rows["forward_passes"].astype(float) + backward_cost * backward.mask(none & backward.isna(), 0.0)


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

    They are rounded to a hundredth of the whole way; of two closer than a twentieth only the first is kept.
    """
    trained = cells[~cells["mode"].isin(CONTROLS)]
    ends = [trained.loc[trained["mode"] == "ZO", "loss"].min(), trained["loss"].min()]
    targets, span = [], start - ends[1]
    for end in [end for end in ends if end < start]:
        for part in (0.5, 0.9):
            target = round(start - part * (start - end), max(2, 2 - math.floor(math.log10(span))))
            if all(abs(target - other) > span / 20 for other in targets):
                targets.append(target)
    return sorted(targets, reverse=True)


def measure_convergence(
    logs: Logs, runs: pd.DataFrame, targets=None, backward_cost: float = 2.0
) -> pd.DataFrame:
    """Measure steps, passes and seconds to each loss target, for every method and q at its best cell.

    `targets` None: chosen for each context by `choose_targets`. A mean is given only where every seed
    reached the target (`reached` of `n`), for the mean of those that did would flatter the method.
    `times_FO` (with `_low`, `_high`): forward-pass equivalents over FO's, a ratio paired by seed.
    """
    cells, score = lead_cells(runs, ("mode", "q")), pick_score(runs)
    rows = []
    for _, context in cells.groupby(list_context(runs), dropna=False, sort=False):
        chosen = []
        for _, cell in context.iterrows():
            mine = select_runs(runs, cell)
            chosen.append((cell, read_curves(logs, mine, score, backward_cost), index_seeds(mine)))
        starts = [curve["loss"].iloc[0] for _, curves, _ in chosen for curve in curves.values()]
        for target in targets or choose_targets(context, max(starts)):
            fo = [_cross_all(curves, seeds, target) for cell, curves, seeds in chosen if cell["mode"] == "FO"]
            rows += [_reach(*arm, target, fo) for arm in chosen if arm[0]["mode"] != "Frozen"]
    return pd.DataFrame(rows)


def read_curves(logs: Logs, runs: pd.DataFrame, score: str, backward_cost: float = 2.0) -> dict:
    """Return the curves of those of `runs` that measured anything, by run."""
    curves = {row.run: read_curve(logs.frames[row.run], score, backward_cost) for row in runs.itertuples()}
    return {run: curve for run, curve in curves.items() if len(curve)}


def find_span(curves: Iterable[pd.DataFrame], cost: str) -> tuple[float, float]:
    """Find the range of a cost that all curves cover; NaN where one does not know it."""
    ends = np.array([[curve[cost].min(), curve[cost].max()] for curve in curves], dtype=float).reshape(-1, 2)
    return (float(ends[:, 0].max()), float(ends[:, 1].min())) if len(ends) else (np.nan, np.nan)


def average_curves(curves: dict) -> pd.DataFrame:
    """Average seeds' curves at the steps that all of them measured, in the order of steps."""
    points = pd.concat([*curves.values(), pd.DataFrame(columns=["step", "equivalents", "loss"], dtype=float)])
    steps = points.groupby("step")
    return steps.mean()[steps.size() == len(curves)].reset_index()


def index_seeds(runs: pd.DataFrame) -> pd.Series:
    """Return each run's seed, indexed by run."""
    return runs.set_index("run")["seed"]


def _cross_all(curves: dict, seeds: pd.Series, target: float) -> pd.DataFrame:
    """Return what `target` cost each seed: a row a seed, NaN where it was not reached."""
    names = ["step", "forward_passes", "equivalents", "seconds"]
    rows = [
        [cross(c[name].to_numpy(), c["loss"].to_numpy(), target) for name in names] for c in curves.values()
    ]
    return pd.DataFrame(rows, [seeds[run] for run in curves], names, dtype=float)


def _reach(cell: pd.Series, curves: dict, seeds: pd.Series, target: float, fo: list[pd.DataFrame]) -> dict:
    row = cell.drop(["loss", "low", "high", "tried", "diverged", "edge", "warning"]).to_dict()
    costs = _cross_all(curves, seeds, target)
    reached = int(costs["step"].notna().sum())
    mean = costs.mean(skipna=False) if len(costs) else costs.mean()
    ratio = NOTHING
    if fo and cell["mode"] != "FO":
        ratio = ratio_interval(costs["equivalents"], fo[0]["equivalents"])
    row |= {"target": target, "reached": reached} | mean.to_dict()
    return row | {"times_FO": ratio.mean, "times_FO_low": ratio.low, "times_FO_high": ratio.high}


def compare_equal_budgets(logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0) -> pd.DataFrame:
    """Compare every method and q with FO at the largest budget that both reached, for each kind of budget.

    One row a (context, method, q, kind): `budget`, `loss`, `FO_loss` and `difference` (positive: FO is
    ahead) with `low`, `high`, `n`. Empty where the curves share no range. Both keep the learning rate that
    was best at the end of their runs, so an arm cut short by the budget was not tuned for it. The last kind,
    peak memory (MiB), compares a method with the best FO cell that fits in that method's memory.
    """
    cells, score = lead_cells(runs, ("mode", "q")), pick_score(runs)
    baselines, rows = best_learning_rates(runs).query("mode == 'FO' and n > 0"), []
    for _, context in cells.groupby(list_context(runs), dropna=False, sort=False):
        picked = [
            (cell, select_runs(runs, cell)) for _, cell in context.iterrows() if cell["mode"] != "Frozen"
        ]
        arms = [(cell, mine, read_curves(logs, mine, score, backward_cost)) for cell, mine in picked]
        for fo in [arm for arm in arms if arm[0]["mode"] == "FO"]:
            for arm in [arm for arm in arms if arm[0]["mode"] != "FO"]:
                rows += [_meet(arm, fo, kind) for kind in BUDGETS]
                rows.append(_meet_in_memory(arm, fo, runs, baselines))
    return pd.DataFrame(rows)


def _meet(arm: tuple, fo: tuple, kind: str) -> dict:
    """Compare two arms (cell, runs, curves) at the end of the range that all their curves share."""
    start, end = find_span([*arm[2].values(), *fo[2].values()], BUDGETS[kind])
    nobody = pd.Series(dtype=float)
    if not start < end:
        return _lay_budget(arm, fo[0]["lr"], kind, np.nan, nobody, nobody)
    mine, theirs = (read_at(found, mine, BUDGETS[kind], end) for _, mine, found in (arm, fo))
    return _lay_budget(arm, fo[0]["lr"], kind, end, mine, theirs)


def _meet_in_memory(arm: tuple, fo: tuple, runs: pd.DataFrame, baselines: pd.DataFrame) -> dict:
    """Compare an arm's final losses with those of the best FO cell whose peak memory is no larger.

    The budget is unknown where a peak that would decide was not logged.
    """
    cell, mine, _ = arm
    keys, score, limit = list_context(runs), pick_score(runs), mine["peak_memory_mb"].mean()
    own = index_by_seed(mine, score)
    same = match_rows(baselines, cell, keys)
    for _, baseline in baselines[same].sort_values("loss", kind="stable").iterrows():
        theirs = select_runs(runs, baseline)
        peak = theirs["peak_memory_mb"].mean()
        if peak <= SLACK * limit:
            return _lay_budget(arm, baseline["lr"], MEMORY, limit, own, index_by_seed(theirs, score))
        limit = np.nan if pd.isna(peak) else limit
    return _lay_budget(arm, fo[0]["lr"], MEMORY, limit, own, own.iloc[:0])


def _lay_budget(
    arm: tuple, fo_lr: float, kind: str, budget: float, mine: pd.Series, theirs: pd.Series
) -> dict:
    """Lay out one comparison, of losses by seed; either side may be empty."""
    gap = difference_interval(mine, theirs)
    row = arm[0].drop(["n", "loss", "low", "high", "tried", "diverged", "edge", "warning"]).to_dict()
    row |= {"FO_lr": fo_lr, "kind": kind, "budget": budget, "loss": mine.mean(), "FO_loss": theirs.mean()}
    return row | {"difference": gap.mean, "low": gap.low, "high": gap.high, "n": gap.n}


def read_at(curves: dict, runs: pd.DataFrame, cost: str, budget: float) -> pd.Series:
    """Read each run's loss at `budget`, indexed by seed; `budget` lies within every curve."""
    seeds = index_seeds(runs)
    known = [curve.dropna(subset=cost) for curve in curves.values()]
    values = [np.interp(budget, curve[cost], curve["loss"]) for curve in known]
    return pd.Series(values, index=[seeds[run] for run in curves], dtype=float)
