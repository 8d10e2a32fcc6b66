"""How long a run is: in steps, whichever way its spec gives it."""

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

from zo.errors import UserError
from zo.methods import METHODS

if TYPE_CHECKING:
    from zo.spec import RunSpec

LENGTHS = ("max_steps", "epochs", "max_tokens", "max_forwards")
"""Settings of which every run has exactly one."""


def total_steps(spec: "RunSpec", steps_per_epoch: int | None = None) -> int:
    """Length of the run in steps, whichever way the spec gives it. Raises UserError where they are too few.

    ``steps_per_epoch`` is the corpus's, for lengths in epochs.
    """
    key = next(key for key in LENGTHS if getattr(spec, key))
    match key:
        case "max_steps":
            steps = spec.max_steps
        case "epochs":
            steps = math.floor(spec.epochs * steps_per_epoch)
        case "max_tokens":
            steps = int(spec.max_tokens // (spec.batch_size * spec.block_size))
        case "max_forwards":
            steps = _steps_within(spec)
    least = METHODS[spec.mode].least_steps(spec)
    if steps < least:
        few = "not one step" if least == 1 else f"{steps} steps, not the {least} that its phases need,"
        fit = "fits" if least == 1 else "fit"
        raise UserError(f"{key}: {getattr(spec, key):g} is not allowed: {few} of {spec.name} {fit} in it")
    return steps


def _steps_within(spec: "RunSpec") -> int:
    """Steps whose forward passes stay within ``max_forwards``; their cost repeats with the method's cycle."""
    method = METHODS[spec.mode]

    def cost(steps: int) -> int:
        return sum(method.forward_passes(spec, step, steps) for step in range(1, steps + 1))

    cycle = method.cycle(spec)
    cycles, left = divmod(int(spec.max_forwards), cost(cycle))
    return cycles * cycle + bisect_right(range(1, cycle), left, key=cost)
