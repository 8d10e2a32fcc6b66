"""Which GPUs a process may use, and how local jobs get slots on them without asking one another.

Snakemake hands out counts, never ids. A GPU has ``jobs_per_gpu`` slots, each a file lock in a folder of this
machine: it is held by the process that trains, and the kernel frees it when that process is gone, however it
ended. So two sweeps, of two users too, never put a job on one slot.
"""

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from zo.errors import UserError
from zo.files import try_hold

SLOTS = "ZO_JOBS_PER_GPU"
"""Environment variable of a job: slots of each GPU (default 1). The workflow sets it."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Ids a process may use: CUDA_VISIBLE_DEVICES where it is set, else what nvidia-smi lists.

    A GPU that is split (MIG) is listed as its parts, which CUDA knows by their UUIDs alone.
    """
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = dict.fromkeys(name.strip() for name in given.split(","))
        return [name for name in names if name not in ("", "-1", "none")]
    return [name for index, _, parts in _list_machine() for name in parts or [index]]


def choose_gpus(wanted: str | Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The ids for a study's key ``gpus``: ``auto`` is all visible ones, ``none`` the CPU, else those named.

    Raises UserError for one that the environment or the machine does not show. No GPU where the environment
    hides all of them.
    """
    if wanted == "none":
        return []
    visible = visible_gpus(environment)
    if wanted == "auto" or environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "none"):
        return visible
    lost = [name for name in wanted if name not in visible]
    if lost and not visible:
        raise UserError(
            f"gpus: {lost[0]!r} is asked for, but nvidia-smi shows no GPU here: take auto or none, or set "
            f"CUDA_VISIBLE_DEVICES={','.join(wanted)} where it is not installed"
        )
    if lost:
        raise UserError(f"gpus: {lost[0]!r} is not among the visible ones: {', '.join(visible)}")
    return list(wanted)


def lack_of_gpus(gpus_per_run: int, ranks: int, there: int) -> str | None:
    """What is wrong where a run takes more GPUs than ``there`` are: two slots of one GPU are not two."""
    if gpus_per_run * ranks <= there:
        return None
    each = f" for each of {ranks} ranks" if ranks > 1 else ""
    return f"gpus_per_run is {gpus_per_run}{each}, but there are {there}"


def unlisted_gpus(ids: Sequence[str]) -> list[str]:
    """Those numbers that nvidia-smi does not list, where it lists any: a variable may say what it likes."""
    there = [index for index, _, _ in _list_machine()]
    return [name for name in ids if there and name.isdecimal() and name not in there]


def take_gpus(count: int, patience: float = 86400.0) -> list[str]:
    """Hold a slot on each of ``count`` different GPUs until the process ends; only they are visible to torch.

    Waits up to ``patience`` seconds for free ones. Without any GPU, or for a count of 0, the process runs
    on the CPU. Raises UserError where more are asked for than there are.
    """
    if count < 0:
        raise UserError(f"gpus: {count} is not allowed: it must be 0 or more")
    ids, slots = visible_gpus(), _slots()
    if not ids or count == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return []
    if count > len(ids):
        raise UserError(f"gpus: {count} asked for, but this machine shows {len(ids)}: {', '.join(ids)}")
    # A number means the same GPU to CUDA as to nvidia-smi, whichever of several kinds is the fastest.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    deadline = time.monotonic() + patience
    while (taken := _try_take(ids, count, slots)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"gpus: none of {', '.join(ids)} became free within {patience:.0f} s")
        time.sleep(0.2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return taken


def _slots() -> int:
    text = os.environ.get(SLOTS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{SLOTS}: {text!r} is not allowed: it must be a whole number from 1")
    return int(text)


_held = []  # open files: a lock lives as long as its file does


def _try_take(ids: list[str], count: int, slots: int) -> list[str] | None:
    """Lock a slot on ``count`` of ``ids``, or none of them. First slots go first, so that jobs spread out."""
    taken: dict[str, list[int]] = {}
    folder = _lock_folder()
    for slot in range(slots):
        for name in ids:
            if len(taken) < count and name not in taken:
                taken |= {name: files} if (files := _try_slot(folder, name, slot, slots)) else {}
    if len(taken) == count:
        _held.extend(file for files in taken.values() for file in files)
        return [name for name in ids if name in taken]
    _close(file for files in taken.values() for file in files)
    return None


def _try_slot(folder: Path, name: str, slot: int, slots: int) -> list[int]:
    """Lock one slot: the open files that hold it, or an empty list.

    A job that has its GPU alone holds the GPU's own file; jobs that share one hold that file together and
    their slot's alone. So a sweep that shares never gets onto a GPU that another one believes its own.
    """
    own = f"gpu-{_one_name(name)}"
    files: list[int] = []
    for lock, shared in [(own, slots > 1), *([(f"{own}-slot-{slot}", False)] if slots > 1 else [])]:
        files.append(_open_lock(folder / lock))
        if not try_hold(files[-1], shared):
            _close(files)
            return []
    return files


def _close(files) -> None:
    for file in files:
        os.close(file)


def _lock_folder() -> Path:
    """One a machine, for all users; inside a Slurm allocation one a job: ids may restart at 0 in each.

    Not in TMPDIR, which two shells may set differently.
    """
    name = f"zo-gpus-{os.environ.get('SLURM_JOB_ID', 'local')}"
    folder = Path(os.environ.get("ZO_GPU_LOCKS", "/tmp")) / name
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    except FileExistsError:
        pass
    return folder


def _open_lock(path: Path) -> int:
    """Open a lock file that any user may have made. Nothing is written, so a planted link does no harm."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        os.fchmod(file, 0o644)
        return file


def _one_name(name: str) -> str:
    """A GPU's one name for its lock: its index, also where it was given as (the beginning of) its UUID."""
    if name.startswith("GPU-"):
        fitting = [index for index, uuid, _ in _list_machine() if uuid.startswith(name)]
        name = fitting[0] if len(fitting) == 1 else name
    return name.replace("/", "_")


def _list_machine() -> list[tuple[str, str, list[str]]]:
    """Index, UUID and MIG parts of each GPU, as nvidia-smi lists them; none where it is missing or fails."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found: list[tuple[str, str, list[str]]] = []
    for line in listing.stdout.splitlines():
        uuid = match[1] if (match := re.search(r"\(UUID: ([^)]+)\)", line)) else ""
        if line.startswith("GPU "):
            found.append((line.split(":")[0].split()[1], uuid, []))
        elif found and uuid.startswith("MIG-"):
            found[-1][2].append(uuid)
    return found
