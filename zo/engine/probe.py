"""What a zeroth-order step sees at given weights: the estimate against the exact gradient, and its laws.

For several batches and one pool of directions each: cosine and length of g_hat for every q, the error of
the finite difference against eps, the curvature that decides how far a step may go, and how much of a
batch's gradient is the batch's own. Estimates are the engine's, in the run's precision; what they are
compared with is computed in fp64, where a loss difference of one ZO step is not lost in rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zo.engine import laws
from zo.engine.directions import Directions
from zo.engine.estimate import estimate_gradient
from zo.engine.landscape import Point, in_fp64
from zo.engine.noise import PROBE, make_noise
from zo.engine.objective import Objective, dot
from zo.engine.plan import Plan

COLUMNS = ("scope", "d", "batch", "quantity", "q", "epsilon", "value", "law")
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the predicted best learning rate, in the line search."""
SEARCHED = 16
"""Estimates of each q whose line search is averaged."""


@dataclass(frozen=True)
class ProbeSettings:
    """How much is measured."""

    queries: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    epsilons: tuple[float, ...] = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6)
    directions: int = 64
    """Of a batch; q of them make an estimate, so that there are directions/q estimates of q."""
    family: str = "gaussian"
    rank: int = 1
    epsilon: float = 1e-3
    """Of the estimates whose cosine and length are measured."""


def probe(
    objectives: Sequence[Objective],
    parameters: Sequence[torch.Tensor],
    settings: ProbeSettings,
    *,
    seed: int,
    plan: Plan = Plan(),  # noqa: B008 - frozen
) -> Iterator[dict[str, Any]]:
    """Yield rows of COLUMNS but scope: of each batch in turn, then of all batches together.

    ``objectives`` are the batches' at the weights that ``parameters`` hold; nothing is modified. The
    directions are keyed by (seed, batch), and none is one that a run of this seed was trained along.
    Memory: some dense copies of the parameters in fp64.
    """
    model, exact_parameters = in_fp64(objectives[0].model, parameters)
    d = sum(parameter.numel() for parameter in parameters)
    gradients = []
    for batch, objective in enumerate(objectives):
        noise = make_noise(settings.family, seed, batch, parameters, settings.rank, PROBE)
        exact = Objective(model, objective.loss_fn, objective.inputs, objective.targets)
        point = Point(exact, exact_parameters)
        gradients.append(point.gradient)
        for row in _probe_batch(objective, parameters, noise, point, settings, plan):
            yield {"d": d, "batch": batch} | row
    if len(gradients) > 1:
        yield {"d": d, "quantity": "gradient_noise", "value": _noise_share(gradients)}


def _probe_batch(objective, parameters, noise, point, settings, plan) -> Iterator[dict[str, Any]]:
    slopes = {
        epsilon: estimate_gradient(
            objective, parameters, noise, q=settings.directions, epsilon=epsilon, plan=plan
        ).coefficients
        for epsilon in dict.fromkeys((settings.epsilon, *settings.epsilons))
    }
    pool = _read_pool(noise, point, slopes[settings.epsilon], settings)
    scale = pool.exact_slopes.square().mean().sqrt()
    for epsilon in settings.epsilons:
        error = (slopes[epsilon] - pool.exact_slopes).square().mean().sqrt() / scale
        yield {"quantity": "slope_error", "epsilon": epsilon, "value": error.item()}
    for q, moments in pool.moments.items():
        law = _second_moment(settings, q, parameters, point)
        for cosine, ratio in moments:
            yield {"quantity": "cosine", "q": q, "value": cosine, "law": laws.rms_cosine(q, point.d)}
            yield {"quantity": "second_moment", "q": q, "value": ratio, "law": law}
    yield from _best_rates(noise, point, slopes[settings.epsilon], pool, settings)


@dataclass(frozen=True)
class _Pool:
    """What one pass over a batch's directions finds."""

    exact_slopes: torch.Tensor
    """[directions] fp64: u_i . g"""
    curvatures: list[float]
    """u_i' H u_i"""
    moments: dict[int, list[tuple[float, float]]]
    """q -> (cos(g_hat, g), |g_hat|^2/|g|^2) of each estimate of q directions."""


