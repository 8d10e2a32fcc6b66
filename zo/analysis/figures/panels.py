"""What all figures share: a panel for each context, a look for each method, one loss scale, legends.

Figures are made without pyplot, so no backend and no style of the caller is touched. Colours are the
colour-blind-safe ones of seaborn; shape (markers, dashes) repeats what colour says.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zo.analysis import stats
from zo.analysis.runs import spell_lr

SAFE = sns.color_palette("colorblind").as_hex()
COLORS = {"FO": SAFE[3], "Calibrate": SAFE[2], "Instruct": SAFE[4], "Random": "0.45", "Frozen": "0.15"}
COLORS |= {"LayerwiseFO": SAFE[1], "LayerwiseZO": SAFE[5], "LayerwiseFrozen": SAFE[7]}
MARKERS = {"FO": "o", "Calibrate": "P", "Instruct": "X", "Random": "d", "Frozen": ""}  # Frozen: a level
MARKERS |= {"LayerwiseFO": "8", "LayerwiseZO": "*", "LayerwiseFrozen": "p"}
OTHER_COLOR, OTHER_MARKER = SAFE[9], "H"
"""Of a method that is not named here."""
DASHES = {"Random": (0, (6, 2)), "Frozen": (0, (1, 1.5))}
ZO_MARKERS, ZO_DASHES = "v^sD<>ph", ("-", (0, (7, 1)), (0, (4, 1, 1, 1)), (0, (3, 1)))
MAX_PANELS = 12
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11, "legend.fontsize": 8, "axes.grid": True,
    "grid.color": "0.9", "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "lines.linewidth": 1.5, "lines.markersize": 4.5,
}  # fmt: skip


def make_panels(runs: pd.DataFrame, title: str, rows: pd.DataFrame) -> tuple[Figure, list]:
    """Make a figure with a titled panel for each context of `rows`; without rows one that says why."""
    groups = list(rows.groupby(stats.list_context(runs), dropna=False, sort=False)) if len(rows) else []
    shown = groups[:MAX_PANELS]
    across = min(2, max(1, len(shown)))
    down = -(-max(1, len(shown)) // across)
    figure = Figure(figsize=(6.6 * across + 0.6, 3.9 * down + 0.5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    if not shown:
        counts = runs["status"].value_counts()
        write_instead(
            axes[0],
            "nothing to show here; runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()),
        )
    for ax, (_, group) in zip(axes, shown, strict=False):
        ax.set_title("scope " + stats.name_context(group.iloc[0], runs))
    cut = f" (first {MAX_PANELS} of {len(groups)} panels)" if len(groups) > MAX_PANELS else ""
    figure.suptitle(title + cut)
    return figure, [(ax, group) for ax, (_, group) in zip(axes, shown, strict=False)]


def pick_style(mode: str, q: int, runs: pd.DataFrame) -> dict:
    """Give a line's look: a colour a mode, for ZO shades, markers and dashes by q."""
    if mode != "ZO":
        look = {"color": COLORS.get(mode, OTHER_COLOR), "marker": MARKERS.get(mode, OTHER_MARKER)}
        return look | {"ls": DASHES.get(mode, "-")}
    budgets = sorted(runs.loc[runs["mode"] == "ZO", "q"].unique())
    i = budgets.index(q)
    shade = sns.color_palette("blend:#56b4e9,#08305c", len(budgets) if len(budgets) > 1 else 2).as_hex()[i]
    return {"color": shade, "marker": ZO_MARKERS[i % len(ZO_MARKERS)], "ls": ZO_DASHES[i % len(ZO_DASHES)]}


def name_cell(cell: pd.Series, runs: pd.DataFrame) -> str:
    name = stats.name_method(cell, runs)
    return name if pd.isna(cell["lr"]) else f"{name}, lr {spell_lr(cell['lr'])}"


def add_legend(ax: Axes, more: list = ()) -> None:
    """Put the legend to the right of the panel, where it can cover nothing."""
    handles = [*ax.get_legend_handles_labels()[0], *more]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, handlelength=3.2)


def write_instead(ax: Axes, text: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=11)


def find_ceiling(runs: pd.DataFrame, losses: pd.Series) -> float:
    """Highest loss worth an axis: somewhat above the untrained model's; what lies higher learned nothing.

    Without the untrained model's loss there is no ceiling: the highest of ``losses``.
    """
    untrained, low = runs["initial_val_loss"].max(), losses.min()
    highest = losses[np.isfinite(losses)].max()
    if pd.isna(untrained) or pd.isna(low):
        return highest
    return max(untrained + 0.35 * (untrained - low), untrained)


class Scale(NamedTuple):
    """What shows all losses of a model and its data, by `name`: from the `least` to their `ceiling`."""

    name: tuple
    least: float
    ceiling: float


def find_scale(cell: pd.Series, runs: pd.DataFrame, rows: pd.DataFrame, column: str) -> Scale:
    """Return the scale of a cell's model and data.

    `rows`: the runs, or what was made of them by context; `column`: their losses.
    """
    axes = [axis for axis in stats.list_context(runs) if axis not in ("scope", "batch_size")]
    own, theirs = (frame[stats.match_rows(frame, cell, axes)] for frame in (runs, rows))
    losses = theirs[column]
    return Scale(tuple(cell[axes].astype(str)), losses.min(), find_ceiling(own, losses))


def share_scale(panels: list, runs: pd.DataFrame, rows: pd.DataFrame, column: str) -> None:
    """Give the panels of one model and data one loss axis: all that was drawn, up to the ceiling."""
    drawn = [(ax, context.iloc[0]) for ax, context in panels if ax.dataLim.y0 <= ax.dataLim.y1]
    alike: dict[tuple, list[Axes]] = {}
    for ax, cell in drawn:
        alike.setdefault(find_scale(cell, runs, rows, column), []).append(ax)
    for (_, _, ceiling), axes in alike.items():
        low, high = min(ax.dataLim.y0 for ax in axes), max(ax.dataLim.y1 for ax in axes)
        high = min(high, ceiling) if np.isfinite(ceiling) else high
        margin = 0.04 * (high - low) or 0.1
        for ax in axes:
            ax.set_ylim(low - margin, high + margin)


def name_loss(runs: pd.DataFrame) -> str:
    return "validation loss" if stats.pick_score(runs) == "final_val_loss" else "training loss"


def say_n(runs: pd.DataFrame) -> str:
    """Say how many seeds a point stands for."""
    n = stats.best_learning_rates(runs)["n"]
    n = sorted(set(n[n > 0]))
    if n in ([], [1]):
        return "n = 1 seed" if n else "no finished run"
    return f"n = {n[0]} seeds" if len(n) == 1 else f"n = {n[0]} to {n[-1]} seeds"
