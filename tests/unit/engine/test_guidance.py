"""Instruct's directions and estimate against the fp64 textbook, and their geometry at every cosine."""

import math

import pytest
import reference
import torch

from zo.engine import directions as blocks
from zo.engine.estimate import estimate_gradient
from zo.engine.guidance import GuidedDirections
from zo.engine.noise import Noise
from zo.engine.plan import Plan

SHAPES = [(7, 5), (5,), (30, 4)]
SEED, STEP, EPS = 3, 8, 1e-3
COSINES = [0.1, 0.5, 0.9, 0.999, 1.0]


def make_gradient(dtype=torch.float64, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=draw, dtype=dtype) for shape in SHAPES]


def make_directions(gradient, c, q, family="gaussian"):
    return GuidedDirections(Noise(family, SEED, STEP), gradient, c, q)


def fill(directions, query, gradient):
    return [directions.fill_(torch.empty_like(g), query, index) for index, g in enumerate(gradient)]


@pytest.mark.parametrize("family", ["gaussian", "rademacher"])
@pytest.mark.parametrize("c", COSINES)
@pytest.mark.parametrize("q", [1, 4])
def test_directions_are_the_textbooks(c, q, family):
    gradient, noise = make_gradient(), Noise(family, SEED, STEP)
    z = [fill(noise, query, gradient) for query in range(q)]
    directions = make_directions(gradient, c, q, family)
    for query, expected in enumerate(reference.directions_around(gradient, z, c)):
        for ours, theirs in zip(fill(directions, query, gradient), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("c", COSINES)
def test_directions_have_unit_norm_and_exactly_the_asked_cosine_whatever_the_gradients_size(c, scale, dtype):
    gradient = make_gradient(dtype, scale)
    directions = make_directions(gradient, c, q=3)
    for query in range(3):
        u = [part.double() for part in fill(directions, query, gradient)]
        assert reference.norm(u) == pytest.approx(1, abs=1e-5)
        assert reference.cosine(u, [g.double() for g in gradient]) == pytest.approx(c, abs=1e-5)
    assert directions.cosines() == pytest.approx([c] * 3, abs=1e-5)


def test_blocks_of_rows_are_those_of_the_whole():
    gradient = make_gradient()
    directions = make_directions(gradient, 0.5, q=2)
    whole = fill(directions, 1, gradient)[2]
    for start, stop in ((0, 7), (7, 19), (19, 30)):
        part = directions.fill_(torch.empty(stop - start, 4, dtype=torch.float64), 1, 2, start)
        assert torch.equal(part, whole[start:stop])


def test_a_gradient_of_many_blocks_is_weighed_whole(monkeypatch):
    gradient = [*make_gradient(), torch.tensor(0.7, dtype=torch.float64)]
    whole = make_directions(gradient, 0.5, q=3)
    monkeypatch.setitem(blocks._BLOCK, "cpu", 8)
    parts = make_directions(gradient, 0.5, q=3)
    assert [w for pair in parts._weights for w in pair] == pytest.approx(
        [w for pair in whole._weights for w in pair], rel=1e-12
    )
    assert parts.cosines() == pytest.approx([0.5] * 3, abs=1e-6)


def test_the_noise_parts_of_two_directions_are_unrelated():
    """Their inner product is c^2 + (1 - c^2) times a cosine of two random vectors in d - 1 dimensions."""
    c, gradient = 0.5, make_gradient()
    directions = make_directions(gradient, c, q=8)
    u = [fill(directions, query, gradient) for query in range(8)]
    d = sum(g.numel() for g in gradient)
    for i in range(8):
        for j in range(i):
            z = (reference.dot(u[i], u[j]) - c**2) / (1 - c**2) * math.sqrt(d - 1)
            assert abs(z) < 4.5  # 28 z scores: false alarm 2e-4


@pytest.mark.parametrize("sides", ["two", "one"])
@pytest.mark.parametrize("plan", [Plan("sequential"), Plan("parallel", 2)])
@pytest.mark.parametrize(("c", "q"), [(0.9, 1), (0.3, 3), (1.0, 3)])
def test_the_guided_estimate_is_the_textbooks(make_linear, c, q, plan, sides):
    """On a curved loss, with a guide that is not the loss's own gradient."""
    model = make_linear(6, 4)
    parameters = [model.weight, model.bias]
    guide = [g + 0.5 * torch.sign(g) for g in model.gradient]
    x = model.inputs["x"].flatten()

    def loss(theta):
        return torch.tanh((theta[0] @ x + theta[1]) @ model.v / 5)

    objective = model.objective()
    object.__setattr__(objective, "loss_fn", lambda logits, _: torch.tanh((logits @ model.v).sum() / 5))
    noise = Noise("gaussian", SEED, STEP)
    z = [fill(noise, query, guide) for query in range(q)]
    theta = [p.detach() for p in parameters]
    expected, coefficients, mean = reference.instruct(loss, theta, guide, z, c, EPS, sides)
    directions = GuidedDirections(noise, guide, c, q)
    ours = estimate_gradient(objective, parameters, directions, q=q, epsilon=EPS, sides=sides, plan=plan)
    assert ours.coefficients.tolist() == pytest.approx(coefficients, rel=1e-8)
    assert ours.loss == pytest.approx(mean, rel=1e-12)
    for one, other in zip(ours.gradients(parameters), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_gradient_that_is_zero_or_not_finite_cannot_guide(value):
    with pytest.raises(FloatingPointError, match=r"gradient has norm (0\.0|nan|inf)"):
        make_directions([torch.full((3, 2), value)], 0.9, q=1)


def test_drawing_directions_leaves_the_gradient_and_the_global_generators_alone(global_rng):
    gradient = make_gradient()
    copies, before = [g.clone() for g in gradient], global_rng()
    directions = make_directions(gradient, 0.7, q=2)
    fill(directions, 1, gradient), directions.cosines()
    assert global_rng() == before
    assert all(torch.equal(g, copy) for g, copy in zip(gradient, copies, strict=True))
