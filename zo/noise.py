"""Noise as a pure function of a key, so that nothing ever stores it.

The noise of a parameter depends on (run seed, step, query, parameter) alone: the same numbers come out
in any order, in any chunking and on any number of processes, and the update regenerates exactly what
the evaluations used (MeZO, arXiv 2305.17333, keeps one seed a step; one key a tensor is what makes
layers and queries independent jobs). The global generators are neither read nor written.
"""

from functools import lru_cache

import numpy as np
import torch

FAMILIES = ("gaussian", "rademacher")

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


class Noise:
    """The directions z_1 ... z_q of one step, z_i ~ N(0, I) or uniform signs over all parameters."""

    def __init__(self, family: str, seed: int, step: int, stream: int = DIRECTIONS):
        if family not in FAMILIES:
            raise ValueError(f"unknown direction family {family!r}: allowed: {', '.join(FAMILIES)}")
        self.family = family
        self._seed_step = (seed, step)
        self._key = mix(seed, step, stream)

    def fill_(self, out: torch.Tensor, query: int, parameter: int) -> torch.Tensor:
        """Write direction ``query``'s part at ``parameter`` into ``out``, contiguous and of any shape."""
        key = mix(self._key, query, parameter)
        if self.family == "gaussian":
            return out.normal_(generator=_generator(out.device, key))
        return out.random_(0, 2, generator=_generator(out.device, key)).mul_(2).sub_(1)

    def control(self) -> "Noise":
        """Gaussian noise of the same seed and step that no estimate has seen."""
        return Noise("gaussian", *self._seed_step, stream=CONTROL)


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
