"""What a sweep says of itself: ``sweep.json`` (who works, on which runs) and its lines in ``sweep.log``."""

import os
import platform
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from zo.files import read_json, write_json
from zo.planning.footprint import relative_cost
from zo.study import Study
from zo.training.job import append_event, now, seconds_since


def begin_sweep(study: Study, jobs: int) -> None:
    """Record the planned runs, with their predicted work, and the process that is about to start them."""
    results = Path(study.results)
    record = {
        "study": study.workflow.study,
        "host": platform.node(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "started": now(),
        "ended": None,
        "jobs": jobs,
        "runs": {name: relative_cost(spec) for name, spec in study.runs.items()},
    }
    write_json(results / "sweep.json", record)
    ended = sum(count_outcomes(results, study.runs).values())
    append_event(
        results,
        f"sweep started: {len(study.runs)} runs, {ended} of them ended before, at most {jobs} at once "
        f"({record['host']}, process {record['pid']})",
    )


def end_sweep(results: str, succeeded: bool) -> None:
    """Say how the sweep ended, with how many runs in which state."""
    path = Path(results) / "sweep.json"
    record = read_json(path)
    with suppress(OSError):  # a full disk: the runs have said so
        write_json(path, record | {"ended": now()})
    runs = record.get("runs", {})
    counts = count_outcomes(Path(results), runs)
    counts["without an outcome"] = len(runs) - counts.total()
    listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()) if count)
    seconds = seconds_since(record.get("started")) or 0
    how = "ended" if succeeded else "failed"
    append_event(Path(results), f"sweep {how} after {seconds:.0f} s: {len(runs)} runs: {listed}")


def count_outcomes(results: Path, runs) -> Counter:
    """How many of ``runs`` ended in which way; those that did not are in none of the counts."""
    outcomes = (read_json(results / "runs" / run / "outcome.json").get("status") for run in runs)
    return Counter(status for status in outcomes if status)


def is_at_work(record: dict) -> bool | None:
    """Whether the sweep's process lives; None where it runs on another machine and has not said it ended."""
    if not record or record.get("ended"):
        return False
    if record["host"] != platform.node():
        return None
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["process_started"]) < 1  # not a later one of that number
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
