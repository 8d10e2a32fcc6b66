"""Noise as a pure function of a key, so that nothing ever stores it.

The noise of a parameter depends on (run seed, step, query, parameter) alone: the same numbers come out
in any order, in any chunking and on any number of processes, and the update regenerates exactly what
the evaluations used (MeZO, arXiv 2305.17333, keeps one seed a step; one key a tensor is what makes
layers and queries independent jobs). The global generators are neither read nor written.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch

from zo import philox

FAMILIES = ("gaussian", "rademacher", "lowrank")

DIRECTIONS, CONTROL = 0, 1
"""Streams of one seed that never meet: the estimate's directions, and the Random control's."""

_KINDS = {"gaussian": philox.GAUSSIAN, "rademacher": philox.SIGNS}

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Hash integers to 64 bits, order mattering: splitmix64's finaliser (Steele et al., 2014), chained."""
    state = 0
    for word in words:
        state = (state + _GOLDEN + (word & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


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

    def add_to_(
        self, theta: torch.Tensor, alpha: float, weights: Sequence[float], parameter: int
    ) -> torch.Tensor | float:
        """Theta += alpha sum_i weights[i] u_i, block by block; the sum's square norm, on theta's device."""
        squares = 0.0
        for rows in row_blocks(theta):
            part = theta[rows]
            total = part.new_empty(part.shape, dtype=at_least_fp32(part))
            self._sum_block(total, weights, parameter, rows.start)
            squares += torch.linalg.vector_norm(total, dtype=torch.float64) ** 2
            if part.dtype == total.dtype:
                part.add_(total, alpha=alpha)
            else:  # half precision: one rounding, of the sum
                part.copy_(part + total.mul_(alpha))
        return squares

    def _sum_block(self, total: torch.Tensor, weights: Sequence[float], parameter: int, start: int) -> None:
        total.zero_()
        noise = torch.empty_like(total)
        for query, weight in enumerate(weights):
            total.add_(self.fill_(noise, query, parameter, start), alpha=weight)


_BLOCK = {"cpu": 2**19}
"""Elements of a block of rows: on a CPU few enough to stay in the cache until they are used."""


def row_blocks(tensor: torch.Tensor) -> list[slice]:
    """Blocks of rows of a parameter whose noise is made at once; they depend on shape and device alone."""
    rows = len(tensor)
    step = max(1, _BLOCK.get(tensor.device.type, 2**24) // max(1, tensor.numel() // max(1, rows)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def at_least_fp32(tensor: torch.Tensor) -> torch.dtype:
    """The tensor's dtype, or fp32 if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


class Noise(Directions):
    """Directions z_1 ... z_q of one step, drawn densely: N(0, I) or uniform signs over all parameters."""

    def __init__(self, family: str, seed: int, step: int, stream: int = DIRECTIONS):
        if family not in _KINDS:
            raise ValueError(f"no dense noise {family!r}: allowed: {', '.join(_KINDS)}")
        self._kind, self._seed_step = _KINDS[family], (seed, step)
        self._key = mix(seed, step, stream)

    def fill_(self, out, query, parameter, start=0):
        key = mix(self._key, query, parameter)
        if out.device.type == "cpu":
            return philox.fill_(self._kind, out, start * (out.numel() // len(out)), key)
        for rows in row_blocks(out):
            _draw(self._kind, out[rows], mix(key, start + rows.start))
        return out

    def fill_rows_(self, out, query, parameter, ids, table):
        if out.device.type != "cpu":
            return super().fill_rows_(out, query, parameter, ids, table)
        return philox.fill_rows_(self._kind, out, ids, mix(self._key, query, parameter))

    def perturb_(self, outs, theta, scales, query, parameter, start=0):
        if theta.device.type != "cpu":
            return super().perturb_(outs, theta, scales, query, parameter, start)
        first = start * (theta.numel() // len(theta))
        return philox.perturb_(self._kind, outs, theta, scales, first, mix(self._key, query, parameter))

    def _sum_block(self, total, weights, parameter, start):
        if total.device.type != "cpu":
            return super()._sum_block(total, weights, parameter, start)
        first = start * (total.numel() // len(total))
        philox.sum_(self._kind, total, weights, first, self._keys(weights, parameter))

    def add_to_(self, theta, alpha, weights, parameter):
        if theta.device.type != "cpu" or theta.dtype != at_least_fp32(theta):
            return super().add_to_(theta, alpha, weights, parameter)
        return philox.add_sum_(self._kind, theta, alpha, weights, 0, self._keys(weights, parameter))

    def _keys(self, weights: Sequence[float], parameter: int) -> list[int]:
        return [mix(self._key, query, parameter) for query in range(len(weights))]

    def control(self) -> "Noise":
        """Gaussian noise of the same seed and step that no estimate has seen."""
        return Noise("gaussian", *self._seed_step, stream=CONTROL)


class LowRankNoise(Directions):
    """Directions of rank r at every matrix, z = (1/sqrt(r)) U V^T with U, V ~ N(0, I); Gaussian at vectors.

    E[vec z vec z^T] = I as for Gaussian noise, but a direction is (m + n) r numbers instead of m n: one flat
    row holds a direction of the whole model, made in one draw. ``shapes`` are the parameters', in order.
    """

    def __init__(self, seed: int, step: int, shapes: Sequence[torch.Size], rank: int):
        self.rank, self._shapes, self._seed_step = rank, shapes, (seed, step)
        self._key = mix(seed, step, DIRECTIONS)
        sizes = [rank * sum(shape) if len(shape) == 2 else shape.numel() for shape in shapes]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._kept: tuple[tuple[int, ...], torch.Tensor] = ((), torch.empty(0))

    def draw(self, queries: Sequence[int], device: torch.device) -> torch.Tensor:
        """[len(queries), r (m + n) summed over matrices + vectors] fp32; the last ones asked for are kept."""
        queries = tuple(queries)
        if self._kept[0] != queries or self._kept[1].device != device:
            rows = torch.empty(len(queries), self._starts[-1], device=device)
            for row, query in zip(rows, queries, strict=True):
                _draw(philox.GAUSSIAN, row, mix(self._key, query))
            self._divide_u_(rows)
            self._kept = queries, rows
        return self._kept[1]

    def _divide_u_(self, rows: torch.Tensor) -> None:
        """By sqrt(r), once for all uses."""
        if self.rank > 1:
            for index, shape in enumerate(self._shapes):
                if len(shape) == 2:
                    self.factors(rows, index)[0].div_(self.rank**0.5)

    def prepare(self, queries, device):
        self.draw(queries, device)

    def _row(self, query: int, device: torch.device) -> torch.Tensor:
        """[1, ...]: one direction's, out of the ones kept if it is there."""
        queries, rows = self._kept
        if query in queries and rows.device == device:
            return rows[queries.index(query)][None]
        return self.draw([query], device)

    def factors(self, rows: torch.Tensor, parameter: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """U [K, m, r], already divided by sqrt(r), and V [K, n, r] of a matrix; None for a vector."""
        shape = self._shapes[parameter]
        if len(shape) != 2:
            return None
        part = rows[:, self._starts[parameter] : self._starts[parameter + 1]]
        u, v = part.split([shape[0] * self.rank, shape[1] * self.rank], dim=1)
        return u.unflatten(1, (shape[0], self.rank)), v.unflatten(1, (shape[1], self.rank))

    def vector(self, rows: torch.Tensor, parameter: int) -> torch.Tensor:
        """[K, *shape] of a parameter that is no matrix."""
        part = rows[:, self._starts[parameter] : self._starts[parameter + 1]]
        return part.view(len(rows), *self._shapes[parameter])

    def fill_(self, out, query, parameter, start=0):
        row = self._row(query, out.device)
        factors = self.factors(row, parameter)
        if factors is None:
            z = torch.atleast_1d(self.vector(row, parameter)[0])
            return out.copy_(z[start : start + len(out)])
        u, v = (factor[0].to(out.dtype) for factor in factors)
        return torch.mm(u[start : start + len(out)], v.T, out=out)

    def _sum_block(self, total, weights, parameter, start):
        factors = self.weighted_factors(weights, parameter, total)
        if factors is not None:
            torch.mm(factors[0][start : start + len(total)], factors[1].T, out=total)
            return
        rows = self.draw(range(len(weights)), total.device)
        z = self.vector(rows, parameter).flatten(1).to(total.dtype)
        weighted = _on_device(tuple(weights), total.device).to(z) @ z
        total.copy_(weighted.view(-1, *total.shape[1:])[start : start + len(total)])

    def weighted_factors(
        self, weights: Sequence[float], parameter: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A [m, q r] and B [n, q r] with sum_i weights[i] z_i = A B^T at a matrix; None for a vector."""
        factors = self.factors(self.draw(range(len(weights)), like.device), parameter)
        if factors is None:
            return None
        u, v = (factor.to(at_least_fp32(like)) for factor in factors)
        u = u * _on_device(tuple(weights), like.device).to(u)[:, None, None]
        return u.permute(1, 0, 2).flatten(1), v.permute(1, 0, 2).flatten(1)

    def control(self) -> Noise:
        """Gaussian noise of the same seed and step that no estimate has seen."""
        return Noise("gaussian", *self._seed_step, stream=CONTROL)


def make_noise(
    family: str, seed: int, step: int, parameters: Sequence[torch.Tensor] = (), rank: int = 1
) -> Noise | LowRankNoise:
    """Make the directions of one step; low-rank ones need the parameters' shapes."""
    if family not in FAMILIES:
        raise ValueError(f"unknown direction family {family!r}: allowed: {', '.join(FAMILIES)}")
    if family == "lowrank":
        return LowRankNoise(seed, step, [parameter.shape for parameter in parameters], rank)
    return Noise(family, seed, step)


def _draw(kind: int, out: torch.Tensor, key: int) -> None:
    """Fill ``out``, contiguous, from the start of a key's stream."""
    if out.device.type == "cpu":
        philox.fill_(kind, out, 0, key)
        return
    generator = _private_generator(out.device).manual_seed(key)  # Philox as well: takes all 64 bits
    if kind == philox.GAUSSIAN:
        out.normal_(generator=generator)
    else:
        out.random_(0, 2, generator=generator).mul_(2).sub_(1)


@lru_cache
def _private_generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device)


@lru_cache(maxsize=4)
def _on_device(weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """[q] fp64, copied once for all parameters of an update, without waiting for the device."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    host = torch.tensor(weights, dtype=torch.float64, pin_memory=pinned)
    return host.to(device, non_blocking=True)
