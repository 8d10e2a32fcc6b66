"""Figures over the grid of settings: learning-rate sensitivity, the heat map, time and memory."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zo.analysis import stats
from zo.analysis.figures.panels import (
    add_legend,
    find_scale,
    make_panels,
    name_loss,
    pick_style,
    say_n,
    share_scale,
)
from zo.analysis.runs import Logs, spell_lr


def plot_sensitivity(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw the final loss against the learning rate, a line for each method and q; x: diverged."""
    grid = score_grid(runs)
    grid = grid[grid["mode"] != "Frozen"]
    knobs = stats.list_knobs(runs)
    title = f"Final {name_loss(runs)} against learning rate, {say_n(runs)}"
    title += f" (best over {', '.join(knobs)})" if knobs else ""
    figure, panels = make_panels(runs, title, grid)
    for ax, context in panels:
        ceiling = find_scale(context.iloc[0], runs, grid, "loss").ceiling
        ax.set_xscale("log")
        for i, ((mode, q), line) in enumerate(context.groupby(["mode", "q"], sort=False)):
            style = pick_style(mode, q, runs)
            done = line[line["loss"].notna()].sort_values("lr")
            shown = done["loss"].clip(upper=ceiling)
            ax.plot(done["lr"], shown, label=stats.name_method(line.iloc[0], runs.iloc[:0]), **style)
            for lr, loss in done.loc[done["loss"] > ceiling, ["lr", "loss"]].to_numpy():
                side = -1 if lr == context["lr"].max() else 1  # the legend is right of the last one
                place = {"xytext": (6 * side, 0), "textcoords": "offset points", "va": "center"}
                place["ha"] = "right" if side < 0 else "left"
                text = ax.annotate(f"↑ {loss:.3g}", (lr, ceiling), color=style["color"], fontsize=7, **place)
                text.set_in_layout(False)
            gone = line.loc[line["diverged"], "lr"]
            where = np.full(len(gone), 0.98 - 0.035 * (i % 8))
            ax.plot(
                gone,
                where,
                "x",
                color=style["color"],
                ms=7,
                mew=2,
                transform=ax.get_xaxis_transform(),
            )
        ax.set(xlabel="learning rate (log scale)", ylabel=f"final {name_loss(runs)} [nats]")
        marks = [Line2D([], [], color="0.2", marker="x", ls="", ms=7, mew=2, label="diverged (any seed)")]
        add_legend(ax, marks if context["diverged"].any() else [])
    share_scale(panels, runs, grid, "loss")
    return figure


def plot_heatmap(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw ZO's final loss over learning rate and q, one colour scale for the panels of a model and data."""
    grid = score_grid(runs)
    grid = grid[grid["mode"] == "ZO"]
    figure, panels = make_panels(runs, f"ZO: final {name_loss(runs)} [nats], {say_n(runs)}", grid)
    for ax, context in panels:
        table = context.pivot(index="q", columns="lr", values="loss").sort_index(ascending=False)
        gone = context.pivot(index="q", columns="lr", values="diverged").reindex_like(table)
        words = table.map(lambda loss: "" if pd.isna(loss) else f"{loss:.2f}").mask(gone.eq(True), "diverged")
        words = words.mask(table.isna() & ~gone.eq(True), "no run")
        _, low, high = find_scale(context.iloc[0], runs, grid, "loss")
        scale = {"vmin": low, "vmax": high, "cmap": "viridis_r", "linewidths": 1}
        ax.grid(False)
        ax.set_facecolor("0.93")
        sns.heatmap(table, ax=ax, cbar_kws={"label": f"{name_loss(runs)} [nats]", "extend": "max"}, **scale)
        _write_cells(ax, table, words, (low + high) / 2)
        ax.set_xticklabels([spell_lr(lr) for lr in table.columns], rotation=0 if table.shape[1] < 7 else 90)
        ax.set_yticklabels(table.index, rotation=0)
        ax.set(xlabel="learning rate", ylabel="queries per step, q")
    return figure


def plot_time_and_memory(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw seconds per step and peak memory of each method and q as bars, a colour for each context."""
    costs = stats.measure_costs(runs)
    names = {"seconds_per_step": "training seconds per step", "peak_memory_mb": "peak memory [MiB]"}
    costs = costs[costs[list(names)].notna().any(axis=1)].copy()
    if costs.empty:
        return make_panels(runs, "Time and memory", costs)[0]
    costs["where"] = [stats.name_context(row, runs) for _, row in costs.iterrows()]
    costs["method"] = [stats.name_method(row, runs.iloc[:0]) for _, row in costs.iterrows()]
    methods = list(dict.fromkeys(costs.sort_values(["mode", "q"], key=stats.mode_order)["method"]))
    bars = len(methods) * costs["where"].nunique()
    figure = Figure(figsize=(11, max(2.8, 1.4 + 0.11 * len(methods) + 0.17 * bars)), layout="constrained")
    for ax, (name, label) in zip(figure.subplots(1, 2, sharey=True), names.items(), strict=True):
        sns.barplot(
            costs, x=name, y="method", hue="where", order=methods, ax=ax, palette="colorblind", legend=True
        )
        for patches in ax.containers:
            ax.bar_label(patches, fmt="%.3g", padding=2, fontsize=7)
        ax.margins(x=0.12)
        ax.set(xlabel=label, ylabel="")
        ax.grid(False, axis="y")
        handles, labels = ax.get_legend_handles_labels()
        ax.get_legend().remove()
    ax.legend(handles, labels, title="scope", loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    figure.suptitle("Time and memory: medians over finished runs, validation left out")
    return figure


def score_grid(runs: pd.DataFrame) -> pd.DataFrame:
    """Give each context, mode, q and lr its mean final loss over seeds (the best where knobs vary too).

    `loss` is NaN where a seed diverged (then `diverged` is True) or none finished.
    """
    score, axes = stats.pick_score(runs), [*stats.list_context(runs), "mode", "q"]
    known = runs[(runs["status"] != "crashed") & runs["lr"].notna()]
    cells = known.groupby([*axes, *stats.list_knobs(runs), "lr"], dropna=False, sort=False)
    losses = cells.agg(
        loss=(score, "mean"), diverged=("status", lambda s: (s == "diverged").any())
    ).reset_index()
    losses["loss"] = losses["loss"].astype(float).mask(losses["diverged"])
    grid = losses.groupby([*axes, "lr"], dropna=False, sort=False).agg(
        loss=("loss", "min"), diverged=("diverged", "all")
    )
    return grid.reset_index().sort_values([*axes, "lr"], key=stats.mode_order, kind="stable")


def _write_cells(ax: Axes, table: pd.DataFrame, words: pd.DataFrame, middle: float) -> None:
    """Write each cell's words where a heatmap drew it, white on the dark half of the scale."""
    for (i, j), word in np.ndenumerate(words.to_numpy()):
        color = "white" if table.iat[i, j] > middle else "black"
        ax.text(j + 0.5, i + 0.5, word, ha="center", va="center", color=color, fontsize=8)
