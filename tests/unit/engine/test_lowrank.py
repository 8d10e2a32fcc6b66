"""Low-rank directions: their law and keys, the update they make, and that no dense direction is ever made."""

import itertools
import math
import random

import pytest
import reference
import torch
import torch.nn.functional as F
from live_bytes import LiveBytes
from transformers import GPT2Config, GPT2LMHeadModel

from zo.engine import directions
from zo.engine.estimate import Estimate, estimate_gradient
from zo.engine.noise import CONTROL, LowRankNoise, Noise, make_noise
from zo.engine.objective import Objective
from zo.engine.plan import Plan

SHAPES = [(4, 3), (5,), (2, 6), (3, 4)]
M, N = 4, 3


def make(seed=1, step=2, rank=1, shapes=SHAPES):
    noise = make_noise("lowrank", seed, step, [torch.empty(shape) for shape in shapes], rank)
    assert isinstance(noise, LowRankNoise)
    return noise


def fill(noise, query, parameter, dtype=torch.float32, shapes=SHAPES):
    return noise.fill_(torch.full(shapes[parameter], math.nan, dtype=dtype), query, parameter)


# -- the law ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_second_moment_of_a_direction_is_the_identity_across_all_parameters(rank):
    """E[z z^T] = I, also between parameters; every entry within 5 of its standard errors."""
    count = 20_000
    noise = LowRankNoise(3, 4, [torch.Size(shape) for shape in SHAPES], rank)
    drawn = noise.draw(range(count), torch.device("cpu"))
    parts = []
    for index in range(len(SHAPES)):
        if len(SHAPES[index]) == 2:
            u, v = noise.split(drawn.factors.double(), index)
            parts.append((noise.root * u.transpose(1, 2) @ v).flatten(1))
        else:
            parts.append(noise.vector(drawn.vectors.double(), index))
    z = torch.cat(parts, dim=1)
    d = sum(math.prod(shape) for shape in SHAPES)
    assert z.shape == (count, d)
    products = z[:, :, None] * z[:, None, :]
    error = products.std(0) / math.sqrt(count)
    assert ((products.mean(0) - torch.eye(d)) / error).abs().max() < 5  # 861 z scores: false alarm 5e-4
    assert (z.mean(0).abs() * math.sqrt(count)).max() < 5


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_direction_has_exactly_its_rank_and_the_entries_kurtosis_of_it(rank):
    """E z^4 = 3 + 6/r: a full-rank Gaussian would have 3."""
    shapes = [(40, 30)]
    noise = make(rank=rank, shapes=shapes)
    z = torch.stack([fill(noise, query, 0, torch.float64, shapes) for query in range(800)])
    assert torch.linalg.matrix_rank(z[:20]).tolist() == [rank] * 20
    fourth = (z**4).mean((1, 2))
    error = fourth.std().item() / math.sqrt(len(fourth))
    assert abs(fourth.mean().item() - (3 + 6 / rank)) < 4.5 * error
    assert error < 0.5


# -- the keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_noise_is_the_same_in_any_order_and_in_any_company(rank):
    keys = list(itertools.product((0, 1), (0, 7), (0, 2, 5), range(len(SHAPES))))
    first = {key: fill(make(*key[:2], rank), *key[2:]) for key in keys}
    kept = {key[:2]: make(*key[:2], rank) for key in keys}  # each remembers the rows that it made last
    random.Random(0).shuffle(keys)
    for key in keys:
        assert torch.equal(fill(kept[key[:2]], *key[2:]), first[key])
    noise, device = make(0, 7, rank), torch.device("cpu")
    together = noise.draw([2, 0, 5], device)
    for place, query in enumerate((2, 0, 5)):
        alone = make(0, 7, rank).draw([query], device)
        assert torch.equal(alone.factors[0], together.factors[place])
        assert torch.equal(alone.vectors[0], together.vectors[place])


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("part", ["seed", "step", "query"])
def test_keys_that_differ_in_one_part_even_above_32_bits_give_unrelated_noise(part, rank):
    draws = []
    for value in (0, 1, 2, 2**32, 2**32 + 1, 2**33):
        key = {"seed": 1, "step": 2, "query": 3} | {part: value}
        noise = make_noise("lowrank", key["seed"], key["step"], [torch.empty(9000, 11)], rank)
        draws.append(noise.draw([key["query"]], torch.device("cpu")).factors.flatten().double())
    for left, right in itertools.combinations(draws, 2):  # false alarm: 1e-4
        assert abs(torch.dot(left, right).item()) / math.sqrt(len(left)) < 4.5


@pytest.mark.parametrize("rank", [1, 2])
def test_parameters_of_one_shape_and_both_factors_of_a_square_matrix_are_unrelated(rank):
    shapes = [(20_000, 20_000), (20_000, 20_000), (20_000,)]
    noise = LowRankNoise(1, 2, [torch.Size(shape) for shape in shapes], rank)
    drawn = noise.draw([0], torch.device("cpu"))
    columns = [row for p in (0, 1) for factor in noise.split(drawn.factors[0].double(), p) for row in factor]
    columns.append(drawn.vectors[0].double())
    for left, right in itertools.combinations(columns, 2):  # at most 36 z scores: false alarm 2e-4
        z = torch.dot(left, right) / (left.norm() * right.norm()) * math.sqrt(20_000)
        assert abs(z.item()) < 4.5


