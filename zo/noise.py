"""Noise as a pure function of a key, so that nothing ever stores it.

The noise of a parameter depends on (run seed, step, query, parameter) alone: the same numbers come out
in any order, in any chunking and on any number of processes, and the update regenerates exactly what
the evaluations used (MeZO, arXiv 2305.17333, keeps one seed a step; one key a tensor is what makes
layers and queries independent jobs). The global generators are neither read nor written.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

FAMILIES = ("gaussian", "rademacher", "lowrank")

DIRECTIONS, CONTROL = 0, 1
"""Streams of one seed that never meet: the estimate's directions, and the Random control's."""

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
    """Directions u_1 ... u_q over all parameters, made when they are needed. Subclasses write ``fill_``."""

    scale = 1.0
    """Of the estimate, beside the mean over q: 1/c^2 for directions drawn around a gradient."""

    def fill_(self, out: torch.Tensor, query: int, parameter: int) -> torch.Tensor:
        """Write direction ``query``'s part at ``parameter`` into ``out``, contiguous and of any shape."""
        raise NotImplementedError

    def sum_(
        self, total: torch.Tensor, weights: Sequence[float], parameter: int, scratch: torch.Tensor
    ) -> torch.Tensor:
        """Write sum_i weights[i] u_i at one parameter into ``total``; ``scratch`` is of the same shape."""
        total.zero_()
        for query, weight in enumerate(weights):
            total.add_(self.fill_(scratch, query, parameter), alpha=weight)
        return total


class Noise(Directions):
    """Directions z_1 ... z_q of one step, drawn densely: N(0, I) or uniform signs over all parameters."""

    def __init__(self, family: str, seed: int, step: int, stream: int = DIRECTIONS):
        self.family, self._seed_step = family, (seed, step)
        self._key = mix(seed, step, stream)

    def fill_(self, out, query, parameter):
        key = mix(self._key, query, parameter)
        if self.family == "gaussian":
            return out.normal_(generator=_generator(out.device, key))
        return out.random_(0, 2, generator=_generator(out.device, key)).mul_(2).sub_(1)

    def control(self) -> "Noise":
        """Gaussian noise of the same seed and step that no estimate has seen."""
        return Noise("gaussian", *self._seed_step, stream=CONTROL)


