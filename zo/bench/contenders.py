"""What is timed: a model, a batch, and every step that takes its turn on them."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F

from zo.bench.mezo import TunedMezo, step_as_published
from zo.distributed.ranks import ALONE, Ranks
from zo.engine.estimate import estimate_gradient
from zo.engine.noise import make_noise
from zo.engine.objective import Objective
from zo.engine.plan import MOST_IN_FLIGHT, Plan, decide_plan, free_memory
from zo.engine.scratch import Scratch
from zo.models import build_model
from zo.sizes import GPT2_VOCABULARY
from zo.spec import RunSpec
from zo.training.ledger import settle
from zo.training.run import build_run, pick_device

EPSILON, LEARNING_RATE = 1e-3, 1e-6
BATCH_FACTORS = (1, 2, 4, 8)
"""Multiples of the batch among which inference-best is found."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DENSE = ("gaussian", "rademacher")
FAMILIES = (*DENSE, "lowrank")


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model_size: str = "20M"
    architecture: str = "gpt2"
    vocab_size: int = GPT2_VOCABULARY
    batch_size: int = 4
    block_size: int = 64
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 2

    def run_spec(self, q: int) -> RunSpec:
        """The low-rank run whose steps these are. Raises UserError for a setting that no run can have."""
        own_size = {"tokenizer": "bpe", "vocab_size": self.vocab_size}
        return RunSpec.make(
            mode="ZO",
            scope="full",
            query_budget_q=q,
            direction_family="lowrank",
            plan="parallel",
            learning_rate=LEARNING_RATE,
            max_steps=10**6,
            model_size=self.model_size,
            architecture=self.architecture,
            batch_size=self.batch_size,
            block_size=self.block_size,
            **({"tokenizer": "gpt2"} if self.vocab_size == GPT2_VOCABULARY else own_size),
        )


@dataclass(frozen=True)
class Contender:
    """A step to time, how many directions it evaluates, and the forward passes that these need."""

    name: str
    q: int
    make: Callable[[], Callable[[], object]]
    """Its step, which may take a model of its own: of many contenders one may be all that is measured."""
    forwards: float
    """That one direction needs at least; 0 for what evaluates none."""
    members: int = 1
    """In flight at once: what its memory is compared with."""

    @cached_property
    def step(self) -> Callable[[], object]:
        return self.make()


class Workbench:
    """A model, a batch, and every contender on them; each rank has its own."""

    def __init__(self, setting: Setting, ranks: Ranks = ALONE):
        self.setting, self.device = setting, pick_device(setting.device, ranks)
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
        """One forward pass and its losses, taken member by member as in ours, nothing else."""
        rows = torch.arange(repeats * self.setting.batch_size, device=self.device).view(repeats, -1)
        with torch.no_grad():
            return self.objective(repeats).losses(rows)

    def time(self, step: Callable[[], object]) -> float:
        """Seconds that a step takes, its last kernel included."""
        start = time.perf_counter()
        step()
        settle(self.device)
        return time.perf_counter() - start

    def contenders(self, queries: list[int]) -> list[Contender]:
        """Everything that is compared, by name and q."""
        return [*self.baselines(), *(contender for q in queries for contender in self.ours(q))]

    def baselines(self) -> Iterator[Contender]:
        """Inference, an FO step, MeZO, and a noise pass of each dense family."""
        yield Contender("inference", 1, lambda: self.infer, 1)
        for n in BATCH_FACTORS[1:]:
            yield Contender(f"inference x{n}", n, lambda n=n: partial(self.infer, n), 1, members=n)
        yield Contender("fo", 1, lambda: self.step_fo, 1)
        yield Contender("mezo", 1, lambda: self.step_mezo, 2)
        for name, keyed in (("mezo-tuned", False), ("mezo-tuned-philox", True)):
            yield Contender(name, 1, partial(self.tuned_mezo, keyed), 2)
        for family in DENSE:
            yield Contender(f"noise-{family}", 1, partial(self.noise_pass, family), 0)

    def ours(self, q: int) -> Iterator[Contender]:
        """Every family and plan at one q, and the real trainer's step."""
        for family in FAMILIES:
            yield self.zo(f"{family}-sequential", q, family, Plan("sequential"))
            yield self.zo(f"{family}-parallel", q, family, self.plan(q))
        yield self.zo("lowrank-parallel-onesided", q, "lowrank", self.plan(q, 1), "one")
        if q > 1 and self.setting.batch_size % q == 0:
            yield self.zo("lowrank-sharded", q, "lowrank", Plan("parallel", q), sharded=True)
        if self.setting.dtype == "fp32":
            yield Contender("train-loop", q, partial(self.train_loop, q), 2)

    def chunks(self, q: int) -> Iterator[Contender]:
        """The parallel plan with 1, 2, 4 ... directions in flight: which one ``auto`` should choose."""
        for family in FAMILIES:
            for n in (n for n in (1, 2, 4, 8) if n <= min(q, MOST_IN_FLIGHT)):
                yield self.zo(f"{family}-parallel, {n} in flight", q, family, Plan("parallel", n))

    def plan(self, q: int, signs: int = 2) -> Plan:
        """With as many directions in flight as ``plan: auto`` chooses."""
        s = self.setting
        tokens = s.batch_size * s.block_size
        shape = {"q": q, "signs": signs, "tokens": tokens, "vocab_size": s.vocab_size}
        free = free_memory(self.device)
        return decide_plan("parallel", None, **shape, device=self.device.type, free_bytes=free)[0]

    def zo(
        self, name: str, q: int, family: str, plan: Plan, sides: str = "two", sharded=False, ranks=ALONE
    ) -> Contender:
        """One whole SGD step of ours: estimate and update."""
        shared = {
            "q": q,
            "epsilon": EPSILON,
            "sides": sides,
            "sharded": sharded,
            "plan": plan,
            "ranks": ranks,
        }

        def step():
            self.seed += 1
            noise = make_noise(family, self.seed, 1, self.parameters)
            estimate = estimate_gradient(self.objective(), self.parameters, noise, **shared)
            return estimate.add_to_(self.parameters, -LEARNING_RATE)

        signs = 2 if sides == "two" else 1
        forwards = 2 if sharded else q * 2 if sides == "two" else q + 1
        members = 1 if plan.kind == "sequential" else min(q, plan.directions_in_flight) * signs
        return Contender(name, q, lambda: step, forwards / q, members=2 if sharded else members)

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

    def tuned_mezo(self, keyed: bool) -> Callable[[], object]:
        """MeZO without temporaries: with torch's generator, or ``keyed`` with ours."""
        mezo = TunedMezo(self.parameters, keyed)

        def step():
            self.seed += 1
            loss = self.objective().losses
            return mezo.step(lambda: loss()[0], EPSILON, LEARNING_RATE, self.seed)

        return step

    def noise_pass(self, family: str) -> Callable[[], None]:
        """The noise of one direction at every parameter, once."""
        scratch, like = Scratch(), torch.empty(0, device=self.device)

        def step():
            self.seed += 1
            noise = make_noise(family, self.seed, 1)
            for index, parameter in enumerate(self.parameters):
                noise.fill_(scratch.take(parameter.shape, like), 0, index)

        return step

    def train_loop(self, q: int) -> Callable[[], object]:
        """The real trainer's step for the low-rank cell: batch, schedule, ledger and all."""
        cache = Path(tempfile.gettempdir()) / f"zo-bench-cache-{os.getuid()}"  # /tmp is every user's
        run, _ = build_run(self.setting.run_spec(q), cache, self.device)
        return run.take_step
