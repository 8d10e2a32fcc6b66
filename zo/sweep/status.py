"""How far every run of a sweep is, read from the runs' own records alone.

It asks no process, so it works from another shell, over a shared file system and under Slurm. A run is
alive while it holds its folder's lock: the kernel frees that lock with the process, however it ended.
Across machines a lock may not be seen; there a run counts as alive while its log is young.
"""

import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from zo.errors import UserError
from zo.files import is_held, read_json
from zo.sweep.sweep_record import is_at_work
from zo.training.job import seconds_since
from zo.training.record import RunFiles, list_runs, read_last_rows

SILENT_S = 600.0
"""Without a new row for so long, and for five times the usual gap, a run on another machine is lost."""
STATES = {
    "running": "its process lives",
    "queued": "planned, not started",
    "stopped": "its process is gone and it has no outcome: the next snakemake goes on from its checkpoint",
    "lost": "on another machine, and silent for long",
}
"""States that are no outcome; an outcome is its own state: done, diverged, crashed."""


@dataclass(frozen=True)
class RunStatus:
    """One line of the table; None where nothing is known yet."""

    run: str
    state: str
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    seconds: float | None = None
    """Of its last attempt, start-up and validation included; of training alone where that can't be told."""
    peak_memory_mb: float | None = None
    gpus: str | None = None
    host: str | None = None
    slurm_job_id: str | None = None
    attempt: int | None = None
    log: str | None = None
    """What the run said; None before its first attempt."""
    reason: str | None = None


@dataclass(frozen=True)
class SweepStatus:
    """All runs of a results folder, and what the sweep as a whole has left."""

    results: str
    runs: list[RunStatus]
    at_work: bool | None
    """Whether the sweep's Snakemake lives; None where that can't be told."""
    sweep: dict = field(repr=False)
    eta_seconds: float | None = None

    @property
    def counts(self) -> Counter:
        """Runs by state."""
        return Counter(run.state for run in self.runs)

    def as_dict(self) -> dict:
        """For JSON."""
        sweep = {key: value for key, value in self.sweep.items() if key != "runs"}
        own = {"results": self.results, "at_work": self.at_work, "eta_seconds": self.eta_seconds}
        return own | {"counts": self.counts, "sweep": sweep, "runs": [asdict(run) for run in self.runs]}


def read_status(results: Path) -> SweepStatus:
    """Read a results folder. Raises UserError where no run is planned or was started in it."""
    sweep = read_json(results / "sweep.json")
    planned = sweep.get("runs", {})
    found = list_runs(results)
    if not planned and not found:
        raise UserError(f"{results}: no run was planned or started here{_hint(results)}")
    runs = [_read_run(RunFiles(results, name)) for name in planned]
    others = [_read_run(RunFiles(results, name)) for name in found if name not in planned]
    # Runs of an earlier grid lie in the same folder: beside a plan, only what runs now belongs in the table.
    runs += [run for run in others if not planned or run.state in ("running", "lost")]
    return SweepStatus(str(results), runs, is_at_work(sweep), sweep, _time_left(runs, planned))


def _hint(results: Path) -> str:
    inner = sorted(path.parent for path in results.glob("*/runs"))
    return f": did you mean {inner[0]}?" if inner else ": give the results folder of a study"


def _read_run(files: RunFiles) -> RunStatus:
    job, outcome = read_json(files.folder / "job.json"), read_json(files.outcome)
    rows = read_last_rows(files.live_csv)
    state = _judge(files, job, outcome, rows)
    last = rows[-1] if rows else {}
    step, total = _number(last, "step"), read_json(files.folder / "manifest.json").get("steps")
    pace = _pace(rows, job.get("started")) if state == "running" else None
    left = None if None in (pace, total, step) else max(0.0, pace * (total - step) - _age(files.live_csv))
    return RunStatus(
        files.run,
        state,
        step=None if step is None else int(step),
        total=total,
        loss=_latest(rows, "loss"),
        val_loss=_latest(rows, "val_loss"),
        tokens_per_second=_number(last, "tokens_per_second"),
        eta_seconds=left,
        seconds=_spent(files, job, state, _number(last, "seconds")),
        peak_memory_mb=_number(last, "peak_memory_mb"),
        log=str(files.job_log) if files.job_log.exists() else None,
        reason=outcome.get("reason") if state == outcome.get("status") else None,
        **{key: job.get(key) for key in ("gpus", "host", "slurm_job_id", "attempt")},
    )


def _judge(files: RunFiles, job: dict, outcome: dict, rows: list[dict]) -> str:
    if is_held(files.lock):  # a process trains it
        return "running"
    if outcome.get("status"):
        return outcome["status"]
    if not job and not rows:
        return "queued"
    if job.get("host", platform.node()) == platform.node():
        return "stopped"
    silent = _age(files.live_csv if rows else files.folder / "job.json")
    return "running" if silent < max(SILENT_S, 5 * _usual_gap(rows)) else "lost"


def _number(row: Mapping[str, str | None], column: str) -> float | None:
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError):
        return None


def _latest(rows: list[dict], column: str) -> float | None:
    values = (_number(row, column) for row in reversed(rows))
    return next((value for value in values if value is not None), None)


def _pace(rows: list[dict], started: str | None) -> float | None:
    """Wall seconds a step, of this attempt's last rows; of training alone where they are seconds apart."""
    rows = [row for row in rows if row["timestamp"] >= (started or "")]
    if len(rows) < 2 or rows[-1]["step"] == rows[0]["step"]:
        return None
    first, last = rows[0], rows[-1]
    wall = _gap(first, last)
    spent = wall if wall >= 10 else _number(last, "seconds") - _number(first, "seconds")
    return spent / (int(last["step"]) - int(first["step"]))


def _gap(earlier: dict, later: dict) -> float:
    then, now = (datetime.fromisoformat(row["timestamp"]) for row in (earlier, later))
    return (now - then).total_seconds()


def _usual_gap(rows: list[dict]) -> float:
    return _gap(rows[0], rows[-1]) / (len(rows) - 1) if len(rows) > 1 else 0.0


def _age(path: Path) -> float:
    """Seconds since a file was last written; 0 where it is not there."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _time_left(runs: list[RunStatus], planned: dict[str, float]) -> float | None:
    """Seconds to the sweep's end: the work left, at the pace of the work done, as many at once as now.

    Work is what ``footprint.relative_cost`` predicts for each run. None until some of it is done.
    """
    todo = [
        run for run in runs if run.run in planned and run.state in ("queued", "running", "stopped", "lost")
    ]
    done = {run.run: _share(run) for run in runs if run.run in planned and run.seconds}
    work = sum(planned[name] * share for name, share in done.items())
    seconds = sum(run.seconds for run in runs if run.run in done)
    if not todo:
        return 0.0
    if not work or not seconds:
        return None
    left = [planned[run.run] * (1 - done.get(run.run, 0.0)) * seconds / work for run in todo]
    at_once = max(1, sum(run.state == "running" for run in todo))
    return max(sum(left) / at_once, *(run.eta_seconds or 0.0 for run in todo))


def _spent(files: RunFiles, job: dict, state: str, trained: float | None) -> float | None:
    """Seconds that a run took so far, start-up and validation included; at least those of training alone."""
    since = seconds_since(job.get("started"))
    if since is None or state in ("stopped", "lost"):
        return trained
    since -= 0.0 if state == "running" else _age(files.outcome)
    return max(since, trained or 0.0)


def _share(run: RunStatus) -> float:
    """Part of a run that is made."""
    return run.step / run.total if run.step and run.total else 0.0
