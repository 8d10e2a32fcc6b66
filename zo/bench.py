"""What a ZO step costs, against pure inference, an FO step and MeZO: ``python -m zo bench``.

One process, one model, one batch, one number of threads; the contenders take turns, so that a slow minute
of the machine slows all of them, and only ratios of one run are meant to be read.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from zo.estimate import Objective, estimate_gradient
from zo.files import write_json
from zo.mezo import TunedMezo, step_as_published
from zo.models import build_model
from zo.noise import make_noise
from zo.plan import Plan, decide_plan
from zo.spec import RunSpec
from zo.train import build_run, pick_device

EPSILON, LEARNING_RATE = 1e-3, 1e-6
BATCH_FACTORS = (1, 2, 4, 8)
"""Multiples of the batch among which inference-best is found."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model_size: str = "20M"
    architecture: str = "gpt2"
    vocab_size: int = 50257
    batch_size: int = 4
    block_size: int = 64
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 2


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


@dataclass(frozen=True)
class Contender:
    """A step to time, how many directions it evaluates, and the forward passes that these need."""

    name: str
    q: int
    step: Callable[[], object]
    forwards: float
    members: int = 1
    """In flight at once: what its memory is compared with."""


class Workbench:
    """A model, a batch, and every contender on them."""

    def __init__(self, setting: Setting):
        self.setting, self.device = setting, pick_device(setting.device)
        torch.set_num_threads(setting.threads)
        s = setting
        self.model = build_model(
            s.model_size, s.architecture, s.vocab_size, 0, device=self.device, dtype=DTYPES[s.dtype]
        )
        self.parameters = list(self.model.parameters())
        generator = torch.Generator().manual_seed(0)
        shape = (s.batch_size, s.block_size + 1)
        self.blocks = torch.randint(s.vocab_size, shape, generator=generator).to(self.device)
        self.seed = 0

    def objective(self, repeats: int = 1) -> Objective:
        """The loss of the batch, repeated to ``repeats`` times its size."""
        blocks = self.blocks.repeat(repeats, 1)
        return Objective(self.model, F.cross_entropy, {"input_ids": blocks[:, :-1]}, blocks[:, 1:])

    def infer(self, repeats: int = 1) -> torch.Tensor:
        """One forward pass and its loss, nothing else."""
        with torch.no_grad():
            return self.objective(repeats).losses()

    def contenders(self, queries: list[int]) -> list[Contender]:
        """Everything that is compared, by name and q."""
        self._tuned = TunedMezo(self.parameters)
        found = [Contender("inference", 1, self.infer, 1)]
        for n in BATCH_FACTORS[1:]:
            found.append(Contender(f"inference x{n}", n, lambda n=n: self.infer(n), 1, members=n))
        found += [
            Contender("fo", 1, self.step_fo, 1),
            Contender("mezo", 1, self.step_mezo, 2),
            Contender("mezo-tuned", 1, self.step_mezo_tuned, 2),
        ]
        for q in queries:
            for family in ("gaussian", "rademacher", "lowrank"):
                found.append(self.zo(f"{family}-sequential", q, family, Plan("sequential")))
                found.append(self.zo(f"{family}-parallel", q, family, self.plan(q)))
            found.append(self.zo("lowrank-parallel-onesided", q, "lowrank", self.plan(q, 1), "one"))
            if q > 1 and self.setting.batch_size % q == 0:
                found.append(self.zo("lowrank-sharded", q, "lowrank", Plan("parallel", q), sharded=True))
            if self.setting.dtype == "fp32":
                found.append(self.train_loop(q))
        return found

    def plan(self, q: int, signs: int = 2) -> Plan:
        """With as many directions in flight as ``plan: auto`` chooses."""
        s = self.setting
        tokens = s.batch_size * s.block_size
        shape = {"q": q, "signs": signs, "tokens": tokens, "vocab_size": s.vocab_size}
        return decide_plan("parallel", None, **shape, device=self.device.type)[0]

    def zo(self, name: str, q: int, family: str, plan: Plan, sides: str = "two", sharded=False) -> Contender:
        """One whole SGD step of ours: estimate and update."""
        shared = {"q": q, "epsilon": EPSILON, "sides": sides, "sharded": sharded, "plan": plan}

        def step():
            self.seed += 1
            noise = make_noise(family, self.seed, 1, self.parameters)
            estimate = estimate_gradient(self.objective(), self.parameters, noise, **shared)
            return estimate.add_to_(self.parameters, -LEARNING_RATE)

        signs = 2 if sides == "two" else 1
        forwards = 2 if sharded else q * 2 if sides == "two" else q + 1
        members = 1 if plan.kind == "sequential" else min(q, plan.directions_in_flight) * signs
        return Contender(name, q, step, forwards / q, members=1 if sharded else members)

    def step_fo(self) -> None:
        """Backprop and plain SGD."""
        for parameter in self.parameters:
            parameter.requires_grad_()
        gradients = torch.autograd.grad(self.objective().losses().sum(), self.parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-LEARNING_RATE)

    def step_mezo(self) -> None:
        """MeZO as published."""
        with torch.random.fork_rng(devices=[]):
            self.seed += 1
            loss = self.objective().losses
            step_as_published(lambda: loss()[0], self.parameters, EPSILON, LEARNING_RATE, self.seed)

    def step_mezo_tuned(self) -> None:
        """MeZO without temporaries."""
        self.seed += 1
        loss = self.objective().losses
        self._tuned.step(lambda: loss()[0], EPSILON, LEARNING_RATE, self.seed)

    def train_loop(self, q: int) -> Contender:
        """The real trainer's step for the low-rank cell: batch, schedule, ledger and all."""
        s = self.setting
        tokenizer = {"tokenizer": "gpt2"} if s.vocab_size == 50257 else {"tokenizer": "bpe"}
        if s.vocab_size != 50257:
            tokenizer["vocab_size"] = s.vocab_size
        spec = RunSpec.make(
            mode="ZO",
            scope="full",
            query_budget_q=q,
            direction_family="lowrank",
            plan="parallel",
            learning_rate=LEARNING_RATE,
            max_steps=10**6,
            model_size=s.model_size,
            architecture=s.architecture,
            batch_size=s.batch_size,
            block_size=s.block_size,
            **tokenizer,
        )
        cache = Path(tempfile.gettempdir()) / "zo-bench-cache"
        run, _ = build_run(spec, cache, self.device)
        return Contender("train-loop", q, run.take_step, 2)


