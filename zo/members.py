"""How the members of one batched forward pass see the parameters.

A member is one direction with one sign. M = K S members (K directions, S signs each, signs innermost)
share a forward pass; activations come as [M, n, ...], n rows for each member. ``DenseMembers`` makes each
perturbed matrix in turn. ``LowRankMembers`` never makes one: all members share the product with theta,
and each direction adds its own rank r,

    x (W + s eps U V^T)^T  =  x W^T  +  s eps (x V) U^T.

Shape legend: M members, K directions, S signs, n rows of a member, r rank.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from zo.noise import LowRankNoise
from zo.scratch import Scratch

Fill = Callable[[torch.Tensor, int, int], torch.Tensor]
"""fill(out, query, parameter): write one direction's part at one parameter into ``out``."""


class Members(Protocol):
    """What ``Batched`` asks of them. ``index`` is a parameter's place, None where it is not perturbed."""

    count: int

    def vector(self, parameter: torch.Tensor, index: int) -> torch.Tensor:
        """[M, d]: a vector as each member sees it."""

    def look_up(self, ids: torch.Tensor, table: torch.Tensor, index: int) -> torch.Tensor:
        """[M, n, d]: rows of an embedding table [V, d] by ids [M, n]."""

    def multiply(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        index: int | None,
        bias: torch.Tensor | None,
        bias_index: int | None,
        out_first: bool,
    ) -> torch.Tensor:
        """[M, n, out]: x [M, n, in] times a weight, stored [out, in] if ``out_first``, plus a bias."""


class DenseMembers:
    """Members whose noise is made densely, one matrix at a time, once for all signs of a direction."""

    def __init__(self, fill: Fill, scratch: Scratch, members: Sequence[tuple[int, float]]):
        self._fill, self._scratch, self._members = fill, scratch, members
        self.count = len(members)

    def each(self, parameter: torch.Tensor | None, index: int | None) -> Iterator[torch.Tensor | None]:
        """Yield the parameter as each member sees it; the tensor is overwritten by the next one."""
        if index is None:
            yield from (parameter for _ in self._members)
            return
        noise, perturbed = self._scratch.take(parameter, parameter)
        last_query = None
        for query, scale in self._members:
            if query != last_query:
                self._fill(noise, query, index)
                last_query = query
            torch.add(parameter, noise, alpha=scale, out=perturbed)
            yield perturbed.to(parameter.dtype)

    def vector(self, parameter, index):
        return torch.stack([member.clone() for member in self.each(parameter, index)])

    def look_up(self, ids, table, index):
        parts = zip(ids, self.each(table, index), strict=True)
        return torch.stack([F.embedding(rows, member) for rows, member in parts])

    def multiply(self, x, weight, index, bias, bias_index, out_first):
        biases = bias if bias_index is None else self.vector(bias, bias_index)
        parts = zip(x, self.each(weight, index), strict=True)
        out = torch.stack([part @ (member.t() if out_first else member) for part, member in parts])
        if biases is None:
            return out
        return out.add_((biases if bias_index is None else biases[:, None]).to(out.dtype))


class LowRankMembers:
    """Members whose directions have rank r: one shared product, to which each direction adds its own part."""

    def __init__(
        self, noise: LowRankNoise, scratch: Scratch, queries: Sequence[int], scales: Sequence[float], device
    ):
        self._noise, self._scratch, self._seen = noise, scratch, set()
        self._signs, self.count = len(scales), len(queries) * len(scales)
        self._rows = noise.rows(queries, device)
        scales = torch.tensor(scales, device=device, dtype=torch.float64)
        self._scales = scales.repeat(len(queries))[:, None, None]  # [M, 1, 1]

    def vector(self, parameter, index):
        z = self._noise.vector(self._rows, index).repeat_interleave(self._signs, dim=0)
        wide = torch.promote_types(parameter.dtype, z.dtype)
        return (parameter + z.to(wide) * self._scales[:, 0].to(wide)).to(parameter.dtype)

    def look_up(self, ids, table, index):
        u, v = self._noise.factors(self._rows, index)
        each = torch.arange(len(u), device=ids.device)[:, None]
        left = u[each, ids.reshape(len(u), -1)].view(*ids.shape, -1)
        return self._add_outer(F.embedding(ids, table), left, v)

    def multiply(self, x, weight, index, bias, bias_index, out_first):
        dtype = _product_dtype(x)
        matrix = (weight.t() if out_first else weight).to(dtype)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        if bias_index is not None:
            bias = self.vector(bias, bias_index)[:, None]
        # What each member adds of its own is written first and the shared product accumulated onto it: a
        # bias has to be written anyway, and no second pass over the result is needed.
        kept = self._output(weight, len(rows), matrix)
        if index is None:
            start = torch.zeros((), dtype=dtype, device=x.device) if bias is None else bias.to(dtype)
            own = kept.view(*x.shape[:-1], -1).copy_(start)
        else:
            u, v = self._noise.factors(self._rows, index)
            outer, inner = (u, v) if out_first else (v, u)
            left = self._project(rows, inner.to(dtype)).view(*x.shape[:-1], -1)
            own = self._add_outer(bias, left, outer, out=kept.view(*x.shape[:-1], -1))
        own.view(len(rows), -1).addmm_(rows, matrix)
        return own

    def _output(self, weight: torch.Tensor, rows: int, matrix: torch.Tensor) -> torch.Tensor:
        """[rows, out] to write into: kept from the last forward pass if it is large."""
        first = id(weight) not in self._seen  # used twice, a weight must not overwrite its own first result
        self._seen.add(id(weight))
        kept = self._scratch.output(id(weight), rows, matrix.shape[1], matrix) if first else None
        return matrix.new_empty(rows, matrix.shape[1]) if kept is None else kept

    def _project(self, rows: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        """[K, S n, r]: each direction's rows times its own factor [in, r]; on a CPU one by one is faster."""
        own = rows.view(len(inner), -1, rows.shape[-1])
        if rows.device.type != "cpu":
            return own @ inner
        if inner.shape[-1] == 1:
            return torch.stack([part.mv(factor[:, 0]) for part, factor in zip(own, inner, strict=True)])
        return torch.stack([part @ factor for part, factor in zip(own, inner, strict=True)])

    def _add_outer(self, start, left, right, out=None) -> torch.Tensor:
        """Start + s eps left right^T for every member, [M, n, d].

        ``left`` [M, n, r], ``right`` [K, d, r]; ``start`` broadcasts, None is 0; ``out`` None is ``start``.
        """
        out = start if out is None else out
        wide = torch.promote_types(left.dtype, out.dtype)
        wide = torch.promote_types(wide, torch.float32)
        left = (left.to(wide) * self._scales.to(wide)).to(out.dtype)
        right = right.to(out.dtype)
        if left.shape[-1] == 1:
            row = right[..., 0].repeat_interleave(self._signs, dim=0)[:, None]  # [M, 1, d]
            if start is None:
                return torch.mul(left, row, out=out)
            return torch.addcmul(start.to(out.dtype), left, row, out=out)
        if start is not out:
            out.copy_(torch.zeros((), dtype=out.dtype, device=out.device) if start is None else start)
        grouped = out.view(len(right), -1, out.shape[-1])
        grouped.baddbmm_(left.reshape(len(right), -1, left.shape[-1]), right.transpose(1, 2))
        return out


def _product_dtype(x: torch.Tensor) -> torch.dtype:
    """What autocast would multiply in, for products that are written in place and so not its own to cast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
