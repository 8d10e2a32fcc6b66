"""The exact laws of docs/method.md, through the engine that runs train with.

The loss is linear, so the finite difference is the directional derivative whatever eps, and the laws hold
without a remainder. A mean over N estimates must lie within Z of its own standard errors of the law;
keys are fixed, so a check is deterministic, and a correct engine under random keys would fail one with
probability 6e-5.
"""

import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from scipy import stats

from zo.engine.estimate import estimate_gradient
from zo.engine.guidance import GuidedDirections
from zo.engine.noise import Noise, make_noise
from zo.engine.objective import Objective
from zo.engine.plan import Plan
from zo.models import build_model

N, Z = 1000, 4.0
FAMILIES = ["gaussian", "rademacher", "lowrank1", "lowrank2"]  # and the rank
SIZES = {6: (2, 2), 60: (5, 11)}  # d: rows and columns of W; d = rows * (columns + 1)
QUERIES = [1, 2, 5]
COSINES = [0.2, 0.9, 1.0]


def assert_mean(samples, law):
    """The samples' mean equals the law, within Z standard errors (or to rounding, if they do not vary)."""
    samples = np.asarray(samples)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert abs(samples.mean() - law) < Z * error + 1e-9 * abs(law), (samples.mean(), law, error)


def make(family, seed, step, parameters):
    """Directions of a family; a digit at the name's end is the rank."""
    rank = int(family[-1]) if family[-1].isdigit() else 1
    return make_noise(family.rstrip("0123456789"), seed, step, parameters, rank)


@pytest.fixture(scope="module")
def sampled():
    """A function: [N, d] flat estimates of a linear model's gradient, and that gradient; cached."""
    kept = {}

    def sample(make_linear, d, q, family="gaussian", c=None):
        if (d, q, family, c) not in kept:
            model = make_linear(*SIZES[d])
            parameters, objective = [model.weight, model.bias], model.objective()
            rows = []
            for step in range(N):
                directions = make(family, d, step, parameters)
                if c is not None:
                    directions = GuidedDirections(directions, model.gradient, c, q)
                plan = Plan("sequential") if step % 2 else Plan("parallel", 3)
                estimate = estimate_gradient(objective, parameters, directions, q=q, epsilon=1e-3, plan=plan)
                rows.append(torch.cat([g.flatten() for g in estimate.gradients(parameters)]))
            true = torch.cat([g.flatten() for g in model.gradient])
            kept[d, q, family, c] = torch.stack(rows).numpy(), true.numpy()
        return kept[d, q, family, c]

    return sample


def cosines(estimates, gradient):
    return estimates @ gradient / np.linalg.norm(estimates, axis=1) / np.linalg.norm(gradient)


def assert_unbiased(estimates, gradient):
    assert_mean(estimates @ gradient / (gradient @ gradient), 1)
    errors = estimates.std(0, ddof=1) / math.sqrt(N) + 1e-12 * np.abs(gradient)
    z = (estimates.mean(0) - gradient) / errors
    assert np.abs(z).max() < 5  # over 60 coordinates: false alarm 4e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("q", QUERIES)
@pytest.mark.parametrize("d", SIZES)
def test_the_estimate_is_unbiased(make_linear, sampled, d, q, family):
    assert_unbiased(*sampled(make_linear, d, q, family))


@pytest.mark.parametrize(("family", "extra"), [("gaussian", 1), ("rademacher", -1)])
@pytest.mark.parametrize("q", QUERIES)
@pytest.mark.parametrize("d", SIZES)
def test_the_second_moment_is_d_plus_q_plus_or_minus_1_over_q(make_linear, sampled, d, q, family, extra):
    estimates, gradient = sampled(make_linear, d, q, family)
    assert_mean((estimates**2).sum(1) / (gradient @ gradient), (d + q + extra) / q)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("q", QUERIES)
