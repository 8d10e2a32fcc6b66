"""Seconds of a run's real step on this machine, on random tokens: no corpus is needed."""

import time
from collections.abc import Callable

import torch

from zo.engine.plan import decide_plan, free_memory
from zo.methods import METHODS
from zo.planning.footprint import vocabulary
from zo.spec import RunSpec
from zo.step import State
from zo.training.ledger import settle
from zo.training.run import build_state, start_phase

ENOUGH_S = 10.0
"""A class of runs is timed no longer than this, but for its first two steps."""


def time_steps(spec: RunSpec, device: torch.device, steps: int) -> list[float]:
    """Seconds of up to ``steps`` steps of a run, after one that is not counted: at least one is.

    Of a mode whose steps differ, by ``bp_interval`` or by phases, each is the mean over its cycle. Of several
    ranks it is one's share of the directions (of the sequences, where it makes none).
    """
    spec = _share(spec)
    take_step, kinds = _stepper(spec, device), _kinds_of_steps(spec)
    take_step(1)
    seconds, began = [], time.perf_counter()
    while len(seconds) < steps and (not seconds or time.perf_counter() - began < ENOUGH_S):
        spent = sum(len(alike) * take_step(alike[0]) for alike in kinds)
        seconds.append(spent / sum(map(len, kinds)))
    return seconds


def _kinds_of_steps(spec: RunSpec) -> list[list[int]]:
    """The steps of the method's cycle, those together that train the same by as many passes."""
    method, kinds = METHODS[spec.mode], {}
    cycle = method.cycle(spec)
    for step in range(1, cycle + 1):
        passes = method.forward_passes(spec, step, cycle), method.backward_passes(spec, step, cycle)
        kinds.setdefault((method.phase(spec, step, cycle), passes), []).append(step)
    return list(kinds.values())


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
    state, _ = build_state(spec, vocab_size, device, plan, METHODS[spec.mode].cycle(spec))
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(vocab_size, (2, spec.batch_size, spec.block_size + 1), generator=generator)
    batch, guide = blocks.to(device)
    state.learning_rate = 0.0  # the weights stay where they are, and no loss diverges
    return lambda step: _time_step(state, step, batch, guide if spec.bp_dataset else batch)


def _time_step(state: State, step: int, batch: torch.Tensor, guide: torch.Tensor) -> float:
    method = METHODS[state.spec.mode]
    phase = method.phase(state.spec, step, method.cycle(state.spec))
    if phase != state.phase:
        start_phase(state, phase)
    state.step = step
    settle(batch.device)
    began = time.perf_counter()
    method().step(state, batch, guide)
    settle(batch.device)
    return time.perf_counter() - began
