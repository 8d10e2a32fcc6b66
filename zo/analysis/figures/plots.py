"""The figures of a folder of runs, as bytes and as files."""

import io
from collections.abc import Collection
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from zo.analysis.figures import curve_plots, grid_plots, probe_plots
from zo.analysis.figures.panels import STYLE
from zo.analysis.runs import Logs, read_logs, summarize_runs
from zo.errors import unknown
from zo.files import write_aside

FIGURES = {
    "loss_vs_steps": curve_plots.plot_loss_vs_steps,
    "loss_vs_forward_passes": curve_plots.plot_loss_vs_forward_passes,
    "final_loss_vs_lr_by_q": grid_plots.plot_sensitivity,
    "loss_heatmap_lr_q": grid_plots.plot_heatmap,
    "time_and_memory": grid_plots.plot_time_and_memory,
    "pareto_memory": curve_plots.plot_pareto_memory,
    "pareto_passes": curve_plots.plot_pareto_passes,
    "cosine": curve_plots.plot_cosine,
    "probes": probe_plots.plot_probes,
}
OPTIONAL = ("cosine", "probes")
"""Figures that not every folder has the data for."""
COUNT_PASSES = ("loss_vs_forward_passes", "pareto_passes")
"""Figures whose axis counts a backward pass as so many forward passes."""
FORMATS = ("png", "svg", "pdf")
# No version stamps, no dates: the same logs give the same bytes.
METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_plots(
    folder: str | Path,
    out: str | Path,
    *,
    per_run: bool = False,
    only: Collection[str] | None = None,
    format: str = "png",
    backward_cost: float = 2.0,
) -> list[Path]:
    """Write every plot of `folder`'s runs into `out` and return the files' paths. `only`: these runs.

    cosine.png is there only where cosines were logged, probes.png where runs were probed; `per_run` adds
    runs/<run>.png. Where nothing has finished a plot says so. Raises UserError for a folder that holds no
    readable logs.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    logs = read_logs(folder, only)
    figures = draw_figures(logs, summarize_runs(logs), format, backward_cost)
    if per_run:
        with rc_context(STYLE):
            pictures = {f"runs/{run}": curve_plots.plot_run(logs, run) for run in logs.frames}
            figures |= {name: render(figure, format) for name, figure in pictures.items()}
    for name in OPTIONAL:
        (Path(out) / f"{name}.{format}").unlink(missing_ok=True)  # of an earlier set of runs
    paths = [Path(out) / f"{name}.{format}" for name in figures]
    for path, content in zip(paths, figures.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, content)
    return paths


def draw_figures(
    logs: Logs, runs: pd.DataFrame, format: str = "png", backward_cost: float = 2.0
) -> dict[str, bytes]:
    """Draw every figure that there is data for; the files' contents by name."""
    options = {name: {"backward_cost": backward_cost} for name in COUNT_PASSES}
    with rc_context(STYLE | {"svg.hashsalt": "zo"}):
        drawn = {name: draw(logs, runs, **options.get(name, {})) for name, draw in FIGURES.items()}
        return {name: render(figure, format) for name, figure in drawn.items() if figure}


def render(figure: Figure, format: str) -> bytes:
    """Return a figure as the content of a file."""
    content = io.BytesIO()
    figure.savefig(content, format=format, dpi=150, metadata=METADATA[format])
    return content.getvalue()
