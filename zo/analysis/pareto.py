"""Pareto fronts: which methods lose least at any memory, and at any number of passes."""

import numpy as np
import pandas as pd

from zo.analysis.curves import average_curves, read_curves
from zo.analysis.runs import Logs
from zo.analysis.stats import CONTROLS, lead_cells, list_context, pick_score, select_runs


def find_front(cost, loss) -> np.ndarray:
    """Mark the points that no other point beats: one that costs no more and loses no more, and less of one.

    `cost` and `loss` are 1-D; a point with a NaN is on no front. Equal points are on the front together.
    """
    cost, loss = np.asarray(cost, dtype=float), np.asarray(loss, dtype=float)
    known = np.isfinite(cost) & np.isfinite(loss)
    front = np.zeros(len(cost), dtype=bool)
    lowest = np.inf  # of the points that cost less
    for value in np.unique(cost[known]):
        same = known & (cost == value)
        best = loss[same].min()
        front |= same & (loss == best) & (best < lowest)
        lowest = min(lowest, best)
    return front


def measure_pareto(logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0) -> pd.DataFrame:
    """Place every method and q, at its best cell, on the fronts of its context; controls left out.

    One row a cell: `loss`, `peak_memory_mb` (mean over seeds) and whether no other cell beats both
    (`memory_front`); `equivalents` at the run's end, and `passes_from`, `passes_to`: the least and the most
    forward-pass equivalents at which a logged point of its mean curve is on the front; NaN where none is.
    """
    cells = lead_cells(runs, ("mode", "q"))
    cells = cells[~cells["mode"].isin(CONTROLS)].reset_index(drop=True)
    measured = [_measure_cell(logs, runs, cell, backward_cost) for _, cell in cells.iterrows()]
    table = cells.drop(columns=["tried", "diverged", "edge", "warning"]).assign(
        peak_memory_mb=[peak for peak, _ in measured],
        memory_front=False,
        equivalents=[curve["equivalents"].max() for _, curve in measured],
        passes_from=np.nan,
        passes_to=np.nan,
    )
    for _, context in table.groupby(list_context(runs), dropna=False, sort=False):
        table.loc[context.index, "memory_front"] = find_front(context["peak_memory_mb"], context["loss"])
        points = pd.concat([measured[row][1].assign(row=row) for row in context.index])
        leading = points[find_front(points["equivalents"], points["loss"])]
        for row, own in leading.groupby("row")["equivalents"]:
            table.loc[row, ["passes_from", "passes_to"]] = [own.min(), own.max()]
    return table


def _measure_cell(logs: Logs, runs: pd.DataFrame, cell: pd.Series, backward_cost: float) -> tuple:
    """Return a cell's mean peak memory and its mean curve after step 0 (equivalents, loss)."""
    mine = select_runs(runs, cell)
    curve = average_curves(read_curves(logs, mine, pick_score(runs), backward_cost))
    return mine["peak_memory_mb"].mean(), curve[curve["equivalents"] > 0]
