"""How weights stored in bf16 take an update that is smaller than the gap between two bf16 numbers.

Rounded to the nearest, a change below half that gap (2^-9 of the weight's size) is lost, at every step
again. Rounded up with the probability of what is cut off, it is kept in the mean (Gupta et al., ICML 2015,
arXiv 1502.02551): add a whole number uniform on 0 ... 65535 to the 32 bits of the fp32 sum, then cut off the
low 16, which bf16 does not have. The numbers are a function of (seed, step, parameter): runs resume and
replay bit for bit.
"""

from collections.abc import Sequence

import torch

from zo.engine.directions import Store, round_to_nearest_, row_blocks
from zo.engine.noise import ROUNDING, Noise

_HIGH = -(1 << 16)
"""Of the 32 bits of an fp32 number, those that bf16 keeps."""


def make_rounding(weights: str, seed: int, step: int) -> Store:
    """How one step's updates are rounded, by the setting ``weights``."""
    return StochasticRounding(seed, step).store_ if weights == "bf16" else round_to_nearest_


class StochasticRounding:
    """The rounding of one step. Only bf16 is rounded so; any other type takes the nearest."""

    def __init__(self, seed: int, step: int):
        self._bits = Noise("sixteen bits", seed, step, ROUNDING)

    def store_(self, out: torch.Tensor, exact: torch.Tensor, parameter: int, start: int = 0) -> None:
        """Write ``exact``, fp32, which it overwrites, into rows start, start + 1 ... of a parameter."""
        if out.dtype == torch.bfloat16:
            bits = self._bits.fill_(torch.empty_like(exact), 0, parameter, start)
            exact.view(torch.int32).add_(bits.to(torch.int32)).bitwise_and_(_HIGH)
        out.copy_(exact)


@torch.no_grad()
def add_(
    parameters: Sequence[torch.Tensor], changes: Sequence[torch.Tensor], alpha: float, store_: Store
) -> None:
    """Parameters += alpha changes (fp32, dense), each sum rounded once; a block of rows at a time."""
    for index, (parameter, change) in enumerate(zip(parameters, changes, strict=True)):
        theta, change = torch.atleast_1d(parameter), torch.atleast_1d(change)
        for rows in row_blocks(theta):
            store_(theta[rows], theta[rows] + alpha * change[rows], index, rows.start)
