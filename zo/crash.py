"""What becomes of a training job that failed, so that one crash costs only its own run.

Every attempt but the last fails, and Snakemake tries again. On the last one the crash is recorded as the
run's outcome and the job succeeds: the other runs' summary and plots are made, list it, and a last rule
fails. The record is also a file that the rule lists as an input, so the next ``snakemake`` sees another
set of inputs and repeats exactly that run. Kills are never recorded.
"""

import signal
from pathlib import Path

from zo.files import write_json
from zo.record import RunFiles

KILLED = tuple(128 + s for s in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM))


def handle_crash(results: Path, run: str, exit_status: int, last_attempt: bool) -> int:
    """Record a crash on the last attempt; the exit status that the job should end with."""
    if not last_attempt or exit_status in KILLED:
        return exit_status
    files = RunFiles(results, run)
    files.make_folders()
    count = len(list(files.folder.glob("crash*.json")))
    reason = _last_line(files.job_log)
    write_json(files.folder / f"crash{count + 1}.json", {"exit_status": exit_status, "reason": reason})
    files.write_outcome("crashed", f"exit status {exit_status}: {reason}", step=_last_step(files.live_csv))
    return 0


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "the log is empty")


def _last_step(live_csv: Path) -> int:
    """Step of the last whole row of the log."""
    text = live_csv.read_text(errors="replace") if live_csv.exists() else ""
    lines = text.split("\n")[:-1]  # what follows the last line's end is half a row, or nothing
    cells = lines[-1].split(",") if len(lines) > 1 else []
    return int(cells[2]) if len(cells) > 2 and cells[2].isdigit() else 0