def test_a_key_gives_the_noise_it_gave_when_this_was_written():
    """A run's scalar log replays only while these stay: change them and every old log is void."""
    assert fill(make(), 3, 0)[0].tolist() == pytest.approx(EXPECTED_MATRIX, abs=1e-4)
    assert fill(make(), 3, 1)[:3].tolist() == pytest.approx(EXPECTED_VECTOR, abs=1e-4)


EXPECTED_MATRIX = [0.0486, -0.0454, 0.0264]
EXPECTED_VECTOR = [0.1319, -0.1946, 1.8477]


def test_drawing_leaves_every_global_generator_alone(global_rng):
    before = global_rng()
    fill(make(), 0, 0), make().sum_(torch.empty(4, 3), [1.0, 2.0], 0)
    assert global_rng() == before


def test_the_random_control_of_low_rank_directions_is_gaussian_and_has_not_been_seen():
    control = make().control()
    expected = Noise("gaussian", 1, 2, CONTROL).fill_(torch.empty(4, 3), 0, 0)
    assert torch.equal(control.fill_(torch.empty(4, 3), 0, 0), expected)
    assert torch.linalg.matrix_rank(expected) == 3


# -- the update -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("q", [1, 3, 40])
def test_the_update_is_the_dense_sum_of_the_same_directions(q, rank, dtype):
    """Q = 1 and 3 go through one product a matrix, 40 has more columns than the matrices."""
    shapes = [(60, 30), (30,), (24, 50)]
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
    coefficients = torch.randn(q, generator=draw, dtype=torch.float64)
    noise, before = make(rank=rank, shapes=shapes), [p.clone() for p in parameters]
    total = [
        sum(c * fill(noise, i, j, torch.float64, shapes) for i, c in enumerate(coefficients.tolist())) / q
        for j in range(len(shapes))
    ]
    estimate = Estimate(make(rank=rank, shapes=shapes), coefficients, 0.0, 2 * q)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for index, (parameter, expected) in enumerate(zip(parameters, total, strict=True)):
        dense = estimate.gradient(parameter, index)
        assert dense.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(dense.double(), expected, **tolerance)
    assert estimate.norm(parameters) == pytest.approx(reference.norm(total), rel=1e-5)
    estimate.add_to_(parameters, alpha=-0.01)
    for parameter, old, expected in zip(parameters, before, total, strict=True):
        exact = old.double() - 0.01 * expected
        if dtype == torch.bfloat16:  # rounded once: but for sums in another order, the nearest number
            assert (parameter == exact.to(dtype)).float().mean() > 0.995
        else:
            torch.testing.assert_close(parameter.double(), exact, **tolerance)


def test_a_sum_of_many_directions_in_bf16_keeps_what_its_terms_would_lose():
    """Each term is a quarter of what moves a bf16 one; sixteen of them together move it."""
    parameter = torch.ones(64, 48, dtype=torch.bfloat16)
    noise = make_noise("lowrank", 1, 2, [parameter])
    q = 16
    total = sum(noise.fill_(torch.empty(64, 48), i, 0).double() for i in range(q))
    Estimate(noise, torch.full((q,), float(q), dtype=torch.float64), 0.0, 2 * q).add_to_([parameter], 1e-3)
    assert (parameter == (1 + 1e-3 * total).to(torch.bfloat16)).float().mean() > 0.995
    assert (parameter != 1).float().mean() > 0.2


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", [(9, 11), (30,)])
def test_blocks_of_rows_are_those_of_the_whole(monkeypatch, shape, rank):
    noise, like = make(rank=rank, shapes=[shape]), torch.empty(shape)
    whole = fill(noise, 1, 0, shapes=[shape])
    total = noise.sum_(torch.empty(shape), [0.5, -2.0], 0)
    monkeypatch.setitem(directions._BLOCK, "cpu", 22)
    for rows in directions.row_blocks(like):
        part = noise.fill_(torch.empty_like(like[rows]), 1, 0, rows.start)
        torch.testing.assert_close(part, whole[rows])
    assert rows.start > 0
    torch.testing.assert_close(noise.sum_(torch.empty(shape), [0.5, -2.0], 0), total)


# -- the memory -------------------------------------------------------------------------------------

WIDTH, TOKENS = 256, 2


def wide_model():
    """Its largest matrix, the MLP's, is far larger than all activations of a forward pass."""
    shape = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 24}
    with torch.random.fork_rng():
        return GPT2LMHeadModel(GPT2Config(use_cache=False, **shape)).eval()


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_parallel_plan_and_the_update_never_make_a_dense_direction(rank, chunk):
    model = wide_model()
    parameters = list(model.parameters())
    largest = max(p.numel() for p in parameters) * 4
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    objective = Objective(model, F.cross_entropy, {"input_ids": ids}, ids)
    noise = make_noise("lowrank", 0, 0, parameters, rank)
    plan = Plan("parallel", chunk)
    with LiveBytes() as memory:
        estimate = estimate_gradient(objective, parameters, noise, q=2, epsilon=1e-3, plan=plan)
    assert memory.peak < largest
    with LiveBytes() as memory:
        estimate.add_to_(parameters, alpha=-1e-3)
    assert memory.peak < largest


def test_the_memory_count_sees_a_dense_direction():
    model = wide_model()
    parameters = list(model.parameters())
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    objective = Objective(model, F.cross_entropy, {"input_ids": ids}, ids)
    with LiveBytes() as memory:
        estimate_gradient(
            objective, parameters, Noise("gaussian", 0, 0), q=1, epsilon=1e-3, plan=Plan("parallel", 1)
        )
    assert memory.peak > max(p.numel() for p in parameters) * 4
