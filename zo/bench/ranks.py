"""What several ranks gain: ``python -m zo bench --ranks N``, each rank with the threads given.

The ranks are real processes. In turn one of them makes whole steps alone while the others wait without using
a core, and all of them make the same steps together; so a slow minute of the machine slows both.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from zo.bench.contenders import EPSILON, FAMILIES, LEARNING_RATE, Setting, Workbench
from zo.distributed.launch import launch
from zo.distributed.place import find_place
from zo.distributed.ranks import ALONE, Ranks, join
from zo.engine.estimate import estimate_gradient
from zo.engine.noise import make_noise
from zo.files import write_json

LEAST_SECONDS = 0.5
"""Of one timing: short steps are repeated."""


@dataclass(frozen=True)
class Speedup:
    """One family at one q; seconds are the fastest of all rounds."""

    family: str
    q: int
    ranks: int
    alone: float
    """Seconds of a step on one rank."""
    together: float
    """Seconds of a step on all of them."""
    update: float
    """Seconds of the update alone, which every rank makes whole."""
    exchange: float
    """Seconds of the all-gather alone."""
    best: float
    """Throughput of all over that of one, in the best round."""
    median: float
    load: float
    """Average of the last minute, at the end."""

    @property
    def predicted(self) -> float:
        """By the law of docs/scaling.md: evaluations are shared, the update is not."""
        share = -(-self.q // self.ranks) / self.q
        return self.alone / ((self.alone - self.update) * share + self.update + self.exchange)


def run_ranks_bench(setting: Setting, count: int, queries: list[int], rounds: int, out: Path | None) -> int:
    """Measure on ``count`` new processes; the exit status. They print the table and save the records."""
    task = {"setting": asdict(setting), "queries": queries, "rounds": rounds, "out": out and str(out)}
    return launch(count, [sys.executable, "-m", "zo.bench.ranks", json.dumps(task)])


# -- in each rank -----------------------------------------------------------------------------------


def _measure_all(task: dict, ranks: Ranks) -> None:
    setting = Setting(**task["setting"])
    bench = Workbench(setting, ranks)
    cells = [(family, q) for q in task["queries"] for family in FAMILIES]
    found = [_measure(bench, family, q, task["rounds"], ranks) for family, q in cells]
    if ranks.is_first:
        _print_table(setting, found)
        if task["out"]:
            records = [asdict(each) | {"predicted": each.predicted} for each in found]
            write_json(Path(task["out"]), records)


def _measure(bench: Workbench, family: str, q: int, rounds: int, ranks: Ranks) -> Speedup:
    def step(who: Ranks) -> Callable[[], object]:
        return bench.zo("", q, family, bench.plan(len(who.share(q, 0))), ranks=who).step

    noise = make_noise(family, 0, 1, bench.parameters)
    estimate = estimate_gradient(bench.objective(), bench.parameters, noise, q=q, epsilon=EPSILON)
    parts = {
        "alone": lambda: ranks.is_first and step(ALONE)(),
        "together": step(ranks),
        "update": lambda: ranks.is_first and estimate.add_to_(bench.parameters, -LEARNING_RATE),
        "exchange": lambda: _exchange(ranks, q),
    }
    times = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            times[name].append(_time(part, bench, ranks))
    ratios = [one / all_ for one, all_ in zip(times["alone"], times["together"], strict=True)]
    fastest = {name: min(seconds) for name, seconds in times.items()}
    middle = statistics.median(ratios)
    return Speedup(
        family, q, ranks.count, **fastest, best=max(ratios), median=middle, load=os.getloadavg()[0]
    )


def _exchange(ranks: Ranks, q: int) -> None:
    ranks.share_out(q, 2, lambda own: torch.zeros(len(own), 2, dtype=torch.float64))


def _time(step: Callable[[], object], bench: Workbench, ranks: Ranks) -> float:
    """Seconds of a step on the first rank, all starting together; the first call only warms up."""
    bench.time(step)
    _exchange(ranks, 1)
    repeats = ranks.broadcast(int(LEAST_SECONDS / bench.time(step)) + 1)
    seconds = bench.time(lambda: [step() for _ in range(repeats)]) / repeats
    _exchange(ranks, 1)  # whoever has nothing to do waits here, asleep
    return seconds


def _print_table(setting: Setting, found: list[Speedup]) -> None:
    s = setting
    title = f"{s.architecture} {s.model_size}, vocabulary {s.vocab_size}, {s.batch_size} x {s.block_size}, "
    title += (
        f"{s.dtype}, {s.device}, {found[0].ranks} ranks of {s.threads} threads, load {found[-1].load:.1f}"
    )
    table = Table(title=title, title_justify="left")
    heads = "family, q, ms alone, ms together, update, exchange, best, median, by the law"
    for head in heads.split(", "):
        table.add_column(head, justify="right" if head != "family" else "left")
    for r in found:
        seconds = [f"{1e3 * value:.2f}" for value in (r.alone, r.together, r.update, r.exchange)]
        ratios = [f"{value:.2f}" for value in (r.best, r.median, r.predicted)]
        table.add_row(r.family, str(r.q), *seconds, *ratios)
    Console(width=120).print(table)


if __name__ == "__main__":
    with join(find_place()) as joined:
        _measure_all(json.loads(sys.argv[1]), joined)
