"""The figure of the probes: each quantity against its law, at each of the places in the runs."""

from collections.abc import Iterator
from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zo.analysis.figures.panels import SAFE
from zo.analysis.probes import BAD_SLOPE, NAMES, measure_probes, name_place, read_probes
from zo.analysis.runs import Logs

DRAWN = ("cosine", "second_moment", "best_rate", "slope_error")


def plot_probes(logs: Logs, runs: pd.DataFrame) -> Figure | None:
    """Draw each quantity against its law, a column of panels for each place in the runs, in their order.

    None where nothing was probed.
    """
    table = measure_probes(read_probes(logs))
    if table.empty:
        return None
    places = list(dict.fromkeys(table["at"]))
    figure = Figure(figsize=(3.6 * len(places) + 3.4, 11), layout="constrained")
    axes = figure.subplots(len(DRAWN), len(places), sharex="row", sharey="row", squeeze=False)
    styles = dict(zip((label for label, _ in _lines(table)), _styles(), strict=False))
    for row, quantity in zip(axes, DRAWN, strict=True):
        for ax, at in zip(row, places, strict=True):
            _draw_quantity(ax, table[(table["quantity"] == quantity) & (table["at"] == at)], quantity, styles)
        row[0].set(ylabel=NAMES[quantity])
    for ax, at in zip(axes[0], places, strict=True):
        ax.set(title=name_place(at))
    figure.suptitle("Estimates against the exact gradient; dotted: the law")
    shown = [zip(*ax.get_legend_handles_labels()[::-1], strict=True) for ax in axes.flat]
    handles = {label: line for pairs in shown for label, line in pairs}  # each label once
    axes[0, -1].legend(handles=handles.values(), loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def _draw_quantity(ax: Axes, rows: pd.DataFrame, quantity: str, styles: dict[str, dict]) -> None:
    x = "epsilon" if quantity == "slope_error" else "q"
    for label, line in _lines(rows):
        line, style = line.sort_values(x), styles[label]
        at, color = line[x].astype(float), style["color"]
        ax.plot(at, line["measured"], label=label, **style)
        ends = [line[end].fillna(line["measured"]) for end in ("low", "high")]
        ax.fill_between(at, *ends, color=color, alpha=0.2, lw=0)
        if line["law"].notna().any():
            ax.plot(at, line["law"], color=color, ls=":", lw=2)
    if quantity == "slope_error":
        ax.axhline(BAD_SLOPE, color="0.6", lw=1, label=f"an error of {BAD_SLOPE:.0%}: eps is bad above it")
    if len(rows):
        ax.set(xscale="log", yscale="log")
    ax.set(xlabel="eps" if x == "epsilon" else "q")


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for (scope, d, mode), line in rows.groupby(["scope", "d", "mode"], sort=False):
        yield f"{scope} (d = {d:.0f}), {mode}'s weights", line


def _styles() -> Iterator[dict]:
    """Colours, and shapes that repeat what colour says."""
    looks = zip(cycle(SAFE), cycle("o^sDvP*"), strict=False)
    return ({"color": color, "marker": marker} for color, marker in looks)
