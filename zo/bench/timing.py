"""The contenders timed in turn: medians, and what they are in units of one forward pass and of MeZO."""

import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zo.bench.contenders import Contender, Setting, Workbench
from zo.bench.memory import extra_memory
from zo.files import write_json

GPU_SAMPLES = 10
"""Of a contender's turn on a GPU, where a step takes milliseconds."""
STEPLESS = ("inference", "inference-best", "fo", "noise-gaussian", "noise-rademacher")
"""Rows that are no ZO step: not compared with MeZO."""


@dataclass
class Record:
    """One contender at one q; a direction is one finite difference (of fo a step, of inference a pass)."""

    name: str
    q: int
    seconds_per_direction: float
    forwards_per_direction: float = 0.0
    """seconds_per_direction in units of one forward pass at the batch given (inference)."""
    share_of_inference: float | None = None
    """Forward passes a direction needs / forwards_per_direction."""
    times_mezo: float | None = None
    times_mezo_tuned: float | None = None
    step_over_q1: float | None = None
    """Time of a step over that of the same contender at q = 1."""
    extra_memory_mb: float | None = None
    """Peak above that of inference with as many tokens in flight."""
    spread: float = 0.0
    """(slowest - fastest) / median over the rounds."""


def run_bench(
    setting: Setting, queries: list[int], rounds: int, memory: bool, chunks: bool, out: Path | None
) -> None:
    """Measure, print the table, and save the records."""
    bench = Workbench(setting)
    contenders = [*bench.baselines(), *bench.chunks(max(queries))] if chunks else bench.contenders(queries)
    records = measure(bench, contenders, rounds)
    _present(setting, records, out)
    if chunks:
        print(f"auto chooses {bench.plan(max(queries)).directions_in_flight} directions in flight")
    if memory:  # after the times are safe: this takes longer, and each row a process that may fail
        by_name = {(contender.name, contender.q): contender for contender in contenders}
        for record in records:
            if contender := by_name.get((record.name, record.q)):
                record.extra_memory_mb = extra_memory(setting, contender)
        _present(setting, records, out)


def _present(setting: Setting, records: list[Record], out: Path | None) -> None:
    print_table(setting, records)
    if out:
        write_json(out, [asdict(record) for record in records])


def measure(bench: Workbench, contenders: list[Contender], rounds: int) -> list[Record]:
    """Time every contender in turn, ``rounds`` times; medians and ratios."""
    times: dict[tuple[str, int], list[float]] = {(c.name, c.q): [] for c in contenders}
    console = Console(stderr=True)
    for number in range(rounds + 1):  # round 0 warms up
        for contender in contenders:
            seconds = take_turn(bench, contender)
            if number:
                times[contender.name, contender.q] += seconds
        console.print(f"round {number} of {rounds}, load {os.getloadavg()[0]:.1f}", highlight=False)
    records = [_record(contender, times[contender.name, contender.q]) for contender in contenders]
    records = _keep_best_inference(records)
    _add_ratios(records, {(c.name, c.q): c.forwards for c in contenders})
    return records


def take_turn(bench: Workbench, contender: Contender) -> list[float]:
    """Seconds of each of a contender's steps, before another one's turn.

    On a GPU the first one does not count: the others have split the allocator's blocks, and a step that asks
    the driver for memory waits for it.
    """
    if bench.device.type == "cuda":
        bench.time(contender.step)
        repeats = GPU_SAMPLES
    else:
        repeats = 3 if contender.forwards * contender.q <= 2 else 1  # short ones are timed more often
    return [bench.time(contender.step) for _ in range(repeats)]


def _record(contender: Contender, seconds: list[float]) -> Record:
    median = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / median
    return Record(contender.name, contender.q, median / contender.q, spread=spread)


def _keep_best_inference(records: list[Record]) -> list[Record]:
    """Of inference at several batches keep the batch given, and the best as ``inference-best``."""
    best = min((r for r in records if r.name.startswith("inference")), key=lambda r: r.seconds_per_direction)
    first, *rest = [record for record in records if not record.name.startswith("inference x")]
    return [first, Record("inference-best", best.q, best.seconds_per_direction, spread=best.spread), *rest]


def _add_ratios(records: list[Record], forwards: dict[tuple[str, int], float]) -> None:
    found = {(record.name, record.q): record for record in records}
    base = found["inference", 1].seconds_per_direction
    for record in records:
        seconds = record.seconds_per_direction
        record.forwards_per_direction = seconds / base
        record.share_of_inference = forwards.get((record.name, record.q), 1) * base / seconds or None
        if record.name not in STEPLESS:
            record.times_mezo = found["mezo", 1].seconds_per_direction / seconds
            record.times_mezo_tuned = found["mezo-tuned", 1].seconds_per_direction / seconds
            one = found.get((record.name, 1))
            record.step_over_q1 = record.q * seconds / one.seconds_per_direction if one else None


def print_table(setting: Setting, records: list[Record]) -> None:
    """For people: one row a contender."""
    s = setting
    title = (
        f"{s.architecture} {s.model_size}, vocabulary {s.vocab_size}, {s.batch_size} x {s.block_size} tokens"
    )
    title += f", {s.dtype}, {s.device}, {s.threads} threads, load {os.getloadavg()[0]:.1f}"
    table = Table(title=title, title_justify="left")
    heads = ["name", "q", "ms/direction", "forwards", "share", "x mezo", "x tuned"]
    heads += ["over q=1", "extra MiB", "spread"]
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    for r in records:
        ratios = (r.forwards_per_direction, r.share_of_inference, r.times_mezo)
        ratios += (r.times_mezo_tuned, r.step_over_q1)
        cells = ["" if value is None else f"{value:.2f}" for value in ratios]
        extra = "" if r.extra_memory_mb is None else f"{r.extra_memory_mb:.0f}"
        milliseconds = f"{r.seconds_per_direction * 1e3:.1f}"
        table.add_row(r.name, str(r.q), milliseconds, *cells, extra, f"{r.spread:.0%}")
    Console(width=140).print(table)
