"""Figures of whole curves: loss against steps and passes, the Pareto fronts, cosines, one run alone."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from zo.analysis import stats
from zo.analysis.curves import read_curves
from zo.analysis.figures.panels import (
    SAFE,
    add_legend,
    find_scale,
    make_panels,
    name_cell,
    name_loss,
    pick_style,
    say_n,
    share_scale,
    write_instead,
)
from zo.analysis.pareto import find_front, measure_pareto
from zo.analysis.runs import Logs
from zo.engine import laws


def plot_loss_vs_steps(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw loss curves against steps: FO, ZO by q, the best of the others."""
    return _plot_curves(logs, runs, "step", "training steps")[0]


def plot_loss_vs_forward_passes(logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0) -> Figure:
    """Draw loss curves against forward-pass equivalents, on a log axis: the methods' costs differ by q."""
    label = f"forward passes + {backward_cost:g} x backward passes (log scale)"
    figure, _ = _plot_curves(logs, runs, "equivalents", label, backward_cost)
    _scale_passes(figure)
    return figure


def plot_pareto_passes(logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0) -> Figure:
    """Draw the front of loss against forward-pass equivalents over every method's and q's mean curve."""
    label = f"forward passes + {backward_cost:g} x backward passes (log scale)"
    figure, panels = _plot_curves(logs, runs, "equivalents", label, backward_cost, all_q=True)
    figure.suptitle(f"Pareto front: the least {name_loss(runs)} for the passes, {say_n(runs)}")
    for ax, _ in panels:
        points = np.concatenate([np.column_stack(line.get_data()) for line in ax.lines] or [np.empty((0, 2))])
        for line in ax.lines:
            line.set(alpha=0.45)
        _draw_front(ax, points)
    _scale_passes(figure)
    return figure


