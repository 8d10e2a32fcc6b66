"""Noise is a pure function of its key, distinct for distinct keys, and of the stated distribution.

Statistical checks use fixed keys, so they are deterministic; each threshold states how rarely a correct
generator would miss it, had the keys been drawn at random.
"""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

from zo.engine import directions, noise
from zo.engine.noise import CONTROL, Noise, make_noise, mix

N = 40_000
DENSE = ("gaussian", "rademacher")  # tests/unit/engine/test_lowrank.py has the third
BEYOND_32_BITS = 2**32


def draw(family="gaussian", seed=1, step=2, query=3, parameter=4, size=N, stream=noise.DIRECTIONS):
    return Noise(family, seed, step, stream).fill_(torch.empty(size), query, parameter)


@pytest.mark.parametrize("family", DENSE)
def test_noise_is_the_same_in_any_order_and_between_any_other_draws(family):
    keys = list(itertools.product((0, 1), (0, 7), (0, 2), (0, 5)))  # seed, step, query, parameter
    first = {key: draw(family, *key, size=33) for key in keys}
    random.Random(0).shuffle(keys)
    for key in keys:
        draw(family, 99, size=7)  # an odd count leaves half a pair of normals in the generator
        assert torch.equal(draw(family, *key, size=33), first[key])


@pytest.mark.parametrize("family", DENSE)
def test_noise_does_not_depend_on_what_the_buffer_held_or_on_its_shape(family):
    filled = torch.full((6, 5), math.nan)
    Noise(family, 1, 2).fill_(filled, 3, 4)
    assert torch.equal(filled.flatten(), draw(family, size=30))


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("part", ["seed", "step", "query", "parameter"])
def test_keys_that_differ_in_one_part_even_above_32_bits_give_unrelated_noise(family, part):
    values = [0, 1, 2, BEYOND_32_BITS, BEYOND_32_BITS + 1, 2 * BEYOND_32_BITS]
    draws = [draw(family, **{part: value}) for value in values]
    # 15 pairs of N independent unit-variance numbers: z above 4.5 falsely with probability 1e-4.
    for left, right in itertools.combinations(draws, 2):
        assert not torch.equal(left, right)
        assert abs(torch.dot(left, right).item()) / math.sqrt(N) < 4.5


def test_the_parts_of_a_key_are_not_interchangeable():
    keys = set(itertools.permutations((1, 2, 3, 4)))
    assert len({draw("gaussian", *key, size=4).numpy().tobytes() for key in keys}) == len(keys)


def test_hundreds_of_thousands_of_keys_of_one_run_do_not_collide():
    # A 32-bit seed would collide about 20 times among these; 64 bits do with probability 5e-9.
    keys = {
        mix(mix(seed, step, 0), query, parameter)
        for seed, step, query, parameter in itertools.product(range(2), range(1, 1001), range(8), range(25))
    }
    assert len(keys) == 2 * 1000 * 8 * 25


@pytest.mark.parametrize("family", DENSE)
def test_the_control_stream_is_unrelated_to_the_directions(family):
    directions = Noise(family, 1, 2)
    left, right = draw(family), directions.control().fill_(torch.empty(N), 3, 4)
    assert torch.equal(right, draw("gaussian", stream=CONTROL))
    assert abs(torch.dot(left, right).item()) / math.sqrt(N) < 4.5  # false alarm: 7e-6


