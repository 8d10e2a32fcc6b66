"""Which GPUs a process may use, and how local jobs get one each without asking one another.

Snakemake hands out counts, never ids. Each slot is a file lock in a folder of this machine: it is held by
the process that trains, and the kernel frees it when that process is gone, however it ended.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from zo.errors import UserError


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Ids a process may use: CUDA_VISIBLE_DEVICES where it is set, else what nvidia-smi lists."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = dict.fromkeys(name.strip() for name in given.split(","))
        return [name for name in names if name not in ("", "-1", "none")]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(":")[0].split()[1] for line in listing.stdout.splitlines() if line.startswith("GPU ")]


def take_gpus(count: int, patience: float = 86400.0) -> list[str]:
    """Hold ``count`` GPUs of this machine until the process ends, and make only them visible to torch.

    Waits up to ``patience`` seconds for a free one. Without any GPU, or for a count of 0, the process runs
    on the CPU. Raises UserError where more are asked for than there are.
    """
    if count < 0:
        raise UserError(f"gpus: {count} is not allowed: it must be 0 or more")
    ids = visible_gpus()
    if not ids or count == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return []
    if count > len(ids):
        raise UserError(f"gpus: {count} asked for, but this machine shows {len(ids)}: {', '.join(ids)}")
    deadline = time.monotonic() + patience
    while (taken := _try_take(ids, count)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"gpus: none of {', '.join(ids)} became free within {patience:.0f} s")
        time.sleep(0.2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return taken


_held = []  # open files: a lock lives as long as its file does


def _try_take(ids: list[str], count: int) -> list[str] | None:
    """Lock ``count`` of ``ids``, or none of them."""
    folder = _lock_folder()
    taken, files = [], []
    for name in ids:
        file = open(folder / f"gpu-{name.replace('/', '_')}", "a")  # noqa: SIM115 - held on purpose
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        taken.append(name)
        files.append(file)
        if len(taken) == count:
            _held.extend(files)
            return taken
    for file in files:
        file.close()
    return None


def _lock_folder() -> Path:
    """One per user and, inside a Slurm allocation, per job: ids may restart at 0 in each of them."""
    name = f"zo-gpus-{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'local')}"
    folder = Path(os.environ.get("ZO_GPU_LOCKS", tempfile.gettempdir())) / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
