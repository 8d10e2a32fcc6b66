"""The plots of a folder of runs, as PNG files.

Figures are made without pyplot, so no backend and no style of the caller is touched. Colours are the
colour-blind-safe ones of seaborn; shape (markers, dashes) repeats what colour says.
"""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from zo.analysis import stats
from zo.analysis.curves import read_curve
from zo.analysis.table import Logs, read_logs, spell_lr, summarize_runs

SAFE = sns.color_palette("colorblind").as_hex()
COLORS = {"FO": SAFE[3], "Calibrate": SAFE[2], "Instruct": SAFE[4], "Random": "0.45", "Frozen": "0.15"}
MARKERS = {"FO": "o", "Calibrate": "P", "Instruct": "X", "Random": "", "Frozen": ""}
DASHES = {"Random": (0, (6, 2)), "Frozen": (0, (1, 1.5))}
ZO_MARKERS, ZO_DASHES = "v^sD<>ph", ("-", (0, (7, 1)), (0, (4, 1, 1, 1)), (0, (3, 1)))
MAX_PANELS = 12
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11, "legend.fontsize": 8, "axes.grid": True,
    "grid.color": "0.9", "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "lines.linewidth": 1.5, "lines.markersize": 4.5,
}  # fmt: skip


def write_plots(
    folder: str | Path, out: str | Path, *, per_run: bool = False, only: Collection[str] | None = None
) -> list[Path]:
    """Write every plot of `folder`'s runs into `out` and return the files' paths. `only`: these runs.

    cosine.png is there only where cosines were logged; `per_run` adds runs/<run>.png. Where nothing has
    finished a plot says so. Raises UserError for a folder that holds no readable logs.
    """
    logs = read_logs(folder, only)
    runs = summarize_runs(logs)
    with rc_context(STYLE):
        figures = {name: draw(logs, runs) for name, draw in FIGURES.items()}
        (Path(out) / "cosine.png").unlink(missing_ok=True)  # of an earlier set of runs
        paths = [_save(figure, Path(out) / f"{name}.png") for name, figure in figures.items() if figure]
        if per_run:
            paths += [_save(plot_run(logs, run), Path(out) / "runs" / f"{run}.png") for run in logs.frames]
    return paths