def test_gaussian_noise_has_the_moments_and_distribution_of_a_standard_normal():
    samples = draw().double()
    # Standard errors of mean, variance, skewness and kurtosis; 4 checks at z < 4: false alarm 2.5e-4.
    moments = [
        (samples.mean(), 0, 1 / N),
        (samples.var(), 1, 2 / N),
        ((samples**3).mean(), 0, 15 / N),
        ((samples**4).mean(), 3, 96 / N),
    ]
    for value, expected, variance in moments:
        assert abs(value.item() - expected) < 4 * math.sqrt(variance)
    assert stats.kstest(samples.numpy(), "norm").pvalue > 1e-4  # false alarm: 1e-4


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17])
def test_small_tensors_of_many_keys_are_standard_normal_too(size):
    # Means over keys; false alarm of each z < 4.5: 7e-6.
    samples = torch.stack([draw(query=query, size=size) for query in range(2000)]).double()
    assert (samples.mean(0).abs() * math.sqrt(2000)).max() < 4.5
    assert ((samples.var(0) - 1).abs() * math.sqrt(2000 / 2)).max() < 4.5
    assert stats.kstest(samples.flatten().numpy(), "norm").pvalue > 1e-4


def test_neighbouring_elements_of_one_draw_are_uncorrelated():
    samples = draw().double()
    for lag in (1, 2, 8, 16):  # four z scores below 4.5: false alarm 3e-5
        assert abs(torch.dot(samples[lag:], samples[:-lag]).item()) / math.sqrt(N) < 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rademacher_noise_is_exactly_plus_or_minus_one_in_equal_shares(dtype):
    samples = Noise("rademacher", 1, 2).fill_(torch.empty(N, dtype=dtype), 3, 4)
    assert set(samples.tolist()) == {-1.0, 1.0}
    assert abs(samples.sum().item()) / math.sqrt(N) < 4.5  # false alarm: 7e-6


@pytest.mark.parametrize("family", DENSE)
def test_blocks_of_rows_and_looked_up_rows_are_those_of_the_whole(family):
    noise, shape = Noise(family, 1, 2), (50, 33)
    whole = noise.fill_(torch.empty(shape), 3, 4)
    for start, stop in ((0, 7), (7, 30), (49, 50)):
        assert torch.equal(noise.fill_(torch.empty(stop - start, 33), 3, 4, start), whole[start:stop])
    ids = torch.tensor([4, 4, 49, 0])
    assert torch.equal(noise.fill_rows_(torch.empty(4, 33), 3, 4, ids, whole), whole[ids])


@pytest.mark.parametrize("make", [lambda: Noise("rademacher", 1, 2), lambda: make_low_rank()])
def test_what_every_direction_can_do_is_done_alike_by_the_families_faster_ways(monkeypatch, make):
    """Small blocks, so that there are several; the base class's own ways, from ``fill_`` alone."""
    monkeypatch.setitem(directions._BLOCK, "cpu", 40)
    ours, theta, weights = make(), torch.linspace(-1, 1, 99).view(9, 11), [0.5, -2.0, 1.0]
    plain = directions.Directions()
    plain.fill_ = ours.fill_
    ids = torch.tensor([8, 0, 3, 3])
    pairs = [
        [d.fill_rows_(torch.empty(4, 11), 1, 0, ids, theta) for d in (ours, plain)],
        [d.perturb_(torch.empty(2, 9, 11), theta, [0.1, -0.3], 1, 0) for d in (ours, plain)],
        [d.sum_(torch.empty(9, 11), weights, 0) for d in (ours, plain)],
    ]
    moved = [theta.clone(), theta.clone()]
    for d, t in zip((ours, plain), moved, strict=True):
        d.update_([t], 0.1, weights)
    squares = [d.square_norm([theta], weights) for d in (ours, plain)]
    for one, other in [*pairs, moved]:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert squares[0] == pytest.approx(squares[1], rel=1e-5)
    assert squares[0] == pytest.approx(pairs[2][0].double().square().sum().item(), rel=1e-5)


def make_low_rank():
    return make_noise("lowrank", 1, 2, [torch.empty(9, 11)], rank=2)


class Elsewhere(torch.Tensor):
    """Says that it is not on the CPU, and is: the engine takes its other path, whose numbers can be seen."""

    device = torch.device("meta")


