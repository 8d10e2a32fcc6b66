"""Writes two sections of docs/scaling.md: the memory of runs on GPUs, and ranks on a cluster.

Arithmetic, no measurement. python docs/make_scaling.py
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zo.planning.footprint import members_in_flight, memory_bytes
from zo.spec import RunSpec
from zo.sweep.preflight import TIGHT

PAGE = Path(__file__).with_name("scaling.md")
BEGIN, END = "<!-- docs/make_scaling.py: {} -->\n", "<!-- end of {} -->\n"

# --- memory: runs that share a GPU ------------------------------------------------------------------

CARDS_GB = (24, 80, 141)
MOST_JOBS = {"20M": 8, "200M": 2, "500M": 1, "1B": 1}
"""Runs that still gain from a neighbour, by reason: one of 200M and more hardly leaves a GPU idle."""
SHARED = {"scope": "full", "batch_size": 8, "block_size": 128, "max_steps": 1}
RUNS = {
    "FO": {"mode": "FO"},
    "ZO q 1": {"mode": "ZO", "query_budget_q": 1},
    "ZO q 8 and more": {"mode": "ZO", "query_budget_q": 8},
}
LESS = ({"parallel_batch_size": 4}, {"parallel_batch_size": 2}, {"plan": "sequential"})
"""What a run can do that does not fit, the mildest first."""


def make_specs() -> Iterator[tuple[str, RunSpec]]:
    """Yield the runs of the table with the words that their rows begin with."""
    for size in MOST_JOBS:
        for words, settings in RUNS.items():
            yield words, RunSpec.make(**SHARED, model_size=size, **settings)


def fit(spec: RunSpec, card_gb: float) -> str:
    """How many of a run share a GPU of so many GB; where none fits, also the setting with which one does."""
    room = TIGHT * card_gb * 1e9
    if jobs := min(MOST_JOBS[spec.model_size], int(room / memory_bytes(spec, "cuda"))):
        return str(jobs)
    for change in LESS:
        if memory_bytes(spec.model_copy(update=change), "cuda") <= room:
            [(key, value)] = change.items()
            return f"0: `{key}: {value}`"
    return "0"


def render_memory() -> str:
    """The table of runs, their memory and how many fit."""
    lines = [
        f"| model | mode | directions in flight | GB a run | {' | '.join(f'on {n} GB' for n in CARDS_GB)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(CARDS_GB)}",
    ]
    for words, spec in make_specs():
        members = members_in_flight(spec, "cuda")
        flight = (members + 1) // 2 if spec.query_budget_q else ""
        cells = [spec.model_size, words, flight, f"{memory_bytes(spec, 'cuda') / 1e9:.1f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, *(fit(spec, gb) for gb in CARDS_GB)]))} |")
    return "\n".join(["", *lines, "", ""])


# --- ranks: one run over many GPUs --------------------------------------------------------------------

GPUS = (8, 64, 1024)
MODELS = {"1B": 1e9, "7B": 7e9, "34B": 34e9, "70B": 70e9}
STEPS = ((1024, 64 * 2048), (64, 4 * 2048))
"""Directions of a step, and tokens of the batch that each is evaluated on: a large one and a small one."""

# Assumed: one H200 and a cluster's network.
PEAK_FLOPS, UTILISATION = 989e12, 0.4
MEMORY_BYTES, MEMORY_RATE = 141e9, 4.8e12
WEIGHT_BYTES = 2
NORMALS = 250e9
"""Gaussian numbers a second of torch's Philox generator on the GPU."""
HOP, WIRE_RATE = 25e-6, 12.5e9
"""Seconds of one message from host to host (TCP, gloo), bytes a second."""

# Measured (docs/benchmarks.md, GPT-2 20M, 2 CPU cores): a noise pass of each family in forward passes.
NOISE_GAUSSIAN, NOISE_RADEMACHER = 0.11, 0.05


@dataclass(frozen=True)
class Family:
    """What a direction costs beside its two forward passes, in an estimate and in the update."""

    numbers: float
    """Per parameter that a direction generates, each time; 0 where it is made of a matrix's sides."""
    rate: float = NORMALS


