"""What an attempt at a run must know of the ones before it: runs/<run>/attempt.json.

Written before the training starts and closed when it ends, so a record that says nothing of its end is of
an attempt that was killed without a word (SIGKILL, a lost node). If the kernel counted a kill for lack of
memory meanwhile, that is taken for the reason. Memory that ran out once stays short: the limits found are
kept until the run has ended.
"""

import contextlib
import logging
import os
import platform
from pathlib import Path
from typing import Any

from zo.causes import RankLost, name_cause
from zo.errors import UserError
from zo.files import read_json, write_json
from zo.methods import BACKPROP, METHODS
from zo.spec import RunSpec
from zo.training.job import now
from zo.training.record import FINISHED

log = logging.getLogger("zo")

OUT_OF_MEMORY = "out of memory"
KERNEL = "the kernel killed it for memory"


class Attempt:
    """The record of one attempt, on disk from its beginning, and the limits that memory sets it."""

    def __init__(self, path: Path, spec: RunSpec, *, retry: bool = False):
        """Read how the last attempt ended. Raises UserError for a ``retry`` of what would fail again."""
        note_silent_kill(path)
        last = read_json(path)
        self._path, self._asked, self._number = path, spec.model_dump(), last.get("number", 0) + 1
        self._started = now()
        same = last.get("spec") == self._asked
        if same and retry and last["ended"] == "bug":
            raise UserError(f"not tried again, for the last attempt ended with a bug: {last['reason']}")
        going_on = same and last["ended"] not in FINISHED
        self.reductions: list[dict[str, Any]] = last["reductions"] if going_on else []
        """What was given up for lack of memory, in order: settings, and why."""
        self._effective = None
        if going_on and last["effective"]:  # with the limits, of which the mode may not read all
            self._effective = RunSpec.make(**last["effective"]).model_copy(update=self.limits)
        if self._effective and last["ended"] == OUT_OF_MEMORY:
            self.reduce(last["reason"])

    @property
    def limits(self) -> dict[str, Any]:
        """Settings that must replace the spec's own: of the plan, or ``gradient_accumulation``."""
        return self.reductions[-1]["settings"] if self.reductions else {}

    @property
    def plan(self) -> dict[str, Any]:
        """How the attempts before laid out their evaluations: memory was free then that may not be now.

        Empty for a first attempt.
        """
        keys = ("plan", "parallel_batch_size")
        return {key: getattr(self._effective, key) for key in keys} if self._effective else {}

    def begin(self, effective: RunSpec | None = None) -> None:
        """Put on disk that an attempt is under way, with these settings as far as they are decided."""
        self._effective = effective or self._effective
        self._write(ended=None, reason=None)

    def reduce(self, reason: str) -> None:
        """Halve what is in memory at once. Raises UserError where nothing is left to halve."""
        smaller = halve_memory(self._effective) if self._effective else None
        if smaller is None:
            self.end("refused", OUT_OF_MEMORY)  # asked for again, it may find more memory
            raise UserError(f"out of memory {_describe_floor(self._effective)} ({reason})")
        self.reductions = [*self.reductions, {"settings": smaller, "reason": reason}]
        words = ", ".join(f"{key} {value}" for key, value in smaller.items())
        log.warning("out of memory (%s): going on with %s", reason, words)

    def end(self, cause: str, reason: str | None = None) -> None:
        """Close the record; a disk that is full must not hide how the attempt ended."""
        with contextlib.suppress(OSError):
            self._write(ended=cause, reason=reason)

    def fail(self, error: BaseException) -> None:
        """Close the record of an attempt that ``error`` ended.

        Where a rank is gone without a word it stays open: the kernel is still to be asked why.
        """
        cause = name_cause(error)
        if isinstance(error, RankLost) and cause != OUT_OF_MEMORY:
            return
        self.end(cause, " ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _write(self, ended: str | None, reason: str | None) -> None:
        record = {
            "number": self._number,
            "spec": self._asked,
            "effective": self._effective and self._effective.model_dump(),
            "reductions": self.reductions,
            "started": self._started,
            "host": platform.node(),
            "pid": os.getpid(),
            "kernel": _kernel_kills(),
            "ended": ended,
            "reason": reason,
        }
        write_json(self._path, record)


def halve_memory(spec: RunSpec) -> dict[str, Any] | None:
    """Settings of the same run that hold about half as much at once, the results the same to rounding.

    Directions in flight are halved down to the sequential plan; then the batch that backprop reads goes in
    more parts, down to single sequences. None where nothing is left to halve.
    """
    used = METHODS[spec.mode].uses
    if "query_budget_q" in used and spec.plan != "sequential":
        in_flight = spec.parallel_batch_size or 1
        return {"plan": "parallel", "parallel_batch_size": in_flight // 2} if in_flight > 1 else _SEQUENTIAL
    if not used & BACKPROP:
        return None
    parts = range(2 * spec.gradient_accumulation, spec.batch_size + 1)
    parts = next((n for n in parts if spec.batch_size % n == 0), None)
    kept = _SEQUENTIAL if "query_budget_q" in used else {}
    return parts and kept | {"gradient_accumulation": parts}


_SEQUENTIAL = {"plan": "sequential", "parallel_batch_size": 1}


def _describe_floor(spec: RunSpec | None) -> str:
    remedy = "take a smaller batch_size, block_size or model_size, or more memory"
    if spec is None:
        return f"before its first step: {remedy}"
    used, floor = METHODS[spec.mode].uses, []
    if "query_budget_q" in used:
        floor.append("one direction at a time, the sequential plan")
    if used & BACKPROP:
        floor.append("one sequence at a time" + (" in backprop" if floor else ""))
    return f"with {' and '.join(floor) or 'one forward pass'}: {remedy}"


def note_silent_kill(path: Path) -> None:
    """Close the record of an attempt that ended without a word, where the kernel says why."""
    last, now = read_json(path), _kernel_kills()
    then = last.get("kernel") or {}
    if not last or last.get("ended") or then.get("boot") != now["boot"]:
        return
    if now["kills"] > then["kills"]:
        write_json(path, last | {"ended": OUT_OF_MEMORY, "reason": KERNEL})


def _kernel_kills() -> dict[str, Any]:
    """How many processes this machine's kernel has killed for memory, and since which start of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:  # not Linux
        return {"boot": None, "kills": 0}
    return {"boot": boot, "kills": int(counts.get("oom_kill", 0))}
