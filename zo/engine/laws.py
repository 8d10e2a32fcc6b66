"""The exact laws of a zeroth-order estimate, for a linear loss or eps -> 0 (docs/method.md).

d numbers in theta, q directions, g the exact gradient, g_hat the estimate. tests/unit/engine/test_laws.py
holds the engine to the same formulas, written there once more.
"""

import math
from collections.abc import Sequence


def rms_cosine(q: int, d: int) -> float:
    """RMS of cos(g_hat, g), Gaussian directions: cos^2 ~ Beta(q/2, (d-1)/2)."""
    return math.sqrt(q / (q + d - 1))


def second_moment(q: int, d: int, family: str = "gaussian") -> float:
    """E|g_hat|^2 / |g|^2 of Gaussian or Rademacher directions."""
    return (d + q + {"gaussian": 1, "rademacher": -1}[family]) / q


def low_rank_second_moment(
    shapes: Sequence[Sequence[int]], shares: Sequence[float], rank: int, q: int
) -> float:
    """E|g_hat|^2 / |g|^2 of directions of rank r at every matrix and Gaussian ones at all else.

    ``shares``: the part of |g|^2 that lies in each parameter. For one direction an m x n matrix has the
    factor mn + 2 + 2 (m + n + 1)/r on its own part, a vector of k numbers k + 2, and both d minus their size
    on it besides; of q directions the mean keeps (q - 1)/q of |g|^2 and 1/q of that.
    """
    d = sum(math.prod(shape) for shape in shapes)
    one = 0.0
    for shape, share in zip(shapes, shares, strict=True):
        size = math.prod(shape)
        own = size + 2 + (2 * (sum(shape) + 1) / rank if len(shape) == 2 else 0)
        one += share * (own + d - size)
    return (q - 1 + one) / q


def best_rate_ratio(q: int, r: float) -> float:
    """Best learning rate of one SGD step along g_hat over that along g, on a quadratic; Gaussian directions.

    r = tr(H) |g|^2 / g'Hg. Not a law for Adam.
    """
    return q / (q + 1 + r)


def guided_cosine(c: float, q: int) -> float:
    """cos(g_hat, g) of q directions each at cosine c to g, up to terms of order 1/d."""
    return c / math.sqrt(c**2 + (1 - c**2) / q)
