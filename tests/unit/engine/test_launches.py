"""What a step asks of a GPU, without one: on the meta device every operation is seen, and none computes.

Off the CPU the engine takes the same path whatever the device, so the operations counted here are the kernels
that CUDA would launch, and a copy to the host is a wait.
"""

import contextlib
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2LMHeadModel

from zo.bench.mezo import TunedMezo
from zo.engine import estimate, members, noise
from zo.engine.estimate import estimate_gradient
from zo.engine.noise import make_noise
from zo.engine.objective import Objective
from zo.engine.plan import Plan
from zo.models import model_config
from zo.sizes import GPT2_VOCABULARY

BATCH, TOKENS = 4, 64
FREE = ("empty", "new_empty", "_unsafe_view", "promote_types", "scalar_tensor")
"""Operations that launch nothing: memory that is not written, views by another name."""
LAUNCHES = {"gaussian": (1200, 6100), "rademacher": (1650, 9800), "lowrank": (400, 440)}
"""Of a two-sided step with 1 and with 8 directions: docs/benchmarks.md says so too."""


class Launches(TorchDispatchMode):
    """Counts operations that compute something, and copies between devices that wait."""

    def __init__(self):
        super().__init__()
        self.operations, self.waits = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function.__name__
        is_view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if not is_view and not name.startswith(FREE):
            self.operations[name] += 1
        if "copy" in name and not kwargs.get("non_blocking"):
            source = args[1] if name.startswith("copy_") else args[0]
            if source.device != out.device:
                self.waits.append(name)
        return out

    @property
    def count(self) -> int:
        return sum(self.operations.values())


@pytest.fixture
def step(monkeypatch):
    """A function: the launches of one ZO step of GPT-2 20M, and how often the device was read."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no meta device
    monkeypatch.setattr(members, "_product_dtype", lambda x: x.dtype)
    monkeypatch.setattr(noise, "_private_generator", lambda _: torch.Generator())
    monkeypatch.setattr(estimate, "can_share", lambda *_: True)  # asked once, not every step
    reads = []

    def read(losses):
        reads.append(losses)
        return torch.linspace(1, 2, losses.numel(), dtype=torch.float64)

    monkeypatch.setattr(estimate, "_read", read)
    with torch.device("meta"):
        model = GPT2LMHeadModel(model_config("20M", "gpt2", GPT2_VOCABULARY))
    parameters = list(model.parameters())
    blocks = torch.zeros(BATCH, TOKENS + 1, dtype=torch.long, device="meta")
    objective = Objective(model, F.cross_entropy, {"input_ids": blocks[:, :-1]}, blocks[:, 1:])

    def run(q, family="lowrank", sides="two"):
        reads.clear()
        with Launches() as launches:
            directions = make_noise(family, 0, 1, parameters)
            settings = {"q": q, "epsilon": 1e-3, "sides": sides, "plan": Plan("parallel", 8)}
            found = estimate_gradient(objective, parameters, directions, **settings)
            found.add_to_(parameters, -1e-3)
        return launches, len(reads)

    run.objective, run.parameters = objective, parameters
    return run


@pytest.mark.parametrize("sides", ["two", "one"])
@pytest.mark.parametrize("family", ["gaussian", "rademacher", "lowrank"])
def test_a_step_waits_for_the_device_once(step, family, sides):
    launches, reads = step(8, family, sides)
    assert reads == 1
    assert launches.waits == []


def test_a_low_rank_step_launches_hardly_more_for_eight_directions_than_for_one(step):
    one, four, eight = (step(q)[0].count for q in (1, 4, 8))
    assert four <= 1.25 * one
    assert eight <= 1.25 * one


@pytest.mark.parametrize("family", LAUNCHES)
def test_a_step_launches_as_many_kernels_as_the_docs_say(step, family):
    """Dense noise is drawn and added parameter by parameter, each direction's by itself."""
    assert [step(q, family)[0].count for q in (1, 8)] == pytest.approx(LAUNCHES[family], rel=0.05)


def test_a_low_rank_step_of_eight_directions_launches_a_tenth_of_tuned_mezo(step, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "item", lambda _: 0.5)  # MeZO's own read, once a direction
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *_: make())
    with Launches() as launches:
        mezo = TunedMezo(step.parameters)
        mezo.step(lambda: step.objective.losses()[0], 1e-3, 1e-3, 0)
    assert 10 * step(8)[0].count <= 8 * launches.count


def test_the_count_sees_a_wait_and_a_launch():
    with Launches() as launches:
        x = torch.ones(3, device="meta") * 2
        x.copy_(torch.ones(3))
        x.view(1, 3)
        torch.arange(3, device="meta")
        x.new_empty(3)
    assert launches.waits == ["copy_.default"]
    assert launches.operations["mul.Tensor"] == 1
    assert launches.count == 5  # two of ones, the product, the copy, the range