def plot_loss_vs_steps(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw loss curves against steps: FO, ZO by q, the best of the others."""
    return _plot_curves(logs, runs, "step", "training steps")


def plot_loss_vs_forward_passes(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw loss curves against forward-pass equivalents, on a log axis: the methods' costs differ by q."""
    label = "forward passes + 2 x backward passes (log scale)"
    figure = _plot_curves(logs, runs, "equivalents", label)
    for ax in figure.axes:
        if any(len(line.get_xdata()) and line.get_xdata()[-1] > 1 for line in ax.lines):
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_minor_formatter(NullFormatter())
    return figure


def plot_sensitivity(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw the final loss against the learning rate, a line for each method and q; x: diverged."""
    grid = _score_grid(runs)
    grid = grid[grid["mode"] != "Frozen"]
    knobs = stats.list_knobs(runs)
    title = f"Final {_loss_name(runs)} against learning rate, {_say_n(runs)}"
    title += f" (best over {', '.join(knobs)})" if knobs else ""
    figure, panels = _make_panels(runs, title, grid)
    ceiling = _ceiling(runs, grid["loss"])
    for ax, context in panels:
        ax.set_xscale("log")
        for i, ((mode, q), line) in enumerate(context.groupby(["mode", "q"], sort=False)):
            style = _style(mode, q, runs) | ({"marker": "d"} if mode == "Random" else {})
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
        ax.set(xlabel="learning rate (log scale)", ylabel=f"final {_loss_name(runs)} [nats]")
        marks = [Line2D([], [], color="0.2", marker="x", ls="", ms=7, mew=2, label="diverged (any seed)")]
        _add_legend(ax, marks if context["diverged"].any() else [])
    _share_scale(panels, ceiling)
    return figure


def plot_heatmap(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw ZO's final loss over learning rate and q, one colour scale for all panels."""
    grid = _score_grid(runs)
    grid = grid[grid["mode"] == "ZO"]
    low, high = (grid["loss"].min(), _ceiling(runs, grid["loss"])) if len(grid) else (0, 1)
    figure, panels = _make_panels(runs, f"ZO: final {_loss_name(runs)} [nats], {_say_n(runs)}", grid)
    for ax, context in panels:
        table = context.pivot(index="q", columns="lr", values="loss").sort_index(ascending=False)
        gone = context.pivot(index="q", columns="lr", values="diverged").reindex_like(table)
        words = table.map(lambda loss: "" if pd.isna(loss) else f"{loss:.2f}").mask(gone.eq(True), "diverged")
        words = words.mask(table.isna() & ~gone.eq(True), "no run")
        scale = {"vmin": low, "vmax": high, "cmap": "viridis_r", "linewidths": 1}
        ax.grid(False)
        ax.set_facecolor("0.93")
        sns.heatmap(table, ax=ax, cbar_kws={"label": f"{_loss_name(runs)} [nats]", "extend": "max"}, **scale)
        _write_cells(ax, table, words, (low + high) / 2)
        ax.set_xticklabels([spell_lr(lr) for lr in table.columns], rotation=0 if table.shape[1] < 7 else 90)
        ax.set_yticklabels(table.index, rotation=0)
        ax.set(xlabel="learning rate", ylabel="queries per step, q")
    return figure


def plot_time_and_memory(logs: Logs, runs: pd.DataFrame) -> Figure:
    """Draw seconds per step and peak memory of each method and q as bars, a colour for each context."""
    costs = stats.measure_costs(runs)
    names = {"seconds_per_step": "training seconds per step", "peak_memory_mb": "peak memory [MB]"}
    costs = costs[costs[list(names)].notna().any(axis=1)].copy()
    if costs.empty:
        return _make_panels(runs, "Time and memory", costs)[0]
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


def plot_cosine(logs: Logs, runs: pd.DataFrame) -> Figure | None:
    """Draw the logged cosine with the true gradient against steps; dotted: the exact law, where known."""
    if logs.rows["cosine"].notna().sum() == 0:
        return None
    cells = stats.lead_cells(runs, ("mode", "q"))
    picked = [stats.select_runs(runs, cell)["run"].tolist() for _, cell in cells.iterrows()]
    found = [[logs.frames[run].dropna(subset="cosine") for run in names] for names in picked]
    kept = [i for i, frames in enumerate(found) if any(map(len, frames))]
    figure, panels = _make_panels(runs, f"Cosine with the true gradient, {_say_n(runs)}", cells.iloc[kept])
    for ax, context in panels:
        for i, cell in context.iterrows():
            style = _style(cell["mode"], cell["q"], runs) | {"lw": 1}
            mean = pd.concat(found[i]).groupby("step")["cosine"].mean()
            ax.plot(mean.index, mean, label=_label(cell, runs), **style)
            law = predict_cosine(cell, logs.specs[picked[i][0]])
            if law is not None:
                label = f"   law: {law:.3g}"
                ax.axhline(law, color=style["color"], ls=":", lw=2, zorder=1, label=label)
        ax.set(xlabel="training steps", ylabel="cosine with the true gradient")
        ax.ticklabel_format(axis="y", useOffset=False)
        _add_legend(ax)
    return figure


def predict_cosine(cell: pd.Series, spec: dict) -> float | None:
    """Give the law's cosine: Instruct's from `cosine_target`, ZO's RMS one from `trainable_parameters`.

    c / sqrt(c^2 + (1 - c^2) / q) for directions at cosine c to the gradient, sqrt(q / (q + d - 1)) for
    Gaussian ones in d dimensions; None where the spec lacks what the law needs or blends the gradient in.
    """
    q, c, d = cell["q"], spec.get("cosine_target"), spec.get("trainable_parameters")
    if cell["mode"] == "Instruct" and c and not spec.get("blend_bp_gradient"):
        return c / np.sqrt(c**2 + (1 - c**2) / q)
    return np.sqrt(q / (q + d - 1)) if cell["mode"] in ("ZO", "Calibrate") and d and q else None


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
    _add_legend(ax) if ax.lines else _say(ax, "no loss was logged")
    return figure


FIGURES = {
    "loss_vs_steps": plot_loss_vs_steps,
    "loss_vs_forward_passes": plot_loss_vs_forward_passes,
    "final_loss_vs_lr_by_q": plot_sensitivity,
    "loss_heatmap_lr_q": plot_heatmap,
    "time_and_memory": plot_time_and_memory,
    "cosine": plot_cosine,
}


def _plot_curves(logs: Logs, runs: pd.DataFrame, cost: str, label: str) -> Figure:
    """Draw a panel for each context: FO, ZO at every q, the best cell of each other method; band: seeds."""
    score = stats.pick_score(runs)
    every, best = stats.lead_cells(runs, ("mode", "q")), stats.lead_cells(runs)
    cells = pd.concat([every[every["mode"] == "ZO"], best[best["mode"] != "ZO"]])
    cells = cells.sort_values(["mode", "q"], key=stats.mode_order, kind="stable")
    title = f"{_loss_name(runs).capitalize()} at each method's best learning rate, {_say_n(runs)}"
    title += " (line: mean, band: range)" if title.endswith("seeds") else ""
    figure, panels = _make_panels(runs, title, cells)
    for ax, context in panels:
        for _, cell in context.iterrows():
            curves = [read_curve(logs.frames[run], score) for run in stats.select_runs(runs, cell)["run"]]
            if cell["mode"] == "Frozen":
                ax.axhline(cell["loss"], label="Frozen (untrained)", **_style("Frozen", 0, runs))
            else:
                _draw_seeds(ax, curves, cost, _label(cell, runs), _style(cell["mode"], cell["q"], runs))
        ax.set(xlabel=label, ylabel=f"{_loss_name(runs)} [nats]")
        ax.xaxis.get_major_locator().set_params(integer=True)
        _add_legend(ax)
    _share_scale(panels, _ceiling(runs, runs["best_val_loss" if score == "final_val_loss" else "best_loss"]))
    return figure


def _ceiling(runs: pd.DataFrame, losses: pd.Series) -> float:
    """Highest loss worth an axis: somewhat above the untrained model's; what lies higher learned nothing.

    Without the untrained model's loss there is no ceiling: the highest of ``losses``.
    """
    untrained, low = runs["initial_val_loss"].max(), losses.min()
    highest = losses[np.isfinite(losses)].max()
    if pd.isna(untrained) or pd.isna(low):
        return highest
    return max(untrained + 0.35 * (untrained - low), untrained)


def _share_scale(panels: list, ceiling: float) -> None:
    """Give all panels one loss axis that shows everything up to the ceiling."""
    limits = [ax.get_ylim() for ax, _ in panels]
    if not limits:
        return
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if np.isfinite(ceiling):
        high = min(high, ceiling + 0.04 * (ceiling - low))
    for ax, _ in panels:
        ax.set_ylim(low, high)


def _draw_seeds(ax: Axes, curves: list[pd.DataFrame], cost: str, label: str, style: dict) -> None:
    """Draw the mean over seeds point by point, and their range as a band."""
    points = pd.concat(curves).groupby("step").agg({cost: "mean", "loss": ["mean", "min", "max"]})
    points = points[points[(cost, "mean")] > 0] if cost != "step" else points
    x, loss = points[(cost, "mean")], points["loss"]
    if len(curves) > 1:
        ax.fill_between(x, loss["min"], loss["max"], color=style["color"], alpha=0.2, lw=0)
    ax.plot(x, loss["mean"], label=label, markevery=max(1, len(x) // 10), **style)


def _score_grid(runs: pd.DataFrame) -> pd.DataFrame:
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


def _make_panels(runs: pd.DataFrame, title: str, rows: pd.DataFrame) -> tuple[Figure, list]:
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
        _say(
            axes[0],
            "nothing to show here; runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()),
        )
    for ax, (_, group) in zip(axes, shown, strict=False):
        ax.set_title("scope " + stats.name_context(group.iloc[0], runs))
    cut = f" (first {MAX_PANELS} of {len(groups)} panels)" if len(groups) > MAX_PANELS else ""
    figure.suptitle(title + cut)
    return figure, [(ax, group) for ax, (_, group) in zip(axes, shown, strict=False)]


def _style(mode: str, q: int, runs: pd.DataFrame) -> dict:
    """Give a line's look: a colour a mode, for ZO shades, markers and dashes by q."""
    if mode != "ZO":
        look = {"color": COLORS.get(mode, SAFE[5]), "marker": MARKERS.get(mode, "*")}
        return look | {"ls": DASHES.get(mode, "-")}
    budgets = sorted(runs.loc[runs["mode"] == "ZO", "q"].unique())
    i = budgets.index(q)
    shade = sns.color_palette("blend:#56b4e9,#08305c", len(budgets) if len(budgets) > 1 else 2).as_hex()[i]
    return {"color": shade, "marker": ZO_MARKERS[i % len(ZO_MARKERS)], "ls": ZO_DASHES[i % len(ZO_DASHES)]}


def _label(cell: pd.Series, runs: pd.DataFrame) -> str:
    name = stats.name_method(cell, runs)
    return name if pd.isna(cell["lr"]) else f"{name}, lr {spell_lr(cell['lr'])}"


def _loss_name(runs: pd.DataFrame) -> str:
    return "validation loss" if stats.pick_score(runs) == "final_val_loss" else "training loss"


def _say_n(runs: pd.DataFrame) -> str:
    """Say how many seeds a point stands for."""
    n = stats.best_learning_rates(runs)["n"]
    n = sorted(set(n[n > 0]))
    if n in ([], [1]):
        return "n = 1 seed" if n else "no finished run"
    return f"n = {n[0]} seeds" if len(n) == 1 else f"n = {n[0]} to {n[-1]} seeds"


def _write_cells(ax: Axes, table: pd.DataFrame, words: pd.DataFrame, middle: float) -> None:
    """Write each cell's words where a heatmap drew it, white on the dark half of the scale."""
    for (i, j), word in np.ndenumerate(words.to_numpy()):
        color = "white" if table.iat[i, j] > middle else "black"
        ax.text(j + 0.5, i + 0.5, word, ha="center", va="center", color=color, fontsize=8)


def _add_legend(ax: Axes, more: list = ()) -> None:
    """Put the legend to the right of the panel, where it can cover nothing."""
    handles = [*ax.get_legend_handles_labels()[0], *more]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, handlelength=3.2)


def _say(ax: Axes, text: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=11)


def _save(figure: Figure, path: Path) -> Path:
    """Save aside, then rename; no version stamp, so that the same logs give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(aside, format="png", dpi=150, metadata={"Software": None})
    aside.replace(path)
    return path