def test_off_the_cpu_sixteen_bits_are_whole_numbers_and_uniform(monkeypatch, global_rng):
    monkeypatch.setattr(noise, "_private_generator", lambda _: torch.Generator())
    before, out = global_rng(), torch.full((400, 250), math.nan).as_subclass(Elsewhere)
    bits = Noise("sixteen bits", 1, 2).fill_(out, 0, 0).as_subclass(torch.Tensor)
    assert torch.equal(bits, bits.round())
    assert 0 <= bits.min() < 10 < 65525 < bits.max() <= 65535
    deviation = 65536 / math.sqrt(12 * bits.numel())
    assert bits.double().mean().item() == pytest.approx(65535 / 2, abs=4.5 * deviation)
    assert global_rng() == before


@pytest.mark.parametrize("family", DENSE)
def test_off_the_cpu_blocks_of_rows_and_looked_up_rows_are_those_of_the_whole(
    monkeypatch, global_rng, family
):
    monkeypatch.setitem(directions._BLOCK, "meta", 7 * 33)
    monkeypatch.setattr(noise, "_private_generator", lambda _: torch.Generator())
    ours, shape, before = Noise(family, 1, 2), (2000, 33), global_rng()

    def empty(*shape):
        return torch.full(shape, math.nan).as_subclass(Elsewhere)

    def plain(tensor):
        return tensor.as_subclass(torch.Tensor)

    whole = plain(ours.fill_(empty(*shape), 3, 4))
    flat = whole.flatten().double()
    for lag in (1, 33, 7 * 33):  # within a row, of rows, of blocks; 5 z scores: false alarm 3e-5
        assert abs(torch.dot(flat[lag:], flat[:-lag]).item()) / math.sqrt(len(flat)) < 4.5
    assert abs(flat.sum().item()) / math.sqrt(len(flat)) < 4.5
    assert abs((flat**2).sum().item() - len(flat)) / math.sqrt(2 * len(flat)) < 4.5
    for start, stop in ((0, 7), (7, 28), (1995, 2000)):
        assert torch.equal(plain(ours.fill_(empty(stop - start, 33), 3, 4, start)), whole[start:stop])
    ids, table = torch.tensor([4, 4, 1999, 7]), empty(*shape)
    assert torch.equal(plain(ours.fill_rows_(empty(4, 33), 3, 4, ids, table)), whole[ids])
    total = plain(ours.sum_(empty(*shape), [0.0, 0.0, 0.0, 0.5], 4))
    assert torch.equal(total, 0.5 * whole)
    assert global_rng() == before


def test_blocks_of_rows_cover_a_parameter_once_in_order():
    for shape in ((1,), (7,), (3, 5), (4000, 700), (2, 2**20)):
        blocks = directions.row_blocks(torch.empty(shape))
        assert [row for rows in blocks for row in range(rows.start, rows.stop)] == list(range(shape[0]))
        assert all((b.stop - b.start) * (torch.Size(shape[1:]).numel()) <= 2**20 for b in blocks)


def test_a_key_gives_the_noise_it_gave_when_this_was_written():
    """A run's scalar log replays only while these stay: change them and every old log is void."""
    expected = [0.3861, 0.0441, 0.7764, -0.8298]
    assert draw(size=4).tolist() == pytest.approx(expected, abs=1e-4)
    signs = draw("rademacher", size=12)
    assert "".join("+" if sign > 0 else "-" for sign in signs.tolist()) == "++++-+--+---"


@pytest.mark.parametrize("family", DENSE)
def test_drawing_leaves_every_global_generator_alone_and_does_not_read_it(family, global_rng):
    before = global_rng()
    first = draw(family)
    assert global_rng() == before
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002 - the global one is meant
    assert torch.equal(draw(family), first)


def test_low_rank_noise_has_no_dense_kind():
    with pytest.raises(ValueError, match=r"'lowrank'.*gaussian, rademacher"):
        Noise("lowrank", 0, 0)


def test_an_unknown_family_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'sphere'.*gaussian, rademacher, lowrank"):
        make_noise("sphere", 0, 0)
