"""Seconds of a run's real step on this machine, on random tokens: no corpus is needed."""

import time
from collections.abc import Callable

import torch

from zo.footprint import vocabulary
from zo.ledger import settle
from zo.methods import METHODS, State
from zo.plan import decide_plan, free_memory
from zo.run import build_state
from zo.spec import RunSpec

ENOUGH_S = 10.0
"""A class of runs is timed no longer than this, but for its first two steps."""


def time_steps(spec: RunSpec, device: torch.device, steps: int) -> list[float]:
    """Seconds of up to ``steps`` steps of a run, after one that is not counted: at least one is.

    Of a mode that takes backprop every ``bp_interval``-th step, each is the mean over such a period. Of
    several ranks it is one's share of the directions (of the sequences, where it makes none).
    """
    spec = _share(spec)
    take_step, period = _stepper(spec, device), spec.bp_interval or 1
    take_step(1)
    seconds, began = [], time.perf_counter()
    while len(seconds) < steps and (not seconds or time.perf_counter() - began < ENOUGH_S):
        plain = take_step(1) if period > 1 else 0.0
        seconds.append(((period - 1) * plain + take_step(period)) / period)
    return seconds


def _share(spec: RunSpec) -> RunSpec:
    """What one of a run's ranks evaluates."""
    key = "query_budget_q" if spec.query_budget_q else "batch_size"
    return spec.model_copy(update={"ranks": 1, key: -(-getattr(spec, key) // spec.ranks)})


def _stepper(spec: RunSpec, device: torch.device) -> Callable[[int], float]:
    """A function that takes the step of a number, and says how many seconds it took."""
    vocab_size, tokens = vocabulary(spec), spec.batch_size * spec.block_size
    shape = {"q": spec.query_budget_q or 1, "signs": 2 if spec.sides == "two" else 1, "tokens": tokens}
    free = {"device": device.type, "free_bytes": free_memory(device)}
    plan, _ = decide_plan(spec.plan, spec.parallel_batch_size, **shape, vocab_size=vocab_size, **free)
    state, _ = build_state(spec, vocab_size, device, plan)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(vocab_size, (2, spec.batch_size, spec.block_size + 1), generator=generator)
    batch, guide = blocks.to(device)
    state.learning_rate = 0.0  # the weights stay where they are, and no loss diverges
    return lambda step: _time_step(state, step, batch, guide if spec.bp_dataset else batch)


def _time_step(state: State, step: int, batch: torch.Tensor, guide: torch.Tensor) -> float:
    state.step = step
    settle(batch.device)
    began = time.perf_counter()
    METHODS[state.spec.mode]().step(state, batch, guide)
    settle(batch.device)
    return time.perf_counter() - began
