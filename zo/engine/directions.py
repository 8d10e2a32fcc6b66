"""What an estimate needs of its directions, and how far they are made at once: a block of rows."""

from collections.abc import Callable, Iterator, Sequence

import torch

Store = Callable[[torch.Tensor, torch.Tensor, int, int], None]
"""store_(out, exact, parameter, start): write fp32 into rows start, start + 1 ... of a narrower parameter."""


def round_to_nearest_(out: torch.Tensor, exact: torch.Tensor, parameter: int, start: int) -> None:
    """What a cast does."""
    out.copy_(exact)


class Directions:
    """Directions u_1 ... u_q over all parameters, made when they are needed, a part of a parameter at a time.

    Subclasses write ``fill_``; what else they write, they do faster than here. Noise is fp32 or better.
    """

    scale = 1.0
    """Of the estimate, beside the mean over q: 1/c^2 for directions drawn around a gradient."""

    def prepare(self, queries: Sequence[int], device: torch.device) -> None:
        """Take note that these directions are asked for next."""

    def fill_(self, out: torch.Tensor, query: int, parameter: int, start: int = 0) -> torch.Tensor:
        """Write rows start, start + 1 ... of direction ``query`` at ``parameter`` into ``out``, contiguous.

        ``start`` and the number of rows are such that whole ``row_blocks`` are asked for.
        """
        raise NotImplementedError

    def fill_rows_(
        self, out: torch.Tensor, query: int, parameter: int, ids: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        """Write the rows ``ids`` [n] of a direction at a parameter [V, d], ``table``, into ``out`` [n, d]."""
        for rows in row_blocks(table):
            part = self.fill_(out.new_empty(table[rows].shape), query, parameter, rows.start)
            here = (ids >= rows.start) & (ids < rows.stop)
            found = part[(ids - rows.start).clamp(0, len(part) - 1)]
            torch.where(here[:, None], found, out, out=out)
        return out

    def perturb_(
        self,
        outs: torch.Tensor,
        theta: torch.Tensor,
        scales: Sequence[float],
        query: int,
        parameter: int,
        start: int = 0,
    ) -> torch.Tensor:
        """outs[s] = theta + scales[s] u, u made once; outs [S, *theta.shape] and of its dtype."""
        noise = self.fill_(outs[-1], query, parameter, start)
        for out, scale in zip(outs, scales, strict=True):  # the last one holds the noise until then
            torch.add(theta, noise, alpha=scale, out=out)
        return outs

    def sum_(self, total: torch.Tensor, weights: Sequence[float], parameter: int) -> torch.Tensor:
        """Write sum_i weights[i] u_i at one parameter into ``total``."""
        for rows in row_blocks(total):
            self._sum_block(total[rows], weights, parameter, rows.start)
        return total

    def update_(
        self,
        parameters: Sequence[torch.Tensor],
        alpha: float,
        weights: Sequence[float],
        store_: Store = round_to_nearest_,
    ) -> None:
        """Parameters += alpha sum_i weights[i] u_i, a block of rows at a time.

        ``store_`` rounds where they are in half precision.
        """
        for index, parameter in enumerate(parameters):
            self._update_one_(torch.atleast_1d(parameter), alpha, weights, index, store_)

    def _update_one_(self, theta, alpha: float, weights: Sequence[float], parameter: int, store_) -> None:
        for rows, total in self._sums(theta, weights, parameter):
            part = theta[rows]
            if part.dtype == total.dtype:
                part.add_(total, alpha=alpha)
            else:  # half precision: one rounding, of the sum
                store_(part, total.mul_(alpha).add_(part), parameter, rows.start)

    def square_norm(self, parameters: Sequence[torch.Tensor], weights: Sequence[float]) -> float:
        """|sum_i weights[i] u_i|^2 over all parameters."""
        return float(
            sum(self._square_norm(torch.atleast_1d(p), weights, i) for i, p in enumerate(parameters))
        )

    def _square_norm(self, theta, weights: Sequence[float], parameter: int) -> torch.Tensor | float:
        sums = (total for _, total in self._sums(theta, weights, parameter))
        return sum(torch.linalg.vector_norm(total, dtype=torch.float64) ** 2 for total in sums)

    def _sums(self, theta, weights: Sequence[float], parameter: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield each block of a parameter's rows and sum_i weights[i] u_i at it, fp32 or better."""
        for rows in row_blocks(theta):
            total = theta.new_empty(theta[rows].shape, dtype=at_least_fp32(theta))
            self._sum_block(total, weights, parameter, rows.start)
            yield rows, total

    def _sum_block(self, total: torch.Tensor, weights: Sequence[float], parameter: int, start: int) -> None:
        total.zero_()
        noise = torch.empty_like(total)
        for query, weight in enumerate(weights):
            total.add_(self.fill_(noise, query, parameter, start), alpha=weight)


_BLOCK = {"cpu": 2**19, "cuda": 2**22}
"""Elements of a block of rows: on a CPU few enough to stay in the cache until they are used, on a GPU so many
that theta + eps z and theta - eps z of a block are no more than a layer's noise, which depends on this."""


def row_blocks(tensor: torch.Tensor) -> list[slice]:
    """Blocks of rows of a parameter whose noise is made at once; they depend on shape and device alone."""
    rows = len(tensor)
    step = max(1, _BLOCK.get(tensor.device.type, _BLOCK["cuda"]) // max(1, tensor.numel() // max(1, rows)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def at_least_fp32(tensor: torch.Tensor) -> torch.dtype:
    """The tensor's dtype, or fp32 if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