def plot_pareto_memory(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw each method's and q's best cell by its peak memory and its final loss, and the front."""
    cells = measure_pareto(logs, runs)
    cells = cells[cells["peak_memory_mb"].notna()] if len(cells) else cells
    title = f"Pareto front: the least final {name_loss(runs)} for the memory, {say_n(runs)}"
    figure, panels = make_panels(runs, title, cells)
    for ax, context in panels:
        for _, cell in context.iterrows():
            style = pick_style(cell["mode"], cell["q"], runs) | {"ls": "", "ms": 8}
            ax.plot(cell["peak_memory_mb"], cell["loss"], label=name_cell(cell, runs), **style)
            if pd.notna(cell["low"]):
                half = cell["high"] - cell["loss"]
                ax.errorbar(cell["peak_memory_mb"], cell["loss"], half, color=style["color"], capsize=3)
        _draw_front(ax, context[["peak_memory_mb", "loss"]].to_numpy(float))
        ax.set(xlabel="peak memory [MiB]", ylabel=f"final {name_loss(runs)} [nats]")
        ax.margins(0.12)
    return figure


def _draw_front(ax: Axes, points: np.ndarray) -> None:
    """Draw the front of `points` (n, 2: cost, loss), a staircase or a ring around one, and the legend."""
    front = points[find_front(points[:, 0], points[:, 1])]
    front = front[np.argsort(front[:, 0])]
    ring = {"marker": "o", "ms": 11, "mfc": "none", "mew": 2, "ls": ""} if len(front) == 1 else {}
    ax.step(*front.T, where="post", color="0.25", lw=2.5, alpha=0.7, zorder=1, label="front", **ring)
    add_legend(ax)


def _scale_passes(figure: Figure) -> None:
    """Make the axis of passes a logarithmic one, where there are any."""
    for ax in figure.axes:
        if any(len(line.get_xdata()) and line.get_xdata()[-1] > 1 for line in ax.lines):
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_minor_formatter(NullFormatter())


def plot_cosine(logs: Logs, runs: pd.DataFrame) -> Figure | None:
    """Draw the logged cosine with the true gradient against steps; dotted: the exact law, where known."""
    if logs.rows["cosine"].notna().sum() == 0:
        return None
    cells = stats.lead_cells(runs, ("mode", "q"))
    picked = [stats.select_runs(runs, cell)["run"].tolist() for _, cell in cells.iterrows()]
    found = [[logs.frames[run].dropna(subset="cosine") for run in names] for names in picked]
    kept = [i for i, frames in enumerate(found) if any(map(len, frames))]
    figure, panels = make_panels(runs, f"Cosine with the true gradient, {say_n(runs)}", cells.iloc[kept])
    for ax, context in panels:
        for i, cell in context.iterrows():
            style = pick_style(cell["mode"], cell["q"], runs) | {"lw": 1}
            mean = pd.concat(found[i]).groupby("step")["cosine"].mean()
            ax.plot(mean.index, mean, label=name_cell(cell, runs), **style)
            law = predict_cosine(cell, logs.specs[picked[i][0]])
            if law is not None:
                label = f"   law: {law:.3g}"
                ax.axhline(law, color=style["color"], ls=":", lw=2, zorder=1, label=label)
        ax.set(xlabel="training steps", ylabel="cosine with the true gradient")
        ax.ticklabel_format(axis="y", useOffset=False)
        add_legend(ax)
    return figure


def predict_cosine(cell: pd.Series, spec: dict) -> float | None:
    """Give the law's cosine: Instruct's from `cosine_target`, ZO's RMS one from `trainable_parameters`.

    None where the spec lacks what the law needs or blends the gradient in.
    """
    gaussian = spec.get("direction_family", "gaussian") == "gaussian"
    q, c, d = cell["q"], spec.get("cosine_target"), spec.get("trainable_parameters")
    if cell["mode"] == "Instruct" and c and not spec.get("blend_bp_gradient"):
        return laws.guided_cosine(c, q)
    return laws.rms_cosine(q, d) if cell["mode"] in ("ZO", "Calibrate") and d and q and gaussian else None


def plot_run(logs: Logs, run: str) -> Figure:
    """Draw one run's training and validation loss against steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax, frame = figure.add_subplot(), logs.frames[run]
    for name, style in {
        "loss": {"color": SAFE[0], "lw": 1},
        "val_loss": {"color": SAFE[1], "marker": "o"},
    }.items():
        points = frame[np.isfinite(frame[name])]
        if len(points):
            ax.plot(points["step"], points[name], label={"loss": "training"}.get(name, "validation"), **style)
    gone = frame.loc[np.isinf(frame["loss"]) | np.isinf(frame["val_loss"]), "step"]
    if len(gone):
        ax.axvline(gone.iloc[0], color="0.2", ls="--", label="not finite from here")
    ax.set(xlabel="training steps", ylabel="loss [nats]")
    figure.suptitle(run)
    add_legend(ax) if ax.lines else write_instead(ax, "no loss was logged")
    return figure


def _plot_curves(
    logs: Logs, runs: pd.DataFrame, cost: str, label: str, backward_cost: float = 2.0, all_q: bool = False
) -> tuple[Figure, list]:
    """Draw a panel for each context: FO, ZO at every q, the best cell of each other method; band: seeds.

    `all_q`: every method at every q instead, without the controls. Returns the figure and its panels.
    """
    score = stats.pick_score(runs)
    lowest = "best_val_loss" if score == "final_val_loss" else "best_loss"
    every, best = stats.lead_cells(runs, ("mode", "q")), stats.lead_cells(runs)
    cells = pd.concat([every[every["mode"] == "ZO"], best[best["mode"] != "ZO"]])
    cells = every[~every["mode"].isin(stats.CONTROLS)] if all_q else cells
    cells = cells.sort_values(["mode", "q"], key=stats.mode_order, kind="stable")
    title = f"{name_loss(runs).capitalize()} at each method's best learning rate, {say_n(runs)}"
    title += " (line: mean, band: range)" if title.endswith("seeds") else ""
    figure, panels = make_panels(runs, title, cells)
    for ax, context in panels:
        ceiling = find_scale(context.iloc[0], runs, runs, lowest).ceiling
        for _, cell in context.iterrows():
            curves = list(read_curves(logs, stats.select_runs(runs, cell), score, backward_cost).values())
            if cell["mode"] == "Frozen":
                ax.axhline(cell["loss"], label="Frozen (untrained)", **pick_style("Frozen", 0, runs))
            else:
                style = pick_style(cell["mode"], cell["q"], runs)
                _draw_seeds(ax, curves, cost, name_cell(cell, runs), style, ceiling)
        ax.set(xlabel=label, ylabel=f"{name_loss(runs)} [nats]")
        ax.xaxis.get_major_locator().set_params(integer=True)
        add_legend(ax)
    share_scale(panels, runs, runs, lowest)
    return figure, panels


def _draw_seeds(
    ax: Axes, curves: list[pd.DataFrame], cost: str, label: str, style: dict, ceiling: float
) -> None:
    """Draw the mean over seeds point by point, and their range as a band; name what is above `ceiling`."""
    points = pd.concat(curves).groupby("step").agg({cost: "mean", "loss": ["mean", "min", "max"]})
    points = points[points[(cost, "mean")] > 0] if cost != "step" else points
    x, loss = points[(cost, "mean")], points["loss"]
    if loss["mean"].max() > ceiling:
        label += f"\n(leaves the axis: to {loss['mean'].max():.3g})"
    if len(curves) > 1:
        ax.fill_between(x, loss["min"], loss["max"], color=style["color"], alpha=0.2, lw=0)
    ax.plot(x, loss["mean"], label=label, markevery=max(1, len(x) // 10), **style)
