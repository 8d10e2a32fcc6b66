"""Directions drawn around a backprop gradient (the Instruct method).

    u_i = c g/|g| + sqrt(1 - c^2) n_i,     |n_i| = 1, n_i orthogonal to g, c the asked cosine

Both parts are unit vectors over all parameters together, so |u_i| = 1 and cos(u_i, g) = c: epsilon is the
norm of the perturbation. E[u u^T g] = c^2 g, hence the factor 1/c^2 of the estimate.
"""

from collections.abc import Sequence

import torch

from zo.engine.directions import Directions
from zo.engine.objective import dot


class GuidedDirections(Directions):
    """Makes u_i = a_i g + b_i z_i from a stored gradient and regenerated noise z_i.

    Raises FloatingPointError for a gradient that is zero or not finite: nothing can be drawn around it.
    """

    def __init__(self, noise: Directions, gradient: Sequence[torch.Tensor], cosine_target: float, q: int):
        norm = dot(gradient, gradient) ** 0.5
        if not 0 < norm < float("inf"):
            raise FloatingPointError(
                f"the guiding gradient has norm {norm}: no direction can be drawn around it"
            )
        self.scale = 1 / cosine_target**2
        self._noise, self._gradient = noise, gradient
        self._weights = [self._weigh(query, norm, cosine_target) for query in range(q)]

    def _weigh(self, query: int, norm: float, c: float) -> tuple[float, float]:
        """(a, b) of u = a g + b z: take g's part out of z, normalise what is left, put c g/|g| in."""
        along = squares = 0.0
        for index, g in enumerate(self._gradient):
            z = self._noise.fill_(torch.empty_like(g), query, index)
            along += dot([z], [g]) / norm
            squares += dot([z], [z])
        b = (1 - c**2) ** 0.5 / max(squares - along**2, 1e-300) ** 0.5
        return (c - b * along) / norm, b

    def prepare(self, queries, device):
        self._noise.prepare(queries, device)

    def fill_(self, out, query, parameter, start=0):
        a, b = self._weights[query]
        self._noise.fill_(out, query, parameter, start)
        return out.mul_(b).add_(self._gradient[parameter][start : start + len(out)], alpha=a)

    def cosines(self) -> list[float]:
        """Measured cosine of each direction with the gradient."""
        norm = dot(self._gradient, self._gradient) ** 0.5
        return [self._cosine(query, norm) for query in range(len(self._weights))]

    def _cosine(self, query: int, norm: float) -> float:
        along = squares = 0.0
        for index, g in enumerate(self._gradient):
            u = self.fill_(torch.empty_like(g), query, index)
            along += dot([u], [g])
            squares += dot([u], [u])
        return along / (squares**0.5 * norm)
