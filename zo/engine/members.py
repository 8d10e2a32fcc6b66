"""How the members of one forward pass see the parameters.

A member is one direction with one sign. M = K S members (K directions, S signs each, signs innermost)
share a forward pass; activations come as [M, n, ...], n rows for each member. ``DenseMembers`` makes each
perturbed matrix in turn, a block of rows at a time. ``LowRankMembers`` never makes one: all members share
the product with theta, and each direction adds its own rank r,

    x (W + s eps U V^T)^T  =  x W^T  +  s eps (x V) U^T.

Shape legend: M members, K directions, S signs, n rows of a member, r rank.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from zo.engine.directions import Directions, at_least_fp32, row_blocks
from zo.engine.noise import LowRankNoise
from zo.engine.scratch import Scratch


class Members:
    """What a perturbed forward pass asks of them. ``index`` is a parameter's place, None if not perturbed."""

    def __init__(
        self,
        directions: Directions,
        scratch: Scratch,
        queries: Sequence[int],
        scales: Sequence[float],
        parameters: Sequence[torch.Tensor],
    ):
        self._directions, self._scratch, self._seen = directions, scratch, set()
        self._queries, self._scales = list(queries), list(scales)
        self.count = len(self._queries) * len(self._scales)
        directions.prepare(self._queries, parameters[0].device)

    def whole(self, parameter: torch.Tensor, index: int) -> torch.Tensor:
        """A parameter of any shape as the first member sees it."""
        theta = torch.atleast_1d(parameter)
        out = torch.empty_like(theta)
        for rows in row_blocks(theta):
            part = theta[rows].to(at_least_fp32(theta))
            part = self._directions.perturb_(
                part.new_empty(1, *part.shape), part, self._scales[:1], self._queries[0], index, rows.start
            )
            out[rows] = part[0]
        return out.view(parameter.shape)

    def vector(self, parameter: torch.Tensor, index: int) -> torch.Tensor:
        """[M, d]: a vector as each member sees it."""
        theta = parameter.to(at_least_fp32(parameter))
        outs = theta.new_empty(len(self._queries), len(self._scales), *theta.shape)
        for out, query in zip(outs, self._queries, strict=True):
            self._directions.perturb_(out, theta, self._scales, query, index)
        return outs.flatten(0, 1).to(parameter.dtype)

    def look_up(self, ids: torch.Tensor, table: torch.Tensor, index: int) -> torch.Tensor:
        """[M, n, d]: rows of an embedding table [V, d] by ids [M, n]."""
        out = F.embedding(ids, table)
        wide = out.to(at_least_fp32(out)).view(len(self._queries), len(self._scales), -1, out.shape[-1])
        noise = wide.new_empty(wide[0].shape)
        grouped = ids.reshape(len(self._queries), -1)
        for members, own, query in zip(wide, grouped, self._queries, strict=True):
            self._directions.fill_rows_(noise.view(-1, noise.shape[-1]), query, index, own, table)
            for member, z, scale in zip(members, noise, self._scales, strict=True):
                member.add_(z, alpha=scale)
        return wide.view(out.shape).to(out.dtype)

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
        raise NotImplementedError

    def _output(self, x: torch.Tensor, weight: torch.Tensor, columns: int) -> torch.Tensor:
        """[M, n, columns] to write into: kept from the last forward pass if it is large."""
        first = id(weight) not in self._seen  # used twice, a weight must not overwrite its own first result
        self._seen.add(id(weight))
        shape = (*x.shape[:-1], columns)
        kept = self._scratch.output(id(weight), shape, x) if first else None
        return x.new_empty(shape) if kept is None else kept


class DenseMembers(Members):
    """Members whose noise is made densely, once for all signs of a direction."""

    def multiply(self, x, weight, index, bias, bias_index, out_first):
        x = x.to(_product_dtype(x))
        out = self._output(x, weight, weight.shape[0 if out_first else 1])
        if index is None:
            matrix = (weight.t() if out_first else weight).to(x.dtype)
            torch.mm(x.flatten(0, 1), matrix, out=out.view(-1, out.shape[-1]))
        elif out_first:
            for rows, member, block in self._blocks(weight, index, row_blocks(weight)):
                torch.mm(x[member], block.to(x.dtype).t(), out=out[member][:, rows])
        else:  # a sum over blocks, in half precision over a single one: each would round it
            exact = x.dtype == at_least_fp32(x)
            for rows, member, block in self._blocks(
                weight, index, row_blocks(weight) if exact else [slice(0, len(weight))]
            ):
                torch.addmm(
                    out[member],
                    x[member][:, rows],
                    block.to(x.dtype),
                    beta=int(rows.start > 0),
                    out=out[member],
                )
        if bias is not None:
            out += (bias if bias_index is None else self.vector(bias, bias_index)[:, None]).to(out.dtype)
        return out

    def _blocks(self, weight: torch.Tensor, index: int, blocks: Sequence[slice]):
        """Yield (rows, member, [rows, in] as this member sees them); overwritten by the next direction."""
        signs = len(self._scales)
        for rows in blocks:
            theta = weight[rows].to(at_least_fp32(weight))
            outs = self._scratch.take((signs, *theta.shape), theta)
            for k, query in enumerate(self._queries):
                self._directions.perturb_(outs, theta, self._scales, query, index, rows.start)
                for s in range(signs):
                    yield rows, k * signs + s, outs[s].to(weight.dtype)


