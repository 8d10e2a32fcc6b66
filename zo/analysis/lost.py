"""Runs that went wrong, and runs without an outcome: killed past their last retry, at work, or not begun.

A crash writes its own outcome. What takes a job's launcher down with it (the kernel, Slurm, a lost node)
leaves none, and Snakemake then never reaches the summary.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from zo.analysis.runs import Logs, find_log
from zo.files import is_held
from zo.training.record import RunFiles

TAIL_LINES = 5
WHY_LOST = "no outcome was recorded: killed from outside, or its machine is gone"


class Unfinished(NamedTuple):
    """A run without an outcome: ``lost``, ``running`` or ``waiting`` (never begun)."""

    name: str
    state: str
    log: Path


class Problem(NamedTuple):
    """A run that is not ``done``: why, its log, and of a crash the log's last lines."""

    status: str
    run: str
    reason: str
    log: str | None
    tail: list[str]


def find_unfinished(folder: str | Path, only: Collection[str] | None = None) -> list[Unfinished]:
    """Which of a study's runs (`only`; None: of those with a folder of their own) have no outcome, by name.

    `folder` is that of the CSV logs. One that no results folder surrounds has nothing unfinished.
    """
    results = Path(folder).parent
    if not (results / "runs").is_dir():
        return []
    if only is None:
        only = [path.name for path in (results / "runs").iterdir() if path.is_dir()]
    return [found for run in sorted(only) if (found := _judge(RunFiles(results, run)))]


def _judge(files: RunFiles) -> Unfinished | None:
    """Snakemake deletes both files before it repeats a run, so what is there is of the last attempt."""
    if files.csv.is_file() or (files.folder / "outcome.json").is_file():
        return None
    state = "lost" if files.live_csv.exists() or files.job_log.exists() else "waiting"
    if is_held(files.folder / ".lock"):
        state = "running"
    return Unfinished(files.run, state, files.job_log)


def tell_partial(unfinished: list[Unfinished]) -> list[str]:
    """Say that runs are not there, and which; nothing where all are."""
    head = f"PARTIAL: no outcome of {len(unfinished)} of the runs. `snakemake` goes on with them."
    return [head, *list_unfinished(unfinished)] if unfinished else []


def list_unfinished(runs: list[Unfinished]) -> list[str]:
    """A line for each lost run, with its log and the log's last lines; the others are named without."""
    lines = []
    for problem in find_lost(runs):
        if problem.status == "lost":
            lines += [f"lost {problem.run}: {problem.reason} (log: {problem.log})", *problem.tail]
    for state in ("running", "waiting"):
        names = [run.name for run in runs if run.state == state]
        lines += [f"{state}: {', '.join(names)}"] if names else []
    return lines


def find_problems(logs: Logs, runs: pd.DataFrame) -> list[Problem]:
    """Find crashed and diverged runs, with reason and log; a crash with its log's last lines."""
    found = []
    for row in runs[runs["status"] != "done"].sort_values(["status", "run"]).itertuples():
        reason = "no reason recorded" if pd.isna(row.reason) else " ".join(str(row.reason).split())
        tail = read_tail(find_log(logs, row.run)) if row.status == "crashed" else []
        found.append(Problem(row.status, row.run, reason, None if pd.isna(row.log) else row.log, tail))
    return found


def find_lost(unfinished: list[Unfinished]) -> list[Problem]:
    """Say of runs without an outcome what is known; of lost ones with their log's last lines."""
    whys = {"lost": WHY_LOST, "running": "at work now", "waiting": "not begun"}
    return [
        Problem(u.state, u.name, whys[u.state], str(u.log), read_tail(u.log) if u.state == "lost" else [])
        for u in unfinished
    ]


def list_problems(logs: Logs, runs: pd.DataFrame) -> list[str]:
    """List crashed and diverged runs, a line each with reason and log; under a crash its log's last lines."""
    lines = []
    for problem in find_problems(logs, runs):
        end = f" (log: {problem.log})" if problem.log else ""
        lines += [f"{problem.status} {problem.run}: {problem.reason}{end}", *problem.tail]
    return lines


def read_tail(log: Path | None) -> list[str]:
    """Return the last lines of a job log, indented; it may be missing or hold any bytes."""
    if log is None or not log.is_file():
        return ["    (no log file)"]
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    return [f"    {line.expandtabs()}" for line in lines[-TAIL_LINES:]] or ["    (empty log)"]
