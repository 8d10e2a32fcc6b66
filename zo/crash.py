"""What becomes of a training job that failed, so that one crash costs only its own run.

A job that was killed, or failed by its machine (a full disk), fails, and Snakemake tries again. A bug is not
tried again: the crash is recorded as the run's outcome and the job succeeds, and so does one whose last
attempt the machine failed. The other runs' summary and plots are made, list it, and a last rule fails. The
record is also a file that the rule lists as an input, so the next ``snakemake`` sees another set of inputs
and repeats exactly that run. Kills are never recorded.
"""

from pathlib import Path

from zo.attempt import note_silent_kill
from zo.causes import KILLED, may_pass
from zo.files import write_json
from zo.record import RunFiles


def handle_crash(results: Path, run: str, exit_status: int, last_attempt: bool, record: bool = True) -> int:
    """Record a crash that no other attempt will mend; the exit status that the job should end with.

    ``record`` False is for a run outside the grid: no summary would list it, so its job must fail.
    """
    files = RunFiles(results, run)
    note_silent_kill(files.attempt)  # here and now: the next attempt may be on another machine
    reason = _last_line(files.job_log)
    if exit_status in KILLED or not record or (may_pass(exit_status, reason) and not last_attempt):
        return exit_status
    files.make_folders()
    count = len(list(files.folder.glob("crash*.json")))
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
