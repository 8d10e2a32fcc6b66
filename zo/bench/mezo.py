"""The baseline that ZO steps are timed against: MeZO (Malladi et al., arXiv 2305.17333), Algorithm 1.

Both forms perturb the weights in place, +eps, -2 eps, +eps, and regenerate the noise from one seed four
times a direction. They are here to be measured: they drift (the weights do not come back bit for bit) and
are no method of the project.
"""

from collections.abc import Callable, Sequence

import torch

from zo.engine.noise import Noise
from zo.engine.scratch import Scratch


@torch.no_grad()
def step_as_published(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], epsilon: float, lr: float, seed: int
) -> float:
    """One direction with temporaries: each pass draws z, scales it and makes a new tensor for the sum."""

    def perturb(scale: float) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            z = torch.normal(0.0, 1.0, size=parameter.shape, device=parameter.device, dtype=parameter.dtype)
            parameter.data = parameter.data + scale * z

    perturb(epsilon)
    plus = loss()
    perturb(-2 * epsilon)
    minus = loss()
    perturb(epsilon)
    coefficient = ((plus - minus) / (2 * epsilon)).item()
    perturb(-lr * coefficient)
    return coefficient


class TunedMezo:
    """The same algorithm as well as it can be written: one buffer of the largest layer, in-place adds.

    ``keyed``: with our noise in place of torch's generator, made and added in one pass on a CPU.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], keyed: bool = False):
        self._parameters, self._keyed = parameters, keyed
        self._buffer = Scratch()  # grows in the first step: of its memory, not of what was there before
        self._generator = torch.Generator(parameters[0].device)

    @torch.no_grad()
    def step(self, loss: Callable[[], torch.Tensor], epsilon: float, lr: float, seed: int) -> float:
        """One direction; four noise passes, no allocation."""
        self._perturb(epsilon, seed)
        plus = loss()
        self._perturb(-2 * epsilon, seed)
        minus = loss()
        self._perturb(epsilon, seed)
        coefficient = ((plus - minus) / (2 * epsilon)).item()
        self._perturb(-lr * coefficient, seed)
        return coefficient

    def _perturb(self, scale: float, seed: int) -> None:
        if self._keyed:
            Noise("gaussian", seed, 0).update_(self._parameters, scale, [1.0])
            return
        self._generator.manual_seed(seed)
        for parameter in self._parameters:
            z = self._buffer.take(parameter.shape, parameter)
            parameter.add_(z.normal_(generator=self._generator), alpha=scale)
