"""The figures of a folder of runs, as files or as bytes."""

import os
from collections.abc import Collection
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from zo.analysis import curve_plots, grid_plots
from zo.analysis.panels import STYLE
from zo.analysis.table import read_logs, summarize_runs

FIGURES = {
    "loss_vs_steps": curve_plots.plot_loss_vs_steps,
    "loss_vs_forward_passes": curve_plots.plot_loss_vs_forward_passes,
    "final_loss_vs_lr_by_q": grid_plots.plot_sensitivity,
    "loss_heatmap_lr_q": grid_plots.plot_heatmap,
    "time_and_memory": grid_plots.plot_time_and_memory,
    "cosine": curve_plots.plot_cosine,
}


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
            paths += [
                _save(curve_plots.plot_run(logs, run), Path(out) / "runs" / f"{run}.png")
                for run in logs.frames
            ]
    return paths


def _save(figure: Figure, path: Path) -> Path:
    """Save aside, then rename; no version stamp, so that the same logs give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(aside, format="png", dpi=150, metadata={"Software": None})
    aside.replace(path)
    return path
