"""What becomes of a training job that failed, so that one crash costs only its own run.

A job that was killed, or failed by its machine (a full disk), fails, and Snakemake tries again. A bug is not
tried again: the crash is recorded as the run's outcome and the job succeeds, and so does one whose last
attempt the machine failed. The other runs' summary and plots are made, list it, and a last rule fails. The
record is also a file that the rule lists as an input, so the next ``snakemake`` sees another set of inputs
and repeats exactly that run. Kills are never recorded.
"""

from pathlib import Path

from zo.causes import KILLED, may_pass
from zo.files import write_json
from zo.training.attempt import note_silent_kill
from zo.training.record import RunFiles, read_last_rows


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
    rows = read_last_rows(files.live_csv)
    step = int(rows[-1]["step"]) if rows else 0
    files.write_outcome("crashed", f"exit status {exit_status}: {reason}", step=step)
    return 0


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "the log is empty")