class LowRankMembers(Members):
    """Members whose directions have rank r: one shared product, to which each direction adds its own part."""

    def __init__(self, directions: LowRankNoise, scratch, queries, scales, parameters):
        super().__init__(directions, scratch, queries, scales, parameters)
        drawn, wide = directions.draw(queries, parameters[0].device), at_least_fp32(parameters[0])
        self._factors = drawn.factors.to(wide)  # [K, r, columns]
        self._signed = self._times_scales(self._factors, directions.root)  # [M, r, columns]
        others = [p for p, matrix in zip(parameters, directions.matrices, strict=True) if not matrix]
        if others:  # all vectors are perturbed at once, [M, elements]
            theta = torch.cat([parameter.flatten() for parameter in others]).to(wide)
            self._vectors = theta + self._times_scales(drawn.vectors.to(wide), 1.0)

    def _times_scales(self, drawn: torch.Tensor, factor: float) -> torch.Tensor:
        """[K, ...] -> [M, ...]"""
        return torch.stack([drawn * (scale * factor) for scale in self._scales], dim=1).flatten(0, 1)

    def vector(self, parameter, index):
        own = self._directions.vector(self._vectors, index).to(parameter.dtype)
        return own.view(self.count, *parameter.shape)

    def look_up(self, ids, table, index):
        u, _ = self._directions.split(self._factors, index)
        _, v = self._directions.split(self._signed, index)
        each = torch.arange(len(u), device=ids.device)[:, None]
        left = u.transpose(1, 2)[each, ids.reshape(len(u), -1)].view(*ids.shape, -1)
        return self._add_outer(F.embedding(ids, table), left, v)

    def multiply(self, x, weight, index, bias, bias_index, out_first):
        x = x.to(_product_dtype(x))
        matrix = (weight.t() if out_first else weight).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        if bias_index is not None:
            bias = self.vector(bias, bias_index)[:, None]
        # What each member adds of its own is written first and the shared product accumulated onto it: a
        # bias has to be written anyway, and no second pass over the result is needed.
        own = self._output(x, weight, matrix.shape[1])
        if index is None:
            own.copy_(x.new_zeros(()) if bias is None else bias.to(own.dtype))
        else:
            inner = self._directions.split(self._factors, index)[out_first]
            outer = self._directions.split(self._signed, index)[not out_first]
            left = self._project(rows, inner.to(x.dtype)).view(*x.shape[:-1], -1)
            self._add_outer(bias, left, outer, out=own)
        own.view(len(rows), -1).addmm_(rows, matrix)
        return own

    def _project(self, rows: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        """[K, S n, r]: each direction's rows times its own factor [r, in]; on a CPU one by one is faster."""
        own = rows.view(len(inner), -1, rows.shape[-1])
        if rows.device.type != "cpu":
            return own @ inner.transpose(1, 2)
        if inner.shape[1] == 1:
            return torch.stack([part.mv(factor[0]) for part, factor in zip(own, inner, strict=True)])
        return torch.stack([part @ factor.T for part, factor in zip(own, inner, strict=True)])

    def _add_outer(self, start, left, right, out=None) -> torch.Tensor:
        """Start + left right for every member, [M, n, d].

        ``left`` [M, n, r], ``right`` [M, r, d]; ``start`` broadcasts, None is 0; ``out`` None is ``start``.
        """
        out = start if out is None else out
        left, right = left.to(out.dtype), right.to(out.dtype)
        if left.shape[-1] == 1:
            if start is None:
                return torch.mul(left, right, out=out)
            return torch.addcmul(start.to(out.dtype), left, right, out=out)
        if start is not out:
            out.copy_(out.new_zeros(()) if start is None else start)
        return out.baddbmm_(left, right)


def _product_dtype(x: torch.Tensor) -> torch.dtype:
    """What autocast would multiply in, for products that are written in place and so not its own to cast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def members_of(directions: Directions) -> type[Members]:
    """The class that treats a kind of directions best."""
    return LowRankMembers if isinstance(directions, LowRankNoise) else DenseMembers