def measure(setting: Setting, queries: list[int], rounds: int, memory: bool) -> list[Record]:
    """Time every contender in turn, ``rounds`` times; medians, ratios, and memory from fresh processes."""
    bench = Workbench(setting)
    contenders = bench.contenders(queries)
    times: dict[tuple[str, int], list[float]] = {(c.name, c.q): [] for c in contenders}
    console = Console(stderr=True)
    for number in range(rounds + 1):  # round 0 warms up
        for contender in contenders:
            repeats = 3 if contender.forwards * contender.q <= 2 else 1  # short ones are timed more often
            for _ in range(repeats):
                seconds = _time(contender.step, bench.device)
                if number:
                    times[contender.name, contender.q].append(seconds)
        console.print(f"round {number} of {rounds}, load {os.getloadavg()[0]:.1f}", highlight=False)
    records = [_record(contender, times[contender.name, contender.q]) for contender in contenders]
    records = _keep_best_inference(records)
    _add_ratios(records, {(c.name, c.q): c.forwards for c in contenders})
    if memory:
        by_name = {(contender.name, contender.q): contender for contender in contenders}
        for record in records:
            if contender := by_name.get((record.name, record.q)):
                record.extra_memory_mb = _memory_in_child(setting, contender)
    return records


def _time(step: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


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
        record.share_of_inference = forwards.get((record.name, record.q), 1) * base / seconds
        if record.name not in ("inference", "inference-best", "fo"):
            record.times_mezo = found["mezo", 1].seconds_per_direction / seconds
            record.times_mezo_tuned = found["mezo-tuned", 1].seconds_per_direction / seconds
            one = found.get((record.name, 1))
            record.step_over_q1 = record.q * seconds / one.seconds_per_direction if one else None


def _memory_in_child(setting: Setting, contender: Contender) -> float:
    """Peak of one contender in a process of its own, MiB above inference with as many tokens in flight."""
    task = {
        "setting": asdict(setting),
        "name": contender.name,
        "q": contender.q,
        "members": contender.members,
    }
    command = [sys.executable, "-m", "zo.bench", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _measure_memory(task: dict) -> float:
    bench = Workbench(Setting(**task["setting"]))
    steps = {(c.name, c.q): c.step for c in bench.contenders([task["q"]])}
    for _ in range(2):
        bench.infer(task["members"])
    before = peak_mb(bench.device)
    step = steps.get((task["name"], task["q"]), bench.infer)
    for _ in range(2):
        step()
    return peak_mb(bench.device) - before


def peak_mb(device: torch.device) -> float:
    """Most memory so far, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_bench(setting: Setting, queries: list[int], rounds: int, memory: bool, out: Path | None) -> None:
    """Measure, print the table, and save the records."""
    records = measure(setting, queries, rounds, memory)
    print_table(setting, records)
    if out:
        write_json(out, [asdict(record) for record in records])


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


if __name__ == "__main__":
    print(_measure_memory(json.loads(sys.argv[1])))
