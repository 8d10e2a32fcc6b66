"""Loss, exact gradient and curvature of one batch around given weights, in fp64.

What an estimate is compared with: a single ZO step changes the loss by less than fp32 resolves.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from zo.engine.directions import Directions
from zo.engine.objective import Objective, backpropagate, dense_norm

DISPLACEMENT = 1e-2
"""Norm of the steps that measure curvature: small against theta's, large against fp64's rounding."""


class Point:
    """Loss, gradient and curvature of one batch around theta, in fp64."""

    def __init__(self, objective: Objective, parameters: Sequence[torch.Tensor]):
        self._objective, self._parameters = objective, parameters
        self._theta = [parameter.detach().clone() for parameter in parameters]
        self.d = sum(parameter.numel() for parameter in parameters)
        _, self.gradient, _ = backpropagate(lambda _: objective, objective.targets, parameters)
        self.norm = dense_norm(self.gradient).item()
        self.loss = self._loss()

    def zeros(self) -> list[torch.Tensor]:
        return [torch.zeros_like(theta) for theta in self._theta]

    def direction(self, noise: Directions, query: int) -> list[torch.Tensor]:
        """u_i as the engine makes it for fp32 weights."""
        made = [torch.empty_like(theta, dtype=torch.float32) for theta in self._theta]
        for index, part in enumerate(made):
            noise.fill_(torch.atleast_1d(part), query, index)
        return [part.double() for part in made]

    @torch.no_grad()
    def change(self, direction: Sequence[torch.Tensor], scale: float) -> float:
        """L(theta + scale u) - L(theta)."""
        torch._foreach_add_(self._parameters, direction, alpha=scale)
        try:
            return self._loss() - self.loss
        finally:
            torch._foreach_copy_(self._parameters, self._theta)

    def curvature(self, direction: Sequence[torch.Tensor]) -> float:
        """u'Hu, by a second difference."""
        scale = DISPLACEMENT / dense_norm(direction).item()
        return (self.change(direction, scale) + self.change(direction, -scale)) / scale**2

    def _loss(self) -> float:
        with torch.no_grad():
            return self._objective.losses().item()


def in_fp64(model: torch.nn.Module, parameters) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """A copy of the model and of its given parameters. transformers' RMSNorm computes in fp32 also there."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [named[id(parameter)] for parameter in parameters]
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = _exact_rms_norm(module)
    found = dict(model.named_parameters())
    return model, [found[name] for name in names]


def _exact_rms_norm(module: torch.nn.Module):
    return lambda x: F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
