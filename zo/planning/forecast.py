"""What a study will take before it starts: passes, hours, disk, memory; what is made already is not in it.

Times are ranges: of the steps by pace.py, of the wall clock by the sweep's own order of starts. Not in them:
building token caches, downloads, probes, plots and the report.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zo.data.token_cache import is_built
from zo.errors import UserError
from zo.files import read_json
from zo.lengths import total_steps
from zo.planning.footprint import (
    BACKWARD_COST,
    jobs_at_once,
    memory_bytes,
    pass_work,
    passes_per_step,
    relative_cost,
    validation_passes,
)
from zo.planning.pace import FLOPS, Pace, Paces
from zo.planning.progress import is_finished, newest_step
from zo.planning.storage import (
    FIGURES_BYTES,
    FIGURES_BYTES_PER_RUN,
    RECORD_BYTES,
    checkpoints_at_work,
    log_bytes,
    scalar_bytes,
    weights_kept,
)
from zo.spec import RunSpec, dataset_spec
from zo.study import Study
from zo.training.record import RunFiles

START_S = (4.1, 11.0)
"""A run's seconds from its process's start to its end without its steps: on a quiet core and at load 6
(docs/scaling.md); on a GPU not measured."""
KNOWN_NARROW = ("bpe", "bytes", "gpt2")
"""Tokenizers whose ids fit into two bytes up to 65,536 of them; of another the vocabulary is not known."""
TRAINED_SHARE = 0.95
"""Of a corpus; the rest is held out (zo/data/corpus.py)."""


@dataclass(frozen=True)
class RunForecast:
    """What is left of one run. None: its length is not known before its token cache is built."""

    run: str
    mode: str
    scope: str
    model_size: str
    q: int
    batch_size: int
    block_size: int
    state: str
    """``done``, ``begun`` (goes on from its checkpoint) or ``to do``."""
    steps: int | None
    tokens: float | None
    forward_passes: float | None
    backward_passes: float | None
    flops: float | None
    seconds_low: float | None
    seconds_high: float | None
    basis: str | None
    memory_bytes: int
    """Of one of its processes, estimated."""
    slots: int
    """Places that it takes among the processes at once: one for each of its ranks."""
    devices: int
    """GPUs that it keeps, or cores."""
    priority: float


@dataclass(frozen=True)
class Wall:
    """The wall clock on so many GPUs (0: the CPU), and what of them is used."""

    gpus: int
    at_once: int
    """Runs, at most."""
    low: float
    high: float
    device_hours_low: float
    device_hours_high: float
    """GPU-hours; on a CPU core-hours."""


@dataclass(frozen=True)
class Disk:
    """Bytes of one kind of file; None where they are not known yet."""

    kind: str
    bytes: float | None
    how: str


@dataclass(frozen=True)
class Forecast:
    """All of it."""

    study: str
    results: str
    runs: list[RunForecast]
    walls: list[Wall]
    disk: list[Disk]
    cores: int | None
    """Of the machine; None where they are not known and taken to be enough."""

    @property
    def unit(self) -> str:
        """Of what the runs keep busy."""
        return "GPU-hours" if self.walls[0].gpus else "core-hours"

    @property
    def left(self) -> list[RunForecast]:
        """Runs that are not done."""
        return [run for run in self.runs if run.state != "done"]

    @property
    def unknown(self) -> list[RunForecast]:
        """Runs whose length is not known."""
        return [run for run in self.left if run.steps is None]


def forecast(
    study: Study,
    paces: Paces,
    machines: Sequence[int],
    cores: int | None,
    corpus_tokens: float | None = None,
) -> Forecast:
    """Tell what is left of ``study``, and its wall clock on each number of GPUs (0: on the cores alone).

    ``cores`` may be unknown (None) of a machine with GPUs; ``corpus_tokens`` are those of a training corpus
    whose cache is not built. Raises UserError for a machine on which no run of the study fits.
    """
    flow, results = study.workflow, Path(study.results)
    train_tokens = _token_counter(results, corpus_tokens)
    per_run = max(1, flow.gpus_per_run) if paces.gpus else 1
    runs = [
        _forecast_run(spec, RunFiles(results, name), paces, train_tokens(spec), per_run)
        for name, spec in study.runs.items()
    ]
    share = flow.jobs_per_gpu if paces.gpus else 1
    places = {gpus: jobs_at_once(cores, flow.threads, gpus * share, per_run) for gpus in machines}
    walls = [_wall(runs, gpus, processes, share) for gpus, processes in places.items()]
    most = max(wall.at_once for wall in walls)
    disk = _disk(study, runs, most, results, corpus_tokens)
    return Forecast(flow.study, study.results, runs, walls, disk, cores)


def _token_counter(results: Path, given: float | None) -> Callable[[RunSpec], float | None]:
    """A function for the training tokens of a run's corpus: of its cache, else those given."""

    @cache
    def count(dataset) -> float | None:
        meta = read_json(results / "cache" / dataset.folder_name() / "meta.json")
        return meta["tokens"]["train"] if meta else given

    return lambda spec: count(dataset_spec(spec))