def _read_pool(noise: Directions, point: Point, slopes: torch.Tensor, settings: ProbeSettings) -> _Pool:
    """Make each direction once, and with it the estimates that it belongs to."""
    sums = {q: point.zeros() for q in settings.queries if q <= settings.directions}
    moments: dict[int, list[tuple[float, float]]] = {q: [] for q in sums}
    exact, curvatures = [], []
    for query, slope in enumerate(slopes.tolist()):
        direction = point.direction(noise, query)
        exact.append(dot(direction, point.gradient).item())
        curvatures.append(point.curvature(direction))
        for q, total in sums.items():
            torch._foreach_add_(total, direction, alpha=slope / q)
            if (query + 1) % q == 0:
                square, along = dot(total, total).item(), dot(total, point.gradient).item()
                # All slopes of a pool can be 0: their losses were equal to the last bit.
                cosine = along / math.sqrt(square) / point.norm if square else 0.0
                moments[q].append((cosine, square / point.norm**2))
                torch._foreach_zero_(total)
    return _Pool(torch.tensor(exact, dtype=torch.float64), curvatures, moments)


def _best_rates(noise, point, slopes, pool: _Pool, settings) -> Iterator[dict[str, Any]]:
    """The best learning rate of one SGD step along g, and along g_hat for every q, in units of the former.

    r = tr(H) |g|^2/g'Hg, the trace by Hutchinson's estimate over the pool. Along g_hat the loss itself is
    searched. Nothing where the loss is not convex along g: there a step has no best length nearby.
    """
    along = point.curvature(point.gradient)
    if along <= 0:
        return
    r = sum(pool.curvatures) / len(pool.curvatures) * point.norm**2 / along
    best = point.norm**2 / along
    yield {"quantity": "curvature_ratio", "value": r}
    yield {"quantity": "best_rate_fo", "value": best}
    if settings.family != "gaussian" or r <= 0:
        return
    for q in pool.moments:
        law = laws.best_rate_ratio(q, r)
        found = _search(noise, point, slopes, q, law * best) / best
        yield {"quantity": "best_rate", "q": q, "value": found, "law": law}


def _search(noise, point: Point, slopes: torch.Tensor, q: int, predicted: float) -> float:
    """The learning rate at which the mean loss over estimates of q directions is least; NaN at an end."""
    losses = torch.zeros(len(RATE_FACTORS), dtype=torch.float64)
    whole = slopes[: q * (len(slopes) // q)].view(-1, q)
    for group, weights in enumerate(whole[:SEARCHED].tolist()):
        estimate = point.zeros()
        for query, weight in enumerate(weights, start=group * q):
            torch._foreach_add_(estimate, point.direction(noise, query), alpha=weight / q)
        losses += torch.tensor([point.change(estimate, -factor * predicted) for factor in RATE_FACTORS])
    return predicted * _lowest(RATE_FACTORS, losses.tolist())


def _lowest(x: Sequence[float], values: list[float]) -> float:
    """Minimum of the parabola through the least value and its neighbours; NaN if the least is at an end."""
    place = min(range(len(values)), key=values.__getitem__)
    if place in (0, len(values) - 1):
        return math.nan
    near = slice(place - 1, place + 2)
    square, slope, _ = np.polyfit(x[near], values[near], 2)
    return -slope / (2 * square)


def _second_moment(settings: ProbeSettings, q: int, parameters, point: Point) -> float:
    if settings.family != "lowrank":
        return laws.second_moment(q, point.d, settings.family)
    shares = [dot([g], [g]).item() / point.norm**2 for g in point.gradient]
    return laws.low_rank_second_moment([p.shape for p in parameters], shares, settings.rank, q)


def _noise_share(gradients: Sequence[list[torch.Tensor]]) -> float:
    """E|g_batch - g|^2 / |g|^2, g the gradient over all data: both without bias, from n batches' gradients.

    Infinite where the batches' mean is no longer than their noise alone would make it.
    """
    n = len(gradients)
    mean = [sum(parts) / n for parts in zip(*gradients, strict=True)]
    square = dot(mean, mean).item()
    noise = (sum(dot(g, g).item() for g in gradients) - n * square) / (n - 1)
    signal = square - noise / n
    return noise / signal if signal > 0 else math.inf
