"""What a job leaves for others to see: ``job.json`` at its start, and its lines in the sweep's log.

Another shell, another machine of a shared file system and ``zo status`` read these; nothing asks the process.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zo.files import read_json, write_json

if TYPE_CHECKING:
    from zo.training.record import RunFiles

LONGEST_LINE = 2000
"""Bytes of one event: well under what a single write appends in one piece."""


def now() -> str:
    """UTC, to the second, as every record here spells time."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def seconds_since(timestamp: str | None) -> float | None:
    """Seconds from a ``now()`` of a record until now; None where there was none."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
    except (TypeError, ValueError):
        return None


def append_event(results: Path, text: str) -> None:
    """Append one line to ``sweep.log``: one write to a file opened for appending, so lines stay whole.

    A log that can't be written, on a full disk say, must not cost the run that it is about.
    """
    line = f"{now()} {' '.join(text.split())}".encode()[:LONGEST_LINE] + b"\n"
    with suppress(OSError):
        file = os.open(results / "sweep.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)


@contextmanager
def recorded_job(files: "RunFiles") -> Iterator[None]:
    """Record who runs this run, and in the sweep's log that it started and, unless it ended, why it left."""
    job = _describe_job(files)
    write_json(files.folder / "job.json", job)
    place = f"{job['host']}, process {job['pid']}, GPU {job['gpus'] or 'none'}"
    slurm = f", Slurm job {job['slurm_job_id']}" if job["slurm_job_id"] else ""
    append_event(files.results, f"run started: {files.run} (attempt {job['attempt']}, {place}{slurm})")
    try:
        yield
    except SystemExit as stop:
        append_event(files.results, f"run stopped: {files.run}{_after(files)}: exit status {stop.code}")
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        append_event(files.results, f"run failed: {files.run}{_after(files)}: {reason}")
        raise


def _describe_job(files: "RunFiles") -> dict:
    attempts = read_json(files.folder / "job.json").get("attempt", 0)
    return {
        "run": files.run,
        "pid": os.getpid(),
        "host": platform.node(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "attempt": attempts + 1,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "started": now(),
    }


def note_outcome(files: "RunFiles", status: str, reason: str | None, step: int) -> None:
    """Say in the sweep's log how a run ended."""
    why = f": {reason}" if reason else ""
    append_event(files.results, f"run {status}: {files.run} at step {step}{_after(files)}{why}")


def _after(files: "RunFiles") -> str:
    seconds = seconds_since(read_json(files.folder / "job.json").get("started"))
    return "" if seconds is None else f" after {seconds:.0f} s"
