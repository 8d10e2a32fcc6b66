"""Noise as a pure function of a key, so that nothing ever stores it.

The noise of a parameter depends on (run seed, step, query, parameter) alone: the same numbers come out
in any order, in any chunking and on any number of processes, and the update regenerates exactly what
the evaluations used (MeZO, arXiv 2305.17333, keeps one seed a step; one key a tensor is what makes
layers and queries independent jobs). The global generators are neither read nor written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from zo.engine import philox
from zo.engine.directions import Directions, at_least_fp32, round_to_nearest_, row_blocks

FAMILIES = ("gaussian", "rademacher", "lowrank")

DIRECTIONS, CONTROL, ROUNDING, PROBE = 0, 1, 2, 3
"""Streams of one seed that never meet: of the estimate's directions, the Random control's, rounding's and
those of a probe, which would else meet weights that were trained along them."""

_KINDS = {"gaussian": philox.GAUSSIAN, "rademacher": philox.SIGNS, "sixteen bits": philox.SIXTEEN_BITS}

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

    def _update_one_(self, theta, alpha, weights, parameter, store_):
        if theta.device.type != "cpu" or theta.dtype != at_least_fp32(theta) or not theta.is_contiguous():
            return super()._update_one_(theta, alpha, weights, parameter, store_)
        return philox.add_sum_(self._kind, theta, alpha, weights, 0, self._keys(weights, parameter))

    def _keys(self, weights: Sequence[float], parameter: int) -> list[int]:
        return [mix(self._key, query, parameter) for query in range(len(weights))]

    def control(self) -> "Noise":
        """Gaussian noise of the same seed and step that no estimate has seen."""
        return Noise("gaussian", *self._seed_step, stream=CONTROL)


@dataclass(frozen=True)
class Drawn:
    """Low-rank directions of K queries, every parameter's in one tensor: fp32."""

    factors: torch.Tensor
    """[K, r, sum of m + n over the matrices]"""
    vectors: torch.Tensor
    """[K, elements of all other parameters]"""