FAMILIES = {
    "gaussian": Family(1),
    "rademacher": Family(1, NORMALS * NOISE_GAUSSIAN / NOISE_RADEMACHER),
    "lowrank": Family(0),
}


@dataclass(frozen=True)
class Step:
    """One step of a run, and its parts in seconds: the law of docs/scaling.md."""

    parameters: float
    family: Family
    queries: int
    tokens: int

    @property
    def direction(self) -> float:
        """Both evaluations of one direction, its noise made once for both."""
        forward = 2 * self.parameters * self.tokens / (PEAK_FLOPS * UTILISATION)
        return 2 * forward + self.family.numbers * self.parameters / self.family.rate

    @property
    def update(self) -> float:
        """Every rank makes it whole: all noise again, or one product of factors; then the weights."""
        noise = self.queries * self.family.numbers * self.parameters / self.family.rate
        product = 2 * self.queries * self.parameters / (PEAK_FLOPS * UTILISATION)
        weights = 2 * WEIGHT_BYTES * self.parameters / MEMORY_RATE
        return weights + (noise if self.family.numbers else product)

    def exchange(self, ranks: int) -> float:
        """One all-gather round the ring: a hop from each rank to the next, 2 fp64 losses a direction."""
        return (ranks - 1) * HOP + 16 * self.queries / WIRE_RATE if ranks > 1 else 0.0

    def seconds(self, ranks: int) -> float:
        """On so many ranks."""
        return math.ceil(self.queries / ranks) * self.direction + self.update + self.exchange(ranks)

    def efficiency(self, ranks: int) -> float:
        """Throughput over ``ranks`` times that of one."""
        return self.seconds(1) / (ranks * self.seconds(ranks))

    @property
    def pays_up_to(self) -> int:
        """The largest power of two of ranks that work at half efficiency or better."""
        numbers = [2**k for k in range(21)]
        return max(n for n in numbers if self.efficiency(n) >= 0.5)


def render_ranks() -> str:
    """The tables of seconds and efficiency, with what they assume."""
    return "\n" + "\n".join([_assumptions(), *(_table(*step) for step in STEPS)])


def _table(queries: int, tokens: int) -> str:
    lines = [
        f"q = {queries:,} directions, each evaluated on {tokens:,} tokens; seconds a step and efficiency:",
        "",
        f"| model | family | {' | '.join(f'{n:,} GPUs' for n in GPUS)} | half efficient up to |",
        f"| --- | --- | {'--- | ' * len(GPUS)}--- |",
    ]
    for model, parameters in MODELS.items():
        name = model if WEIGHT_BYTES * parameters < 0.9 * MEMORY_BYTES else f"{model} (*)"
        for label, family in FAMILIES.items():
            step = Step(parameters, family, queries, tokens)
            cells = [f"{_spell(step.seconds(n))} s, {step.efficiency(n):.0%}" for n in GPUS]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} | {step.pays_up_to:,} GPUs |")
    return "\n".join([*lines, "", ""])


def _spell(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.2g}" if seconds < 1 else f"{seconds:.1f}"


def _assumptions() -> str:
    ratio = NOISE_RADEMACHER / NOISE_GAUSSIAN
    return (
        f"Assumed: {PEAK_FLOPS / 1e12:.0f} TFLOP/s at {UTILISATION:.0%} (an H200, weights in bf16, "
        f"{MEMORY_BYTES / 1e9:.0f} GB at {MEMORY_RATE / 1e12:.1f} TB/s), {NORMALS / 1e9:.0f} G normals "
        f"a second,\n{HOP * 1e6:.0f} us a hop of gloo's ring, {WIRE_RATE / 1e9:.1f} GB/s. Measured: a sign "
        f"takes {ratio:.2f} of a normal's time\n(a CPU, [benchmarks.md](benchmarks.md)).\n"
    )


SECTIONS = {"memory": render_memory, "ranks": render_ranks}


def splice(page: str) -> str:
    """The page with its sections as they are now."""
    for name, render in SECTIONS.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = page.split(begin)
        page = before + begin + render() + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(splice(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