@pytest.mark.parametrize("d", SIZES)
def test_the_second_moment_of_low_rank_estimates_follows_the_law_of_each_parameter(
    make_linear, sampled, d, q, rank
):
    (m, n), (estimates, gradient) = SIZES[d], sampled(make_linear, d, q, f"lowrank{rank}")
    matrix, vector = (gradient[: m * n] ** 2).sum(), (gradient[m * n :] ** 2).sum()
    own = m * n + 2 + 2 * (m + n + 1) / rank
    assert rank > 1 or own == (m + 2) * (n + 2)
    one = (own + m) * matrix + (m + 2 + m * n) * vector
    assert_mean((estimates**2).sum(1), (one + (q - 1) * (matrix + vector)) / q)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_second_moment_on_one_matrix_alone_is_the_exact_law(make_linear, rank, dtype):
    m, n = 5, 11
    model = make_linear(m, n).to(dtype)
    object.__setattr__(model, "v", model.v.to(dtype))
    objective = model.objective()
    objective.inputs["x"] = objective.inputs["x"].to(dtype)
    norms = []
    for step in range(4 * N):
        plan = Plan("sequential") if step % 2 else Plan("parallel", 1)
        noise = make_noise("lowrank", 7, step, [model.weight], rank)
        found = estimate_gradient(objective, [model.weight], noise, q=1, epsilon=0.5, plan=plan)
        norms.append(reference.norm(found.gradients([model.weight])) ** 2)
    square = reference.norm(model.gradient[:1]) ** 2
    assert_mean(np.array(norms) / square, m * n + 2 + 2 * (m + n + 1) / rank)


@pytest.mark.parametrize("q", QUERIES)
@pytest.mark.parametrize("d", SIZES)
def test_the_squared_cosine_follows_its_beta_law(make_linear, sampled, d, q):
    squared = cosines(*sampled(make_linear, d, q)) ** 2
    assert_mean(squared, q / (q + d - 1))
    assert stats.kstest(squared, stats.beta(q / 2, (d - 1) / 2).cdf).pvalue > 1e-4  # false alarm: 1e-4


@pytest.mark.parametrize("c", COSINES)
@pytest.mark.parametrize("q", [1, 4])
@pytest.mark.parametrize("d", SIZES)
def test_the_guided_estimate_is_unbiased(make_linear, sampled, d, q, c):
    assert_unbiased(*sampled(make_linear, d, q, c=c))


@pytest.mark.parametrize("c", COSINES)
@pytest.mark.parametrize("q", [1, 4])
@pytest.mark.parametrize("d", SIZES)
def test_the_guided_estimates_second_moment_and_cosine_follow_their_laws(make_linear, sampled, d, q, c):
    estimates, gradient = sampled(make_linear, d, q, c=c)
    assert_mean((estimates**2).sum(1) / (gradient @ gradient), 1 + (1 - c**2) / (q * c**2))
    law = c / math.sqrt(c**2 + (1 - c**2) / q)
    found = cosines(estimates, gradient)
    assert_mean(found**-2.0, law**-2)  # exact in the mean of 1/cos^2, and for every draw at q = 1
    if q == 1:
        assert found == pytest.approx(np.full(N, law), abs=1e-9)


@pytest.mark.parametrize(("sides", "order", "eps"), [("two", 2, 2e-3), ("one", 1, 4e-5)])
def test_halving_eps_divides_the_error_by_four_with_two_sides_and_by_two_with_one(sides, order, eps):
    model = build_model("100k", "gpt2", 300, seed=0).double()
    parameters = list(model.parameters())
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    objective = Objective(model, F.cross_entropy, {"input_ids": ids[:, :-1]}, ids[:, 1:])
    gradient = torch.autograd.grad(objective.losses().sum(), parameters)
    noise = Noise("gaussian", 0, 1)
    for query in range(2):
        u = [noise.fill_(torch.empty_like(g), query, index) for index, g in enumerate(gradient)]
        exact = reference.dot(gradient, u)
        errors = []
        for length in (eps, eps / 2, eps / 4):
            found = estimate_gradient(
                objective, parameters, noise, q=2, epsilon=length, sides=sides
            ).coefficients
            errors.append(abs(found[query].item() - exact))
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
        assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.05)
        assert errors[2] < 0.1 * abs(exact)