class LowRankNoise(Directions):
    """Directions of rank r at every matrix, z = (1/sqrt(r)) U V^T with U, V ~ N(0, I); Gaussian at vectors.

    E[vec z vec z^T] = I as for Gaussian noise, but a direction is (m + n) r numbers instead of m n: those of
    the whole model are made in two draws. ``shapes`` are the parameters', in order.
    """

    def __init__(
        self, seed: int, step: int, shapes: Sequence[torch.Size], rank: int, stream: int = DIRECTIONS
    ):
        self.rank, self._shapes, self._seed_step = rank, shapes, (seed, step)
        self._key = mix(seed, step, stream)
        self.matrices = [len(shape) == 2 for shape in shapes]
        self._places, columns = [], {True: 0, False: 0}
        for shape, matrix in zip(shapes, self.matrices, strict=True):
            self._places.append(columns[matrix])
            columns[matrix] += sum(shape) if matrix else shape.numel()
        self._columns = columns
        self._kept: tuple[tuple[int, ...], Drawn] = ((), Drawn(torch.empty(0), torch.empty(0)))

    @property
    def root(self) -> float:
        """1/sqrt(r), by which U V^T is multiplied."""
        return self.rank**-0.5

    def draw(self, queries: Sequence[int], device: torch.device) -> Drawn:
        """Make directions; the last ones asked for are kept."""
        queries = tuple(queries)
        if self._kept[0] != queries or self._kept[1].factors.device != device:
            factors = torch.empty(len(queries), self.rank, self._columns[True], device=device)
            vectors = torch.empty(len(queries), self._columns[False], device=device)
            for query, own_factors, own_vectors in zip(queries, factors, vectors, strict=True):
                _draw(philox.GAUSSIAN, own_factors, mix(self._key, query, 0))
                _draw(philox.GAUSSIAN, own_vectors, mix(self._key, query, 1))
            self._kept = queries, Drawn(factors, vectors)
        return self._kept[1]

    def prepare(self, queries, device):
        self.draw(queries, device)

    def _draw_one(self, query: int, device: torch.device) -> Drawn:
        """K = 1: out of the ones kept if it is there."""
        queries, drawn = self._kept
        if query in queries and drawn.factors.device == device:
            place = slice(queries.index(query), queries.index(query) + 1)
            return Drawn(drawn.factors[place], drawn.vectors[place])
        return self.draw([query], device)

    def split(self, factors: torch.Tensor, parameter: int) -> tuple[torch.Tensor, torch.Tensor]:
        """U [..., m] and V [..., n] of a matrix: views of factors [..., all columns]."""
        (m, n), start = self._shapes[parameter], self._places[parameter]
        return factors[..., start : start + m], factors[..., start + m : start + m + n]

    def vector(self, vectors: torch.Tensor, parameter: int) -> torch.Tensor:
        """[..., elements] of a parameter that is no matrix: a view of vectors [..., all elements]."""
        start = self._places[parameter]
        return vectors[..., start : start + self._shapes[parameter].numel()]

    def fill_(self, out, query, parameter, start=0):
        drawn, stop = self._draw_one(query, out.device), start + len(out)
        if not self.matrices[parameter]:
            z = self.vector(drawn.vectors[0], parameter).view(self._shapes[parameter] or (1,))
            return out.copy_(z[start:stop])
        u, v = self.split(drawn.factors[0].to(out.dtype), parameter)
        return torch.mm((u[:, start:stop] * self.root).T, v, out=out)

    def _sum_block(self, total, weights, parameter, start):
        drawn, stop = self.draw(range(len(weights)), total.device), start + len(total)
        on_device = _on_device(tuple(weights), total.device).to(total.dtype)
        if self.matrices[parameter]:
            u, v = self.split(drawn.factors.to(total.dtype), parameter)
            u = u[..., start:stop] * (on_device * self.root)[:, None, None]
            torch.mm(u.flatten(0, 1).T, v.flatten(0, 1), out=total)
        else:
            z = (on_device @ self.vector(drawn.vectors, parameter).to(total.dtype)).view(-1, *total.shape[1:])
            total.copy_(z[start:stop])

    def compact(self, parameter: torch.Tensor, index: int, q: int) -> bool:
        """Whether a sum of q directions at it stays a product of factors, smaller than itself.

        Not in half precision, where the product would be rounded before it is added.
        """
        exact = parameter.dtype == at_least_fp32(parameter)
        return self.matrices[index] and exact and 2 * q * self.rank <= min(parameter.shape)

    def update_(self, parameters, alpha, weights, store_=round_to_nearest_):
        drawn, wide = self.draw(range(len(weights)), parameters[0].device), at_least_fp32(parameters[0])
        on_device = _on_device(tuple(weights), parameters[0].device)
        factors = drawn.factors.to(wide)
        weighted = (on_device * self.root).to(wide)[:, None, None] * factors
        factors, weighted = factors.flatten(0, 1), weighted.flatten(0, 1)
        vectors, parts = [], []
        for index, parameter in enumerate(parameters):
            exact = parameter.dtype == at_least_fp32(parameter)
            if self.compact(parameter, index, len(weights)):  # one product straight into the parameter
                u, _ = self.split(weighted.to(parameter.dtype), index)
                _, v = self.split(factors.to(parameter.dtype), index)
                parameter.addmm_(u.T, v, alpha=alpha)
            elif exact and not self.matrices[index]:
                vectors.append(parameter)
                parts.append(index)
            else:
                self._update_one_(torch.atleast_1d(parameter), alpha, weights, index, store_)
        self._update_vectors_(vectors, parts, alpha, on_device, drawn.vectors)

    def _update_vectors_(self, parameters, indices, alpha: float, weights: torch.Tensor, drawn) -> None:
        """All of them in few operations."""
        if parameters:
            wide = parameters[0].dtype
            total = weights.to(wide) @ drawn.to(wide)
            parts = [self.vector(total, i).view(p.shape) for p, i in zip(parameters, indices, strict=True)]
            torch._foreach_add_(parameters, parts, alpha=alpha)

    def _square_norm(self, theta, weights, parameter):
        if not self.compact(theta, parameter, len(weights)):
            return super()._square_norm(theta, weights, parameter)
        factors = self.draw(range(len(weights)), theta.device).factors.to(theta.dtype)
        on_device = _on_device(tuple(weights), theta.device).to(theta.dtype) * self.root
        a, b = (part.flatten(0, 1) for part in self.split(factors, parameter))
        a = a * on_device.repeat_interleave(self.rank)[:, None]
        return torch.sum((a @ a.T).double() * (b @ b.T).double())  # |A^T B|^2

    def control(self) -> Noise:
        """Gaussian noise of the same seed and step that no estimate has seen."""
        return Noise("gaussian", *self._seed_step, stream=CONTROL)


def make_noise(
    family: str,
    seed: int,
    step: int,
    parameters: Sequence[torch.Tensor] = (),
    rank: int = 1,
    stream: int = DIRECTIONS,
) -> Noise | LowRankNoise:
    """Make the directions of one step; low-rank ones need the parameters' shapes."""
    if family not in FAMILIES:
        raise ValueError(f"unknown direction family {family!r}: allowed: {', '.join(FAMILIES)}")
    if family == "lowrank":
        return LowRankNoise(seed, step, [parameter.shape for parameter in parameters], rank, stream)
    return Noise(family, seed, step, stream)


def _draw(kind: int, out: torch.Tensor, key: int) -> None:
    """Fill ``out``, contiguous, from the start of a key's stream."""
    if out.device.type == "cpu":
        philox.fill_(kind, out, 0, key)
        return
    generator = _private_generator(out.device).manual_seed(key)  # Philox as well: takes all 64 bits
    if kind == philox.GAUSSIAN:
        out.normal_(generator=generator)
    elif kind == philox.SIGNS:
        out.random_(0, 2, generator=generator).mul_(2).sub_(1)
    else:
        out.random_(0, 2**16, generator=generator)


@lru_cache
def _private_generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device)


@lru_cache(maxsize=4)
def _on_device(weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """[q] fp64, copied once for all parameters of an update, without waiting for the device."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    host = torch.tensor(weights, dtype=torch.float64, pin_memory=pinned)
    return host.to(device, non_blocking=True)
