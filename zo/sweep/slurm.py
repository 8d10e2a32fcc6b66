"""How the sweep's Snakemake learns from Slurm that a job has ended.

Its executor plugin asks `sacct` wherever that is installed; without an accounting database `sacct` knows no
job, and Snakemake waits for ever. `squeue` knows an ended job only while slurmctld remembers it.
"""

import re
import subprocess

from zo.errors import UserError

LONGEST_PAUSE_S = 180
"""Between two questions of the plugin (2.8.0). A job that is forgotten in between is never seen to end."""

ANSWER_WITHIN_S = 60
"""A Slurm command that takes longer does not answer."""


def choose_status_command(first_pause_s: int = 40) -> str:
    """`sacct` where the cluster keeps accounts, else `squeue`.

    ``first_pause_s``: seconds before the plugin's first question; it trusts squeue for jobs remembered three
    times as long. Raises UserError where neither command will do: no accounts, and jobs forgotten too soon.
    """
    if _run("sacct", "--noheader", "--allocations", "--starttime=now") is not None:
        return "sacct"
    config = _run("scontrol", "show", "config")
    if config is None:
        raise UserError("Slurm does not answer (scontrol show config): run snakemake on a login node")
    remembered = re.search(r"^MinJobAge\s*=\s*(\d+)", config, re.MULTILINE)
    needed = max(LONGEST_PAUSE_S, 3 * first_pause_s)
    if remembered and int(remembered[1]) <= needed:
        raise UserError(
            f"this cluster keeps no accounts (sacct fails) and forgets an ended job after {remembered[1]} s: "
            f"its end could be missed; ask for slurmdbd, or MinJobAge above {needed} in slurm.conf"
        )
    return "squeue"


def _run(*command: str) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
