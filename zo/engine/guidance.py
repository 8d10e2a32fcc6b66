"""Directions drawn around a backprop gradient (the Instruct method).

    u_i = c g/|g| + sqrt(1 - c^2) n_i,     |n_i| = 1, n_i orthogonal to g, c the asked cosine

Both parts are unit vectors over all parameters together, so |u_i| = 1 and cos(u_i, g) = c: epsilon is the
norm of the perturbation. E[u u^T g] = c^2 g, hence the factor 1/c^2 of the estimate.
"""

from collections.abc import Sequence

import torch

from zo.engine.directions import Directions, row_blocks
from zo.engine.objective import dot


class GuidedDirections(Directions):
    """Makes u_i = a_i g + b_i z_i from a stored gradient and regenerated noise z_i.

    Raises FloatingPointError for a gradient that is zero or not finite: nothing can be drawn around it.
    """

    def __init__(self, noise: Directions, gradient: Sequence[torch.Tensor], cosine_target: float, q: int):
        self._noise, self._gradient = noise, [torch.atleast_1d(g) for g in gradient]
        self._norm = dot(gradient, gradient).item() ** 0.5
        if not 0 < self._norm < float("inf"):
            raise FloatingPointError(
                f"the guiding gradient has norm {self._norm}: no direction can be drawn around it"
            )
        self.scale = 1 / cosine_target**2
        self._weights = [self._weigh(*sums, cosine_target) for sums in self._sum_products(noise, q)]

    def _weigh(self, product: float, square: float, c: float) -> tuple[float, float]:
        """(a, b) of u = a g + b z: take g's part out of z, normalise what is left, put c g/|g| in."""
        along = product / self._norm
        b = (1 - c**2) ** 0.5 / max(square - along**2, 1e-300) ** 0.5
        return (c - b * along) / self._norm, b

    def _sum_products(self, directions: Directions, q: int) -> list[list[float]]:
        """[u . g, u . u] in fp64 of each of q directions, a block of rows at a time: one read in all."""
        sums = []
        for query in range(q):
            total = torch.zeros(2, dtype=torch.float64, device=self._gradient[0].device)
            for index, g in enumerate(self._gradient):
                for rows in row_blocks(g):
                    u = directions.fill_(torch.empty_like(g[rows]), query, index, rows.start)
                    total += torch.stack([dot([u], [g[rows]]), dot([u], [u])])
            sums.append(total)
        return torch.stack(sums).tolist()

    def prepare(self, queries, device):
        self._noise.prepare(queries, device)

    def fill_(self, out, query, parameter, start=0):
        a, b = self._weights[query]
        self._noise.fill_(out, query, parameter, start)
        return out.mul_(b).add_(self._gradient[parameter][start : start + len(out)], alpha=a)

    def cosines(self) -> list[float]:
        """Measured cosine of each direction with the gradient: of u as it is made, not as it was meant."""
        measured = self._sum_products(self, len(self._weights))
        return [product / (square**0.5 * self._norm) for product, square in measured]
