"""The status of a sweep for people: a table of its runs and three lines below it, once or live."""

import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zo.sweep.machine import describe_machine_use, read_machine
from zo.sweep.status import STATES, RunStatus, SweepStatus, read_status
from zo.units import spell_seconds

COLORS = {"running": "green", "done": "blue", "queued": "dim", "stopped": "yellow", "lost": "yellow"}
OTHER_COLOR = "red"
"""Of diverged, crashed and any other outcome."""
ORDER = ("running", "lost", "stopped")
"""What a screen that can't hold every run shows first; then the outcomes, done last, then the queued."""
WIDE = 1000
"""Columns where no terminal sets a limit: a name is never cut."""


def print_status(results: Path, format: str = "text") -> None:
    """Print the status of ``results`` once, as ``text`` or ``json``."""
    status, machine = read_status(results), read_machine(interval=0.2)
    if format == "json":
        print(json.dumps(_finite(status.as_dict() | {"machine": machine}), indent=2))
        return
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(_show(status, machine, status.runs))


def _finite(value):
    """JSON has no inf and no nan: null stands for them; a diverged run's reason says which it was."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def watch_status(results: Path, interval: float = 2.0) -> None:
    """Keep the status on the screen until Ctrl-C; where that is no terminal, print it again and again."""
    console = Console()
    if not console.is_terminal:
        while True:
            print_status(results)
            sys.stdout.flush()
            time.sleep(interval)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            began = time.perf_counter()
            status = read_status(results)
            live.update(_show(status, read_machine(), _choose(status.runs, console.height - 8)), refresh=True)
            took = time.perf_counter() - began  # 2 s for 10,000 runs: looking must not take a core
            time.sleep(max(interval, 5 * took))


def _choose(runs: Sequence[RunStatus], lines: int) -> list[RunStatus]:
    """The runs that fit, those that someone may want to look at first."""

    def rank(run: RunStatus) -> int:
        ranked = {state: place for place, state in enumerate(ORDER)} | {"done": 8, "queued": 9}
        return ranked.get(run.state, 7)

    return sorted(runs, key=rank)[: max(1, lines)]


def _show(status: SweepStatus, machine: dict, runs: Sequence[RunStatus]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "step", "loss", "tokens/s", "ETA", "peak MiB", "GPU"):
        left = column in ("run", "state", "GPU")
        table.add_column(column, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for run in runs:
        table.add_row(*_cells(run), style=COLORS.get(run.state, OTHER_COLOR))
    hidden = len(status.runs) - len(runs)
    lines = [f"... and {hidden} more"] if hidden else []
    lines += [_describe_runs(status), _describe_sweep(status), describe_machine_use(machine)]
    return Group(table, *(Text(line) for line in lines))


def _cells(run: RunStatus) -> list[str]:
    steps = "-" if run.step is None else f"{run.step}/{run.total or '?'}"
    return [
        run.run,
        run.state,
        steps,
        _spell(run.loss, "{:.4f}"),
        _spell(run.tokens_per_second, "{:,.0f}"),
        spell_seconds(run.eta_seconds),
        _spell(run.peak_memory_mb, "{:,.0f}"),
        _place(run),
    ]


def _spell(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _place(run: RunStatus) -> str:
    """GPU ids or the CPU, with the machine where it is another one and the Slurm job."""
    if run.host is None:
        return "-"
    place = run.gpus or "cpu"
    place = place if run.host == platform.node() else f"{run.host}:{place}"
    return f"{place} (Slurm {run.slurm_job_id})" if run.slurm_job_id else place


def _describe_runs(status: SweepStatus) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(status.counts.items()))
    line = f"{len(status.runs)} runs: {counts}"
    if any(run.state in STATES for run in status.runs):
        line += f"; sweep ETA {spell_seconds(status.eta_seconds)}"
    return line


def _describe_sweep(status: SweepStatus) -> str:
    sweep = status.sweep
    if not sweep:
        return "no sweep has worked in this folder"
    who = f"snakemake, process {sweep['pid']} on {sweep['host']}, started {sweep['started']}"
    if sweep.get("ended"):
        return f"{who}, ended {sweep['ended']}"
    said = {True: "at work", False: "gone: `snakemake` goes on", None: "on another machine, not ended"}
    return f"{who}: {said[status.at_work]}"