class LowRankNoise(Noise):
    """Directions of rank r at every matrix, z = (1/sqrt(r)) U V^T with U, V ~ N(0, I); Gaussian at vectors.

    E[vec z vec z^T] = I as for Gaussian noise, but a direction is (m + n) r numbers instead of m n: one flat
    row holds a direction of the whole model, made in one draw. ``shapes`` are the parameters', in order.
    """

    def __init__(self, seed: int, step: int, shapes: Sequence[torch.Size], rank: int):
        super().__init__("lowrank", seed, step)
        self.rank, self._shapes = rank, shapes
        sizes = [rank * sum(shape) if len(shape) == 2 else shape.numel() for shape in shapes]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._rows: tuple[tuple[int, ...], torch.Tensor] = ((), torch.empty(0))

    def rows(self, queries: Sequence[int], device: torch.device) -> torch.Tensor:
        """[len(queries), r (m + n) summed over matrices + vectors] fp32; the last ones asked for are kept."""
        queries = tuple(queries)
        if self._rows[0] != queries or self._rows[1].device != device:
            rows = torch.empty(len(queries), self._starts[-1], device=device)
            for row, query in zip(rows, queries, strict=True):
                row.normal_(generator=_generator(device, mix(self._key, query)))
            self._rows = queries, rows
        return self._rows[1]

    def factors(self, rows: torch.Tensor, parameter: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """U [K, m, r], already divided by sqrt(r), and V [K, n, r] of a matrix; None for a vector."""
        shape = self._shapes[parameter]
        if len(shape) != 2:
            return None
        part = rows[:, self._starts[parameter] : self._starts[parameter + 1]]
        u, v = part.split([shape[0] * self.rank, shape[1] * self.rank], dim=1)
        u = u.unflatten(1, (shape[0], self.rank))
        return (u / self.rank**0.5 if self.rank > 1 else u), v.unflatten(1, (shape[1], self.rank))

    def vector(self, rows: torch.Tensor, parameter: int) -> torch.Tensor:
        """[K, *shape] of a parameter that is no matrix."""
        part = rows[:, self._starts[parameter] : self._starts[parameter + 1]]
        return part.unflatten(1, self._shapes[parameter])

    def fill_(self, out, query, parameter):
        rows = self.rows([query], out.device)
        factors = self.factors(rows, parameter)
        if factors is None:
            return out.copy_(self.vector(rows, parameter)[0])
        u, v = (factor[0].to(out.dtype) for factor in factors)
        return torch.mm(u, v.T, out=out)

    def sum_(self, total, weights, parameter, scratch):
        factors = self.weighted_factors(weights, parameter, total)
        if factors is None:
            rows = self.rows(range(len(weights)), total.device)
            z = self.vector(rows, parameter).to(total.dtype)
            return total.copy_(torch.tensordot(torch.tensor(weights, dtype=torch.float64).to(z), z, dims=1))
        return torch.mm(factors[0], factors[1].T, out=total)

    def weighted_factors(
        self, weights: Sequence[float], parameter: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A [m, q r] and B [n, q r] with sum_i weights[i] z_i = A B^T at a matrix; None for a vector."""
        factors = self.factors(self.rows(range(len(weights)), like.device), parameter)
        if factors is None:
            return None
        u, v = (factor.to(torch.promote_types(like.dtype, torch.float32)) for factor in factors)
        u = u * torch.tensor(weights, dtype=torch.float64).to(u)[:, None, None]
        return u.permute(1, 0, 2).flatten(1), v.permute(1, 0, 2).flatten(1)


def make_noise(
    family: str, seed: int, step: int, parameters: Sequence[torch.Tensor] = (), rank: int = 1
) -> Noise:
    """Make the directions of one step; low-rank ones need the parameters' shapes."""
    if family not in FAMILIES:
        raise ValueError(f"unknown direction family {family!r}: allowed: {', '.join(FAMILIES)}")
    if family == "lowrank":
        return LowRankNoise(seed, step, [parameter.shape for parameter in parameters], rank)
    return Noise(family, seed, step)


def _generator(device: torch.device, key: int) -> torch.Generator:
    """Seed the device's private generator with all 64 bits of ``key``."""
    generator = _private_generator(device)
    if device.type == "cpu":
        return generator.set_state(_twister_state(key))
    return generator.manual_seed(key)  # Philox takes all 64 bits


@lru_cache
def _private_generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device)


# torch's CPU generator is a Mersenne twister that keeps 32 bits of a seed: among the millions of keys of
# one run, hundreds of pairs would share their noise. So all 624 words of its state are written, each
# hashed from the 64-bit key and the word's index; that costs what torch's own seeding costs.
_STATE_WORDS = 624
_WORD_KEYS = np.array([mix(index) for index in range(_STATE_WORDS)], dtype=np.uint64)


@lru_cache
def _twister_template() -> tuple[torch.Tensor, np.ndarray]:
    """State of a freshly seeded twister (bytes, as ``Generator.get_state``), and its words to write.

    Layout: seed u64, left i32, seeded i32, next u64, the words as 624 x u64, then the cached normals.
    """
    state = torch.Generator().manual_seed(0).get_state()
    return state, state.numpy()[24 : 24 + 8 * _STATE_WORDS].view(np.uint64)


def _twister_state(key: int) -> torch.Tensor:
    """Write ``key``'s 624 words; the tensor is reused by the next call (``set_state`` copies it)."""
    state, words = _twister_template()
    np.bitwise_xor(_WORD_KEYS, np.uint64(key), out=words)
    np.multiply(words, np.uint64(0xBF58476D1CE4E5B9), out=words)
    np.right_shift(words, np.uint64(32), out=words)
    return state
