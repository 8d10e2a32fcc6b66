"""Seconds that a step of a run will take, as a range, and what that is told from.

The best basis that there is, in this order: steps timed here (measure.py), finished runs of the results
folder, what the user says of the machine, and else an assumption. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zo.errors import UserError
from zo.files import read_json
from zo.planning.footprint import (
    BACKWARD_COST,
    GPU_RATE,
    MEASURED_THREAD_RATES,
    PASS_OVERHEAD,
    PASS_S,
    members_in_flight,
    pass_work,
    passes_per_step,
    sharing_ranks,
    step_work,
)
from zo.spec import AXES, RunSpec
from zo.training.record import FINISHED, RunFiles, read_last_rows

ASSUMED_PEAK = {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}
"""FLOP/s of an H100 or H200 by NVIDIA's data sheet, dense; no GPU was measured by this project."""
ASSUMED_UTILIZATION = (0.1, 0.4)
"""Of a peak, where nobody says; 40 % is what docs/scaling.md assumes."""
FLOPS = 2
"""Of one token and one parameter in a forward pass: a product and a sum."""
NOT_TIMED = {
    "learning_rate",
    "bp_learning_rate",
    "epsilon",
    "seed",
    "schedule",
    "warmup_steps",
    "cosine_target",
}
"""Axes that change no step's time."""

LEAST_STEPS = 20
"""Of a finished run whose pace is believed: the first steps are slow, and a run may diverge within them."""

Class = tuple
"""What decides the time of a run's step: runs of one class take the same."""


class Pace(NamedTuple):
    """Seconds of one step, from ... to, and on which basis that stands."""

    low: float
    high: float
    basis: str


def class_of(spec: RunSpec) -> Class:
    """The settings that decide a step's time, with the vocabulary."""
    axes = tuple(getattr(spec, key) for key in AXES if key not in NOT_TIMED)
    return (*axes, spec.tokenizer, spec.vocab_size, spec.bp_dataset is not None)


@dataclass(frozen=True)
class Paces:
    """All that is known of how fast steps go on the machine that is planned for."""

    gpus: bool
    threads: int = 1
    """Of one process, where it runs on the CPU."""
    flops: tuple[float, float] | None = None
    """FLOP/s of a GPU or of all threads of a run, least and most, as the user says."""
    measured: Mapping[Class, list[float]] = field(default_factory=dict)
    finished: Mapping[Class, list[float]] = field(default_factory=dict)
    """Seconds a step."""
    per_work: tuple[float, float] | None = None
    """Seconds per unit of ``step_work``, of the fastest and of the slowest finished run."""

    def of(self, spec: RunSpec) -> Pace:
        """Of one run, on the best basis for it."""
        key = class_of(spec)
        if key in self.measured:
            return Pace(min(self.measured[key]), max(self.measured[key]), "measured here")
        if key in self.finished and not self.flops:
            return Pace(min(self.finished[key]), max(self.finished[key]), "finished runs like it")
        if self.per_work and not self.flops:
            low, high = (each * step_work(spec) for each in self.per_work)
            return Pace(low, high, "finished runs of other settings")
        return self._from_flops(spec) if self.flops or self.gpus else self._assume_cpu(spec)

    def _from_flops(self, spec: RunSpec) -> Pace:
        """FLOPs at the rate given; the slower end also waits for every pass to be launched."""
        device = "cuda" if self.gpus else "cpu"
        forwards, backwards = passes_per_step(spec)
        passes = (forwards + BACKWARD_COST * backwards) / sharing_ranks(spec)
        flops, launches = FLOPS * passes * pass_work(spec), passes / members_in_flight(spec, device)
        slow, fast = self.flops or assumed_flops(spec)
        wait = launches * PASS_S if self.gpus else 0.0
        return Pace(flops / fast, flops / slow + wait, "FLOP/s given" if self.flops else "assumed")

    def _assume_cpu(self, spec: RunSpec) -> Pace:
        slow, fast = (rate * self.threads for rate in MEASURED_THREAD_RATES)
        work = step_work(spec)
        bare = work * pass_work(spec) / (pass_work(spec) + PASS_OVERHEAD)
        return Pace(bare / fast, work / slow, "assumed")


def assumed_flops(spec: RunSpec) -> tuple[float, float]:
    """FLOP/s of an unknown GPU: from what job_minutes takes to what a data sheet and 40 % make of it."""
    return FLOPS * GPU_RATE, ASSUMED_PEAK[spec.precision] * max(ASSUMED_UTILIZATION)


def given_flops(tflops: float | None, utilization: float | None) -> tuple[float, float] | None:
    """Least and most FLOP/s by what the user says: None where nothing was. Raises UserError."""
    if tflops is None:
        if utilization is not None:
            raise UserError("--utilization: it is a part of --tflops: give that too")
        return None
    shares = ASSUMED_UTILIZATION if utilization is None else (utilization, utilization)
    if shares[0] > 1:
        raise UserError(f"--utilization: {utilization:g} is not allowed: a part of the peak, at most 1")
    return tflops * 1e12 * shares[0], tflops * 1e12 * shares[1]


def read_finished(results: Path, gpus: bool, threads: int) -> dict[Class, list[tuple[RunSpec, float]]]:
    """Seconds a step of every finished run of a folder that ran on what is planned for, by class."""
    found: dict[Class, list[tuple[RunSpec, float]]] = {}
    for outcome in sorted(results.glob("runs/*/outcome.json")):
        files = RunFiles(results, outcome.parent.name)
        if read_json(outcome).get("status") not in FINISHED or not _ran_on(files, gpus, threads):
            continue
        rows = read_last_rows(files.live_csv)
        try:
            spec = RunSpec.from_json((files.folder / "spec.json").read_text())
            seconds, steps = float(rows[-1]["seconds"]), int(rows[-1]["step"])
        except (OSError, UserError, IndexError, ValueError):
            continue  # a log that was deleted, a spec of another version
        if steps < LEAST_STEPS:
            continue
        found.setdefault(class_of(spec), []).append((spec, seconds / steps))
    return found


def _ran_on(files: RunFiles, gpus: bool, threads: int) -> bool:
    manifest = read_json(files.folder / "manifest.json")
    on_gpu = str(manifest.get("device", "")).startswith("cuda")
    return on_gpu == gpus and (gpus or manifest.get("threads") == threads)


def paces_of(
    results: Path,
    gpus: bool,
    threads: int,
    flops: tuple[float, float] | None = None,
    measured: Mapping[Class, list[float]] | None = None,
) -> Paces:
    """Everything that is known, finished runs of ``results`` among it."""
    runs = read_finished(results, gpus, threads)
    finished = {key: [seconds for _, seconds in pairs] for key, pairs in runs.items()}
    ratios = [seconds / step_work(spec) for pairs in runs.values() for spec, seconds in pairs]
    per_work = (min(ratios), max(ratios)) if ratios else None
    return Paces(gpus, threads, flops, measured or {}, finished, per_work)


def classes(specs: Iterable[RunSpec]) -> dict[Class, RunSpec]:
    """One run of each class."""
    found: dict[Class, RunSpec] = {}
    for spec in specs:
        found.setdefault(class_of(spec), spec)
    return found