def _forecast_run(
    spec: RunSpec, files: RunFiles, paces: Paces, train_tokens: float | None, per_rank: int
) -> RunForecast:
    total = _length(spec, train_tokens)
    made = newest_step(spec, files)
    state = "done" if is_finished(spec, files) else "begun" if made else "to do"
    steps = 0 if state == "done" else None if total is None else max(0, total - made)
    forwards, backwards = passes_per_step(spec)
    pace = paces.of(spec)
    passes = None if steps is None else (steps * forwards, steps * backwards)
    low, high = (None, None) if steps is None else _seconds(spec, steps, pace)
    return RunForecast(
        files.run,
        **{key: getattr(spec, key) for key in ("mode", "scope", "model_size", "batch_size", "block_size")},
        q=spec.query_budget_q,
        state=state,
        steps=steps,
        tokens=None if steps is None else steps * spec.batch_size * spec.block_size,
        forward_passes=passes and passes[0],
        backward_passes=passes and passes[1],
        flops=passes and FLOPS * pass_work(spec) * (passes[0] + BACKWARD_COST * passes[1]),
        seconds_low=low,
        seconds_high=high,
        basis=pace.basis if steps else None,
        memory_bytes=memory_bytes(spec, "cuda" if paces.gpus else "cpu"),
        slots=spec.ranks,
        devices=spec.ranks * (per_rank if paces.gpus else paces.threads),
        priority=relative_cost(spec),
    )


def _length(spec: RunSpec, train_tokens: float | None) -> int | None:
    if spec.epochs and train_tokens is None:
        return None
    epoch = spec.epochs and int(train_tokens - 1) // spec.block_size // spec.batch_size
    return total_steps(spec, epoch)


def _seconds(spec: RunSpec, steps: int, pace: Pace) -> tuple[float, float]:
    """Of a run's process: its steps, its validations at the price of forward passes, its start."""
    if not steps:
        return 0.0, 0.0
    forwards, backwards = passes_per_step(spec)
    equal_steps = steps + validation_passes(spec, steps) / (forwards + BACKWARD_COST * backwards)
    return pace.low * equal_steps + START_S[0], pace.high * equal_steps + START_S[1]


def _wall(runs: Sequence[RunForecast], gpus: int, processes: int, sharing: int) -> Wall:
    """Between runs that don't hinder those that they share a GPU with, and such as only take turns."""
    todo = [run for run in runs if run.seconds_low]
    widest = max((run.devices for run in todo), default=1)
    if gpus and widest > gpus:
        raise UserError(f"--gpus: {gpus} is not allowed: a run of the study takes {widest}")
    at_once = max(1, processes // min((run.slots for run in todo), default=1))
    low = schedule([(run.seconds_low, run.slots, run.priority) for run in todo], processes)
    high = schedule([(run.seconds_high * sharing, run.slots, run.priority) for run in todo], processes)
    least = sum(run.seconds_low * run.devices for run in todo) / sharing
    most = sum(run.seconds_high * run.devices for run in todo)
    return Wall(gpus, at_once, low, high, least / 3600, most / 3600)


def schedule(jobs: Sequence[tuple[float, int, float]], slots: int) -> float:
    """Seconds until the last of (seconds, slots taken, priority) ends.

    The highest priority starts first, each job as soon as enough slots are free.
    """
    free = [0.0] * slots
    for seconds, wanted, _ in sorted(jobs, key=lambda job: -job[2]):
        taken = [heapq.heappop(free) for _ in range(min(wanted, slots))]
        for _ in taken:
            heapq.heappush(free, taken[-1] + seconds)
    return max(free)


def _disk(
    study: Study, runs: Sequence[RunForecast], jobs: int, results: Path, corpus_tokens: float | None
) -> list[Disk]:
    """What is still to be written, by kind; of the token caches also what is there."""
    keep, left = study.workflow.keep, {run.run: run for run in runs if run.state != "done"}
    specs = [study.runs[name] for name in left]
    steps = f", and {len(study.workflow.probe_steps)} probe_steps" if study.workflow.probe_steps else ""
    lengths = [(study.runs[name], run.steps) for name, run in left.items()]
    known = all(steps is not None for _, steps in lengths)
    return [
        *_cache_disk(study, results, corpus_tokens),
        Disk("checkpoints while running", checkpoints_at_work(specs, jobs), f"3 of each of {jobs} at once"),
        Disk("kept weights", weights_kept(study, specs), f"keep: {keep}{steps}"),
        Disk(
            "scalar logs",
            sum(scalar_bytes(spec, steps) for spec, steps in lengths) if known else None,
            "a line a ZO step",
        ),
        Disk(
            "CSV and job logs",
            sum(log_bytes(spec, steps) + RECORD_BYTES for spec, steps in lengths) if known else None,
            "each twice, and the runs' records",
        ),
        Disk(
            "figures and report",
            FIGURES_BYTES + FIGURES_BYTES_PER_RUN * len(runs) if left else 0,
            "as of small sweeps",
        ),
    ]


def _cache_disk(study: Study, results: Path, corpus_tokens: float | None) -> list[Disk]:
    found = []
    for name, dataset in study.caches().items():
        kind, folder = f"token cache {dataset.dataset}", results / "cache" / name
        if is_built(folder):
            there = sum(path.stat().st_size for path in folder.iterdir())
            found.append(Disk(kind, there, "is built"))
        elif corpus_tokens is None:
            found.append(Disk(kind, None, "unknown until it is built, or give --corpus-tokens"))
        else:
            width = 2 if (dataset.vocab_size or 0) <= 2**16 and dataset.tokenizer in KNOWN_NARROW else 4
            found.append(Disk(kind, corpus_tokens * width / TRAINED_SHARE, f"{width} bytes a token"))
    return found
