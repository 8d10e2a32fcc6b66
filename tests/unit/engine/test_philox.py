"""The compiled noise of a CPU against the paper's generator written out; any part of it is the same."""

import itertools

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zo.engine import philox

KINDS = [philox.GAUSSIAN, philox.SIGNS, philox.SIXTEEN_BITS]
LARGE = 2**18 + 77  # several parts, so several threads
KEY = 0x0123456789ABCDEF


def stream(kind, start, n, key=KEY, dtype=torch.float32):
    return philox.fill_(kind, torch.full((n,), torch.nan, dtype=dtype), start, key)


def words(element, per_counter, key):
    counter = element // per_counter
    return reference.philox([counter & 0xFFFFFFFF, counter >> 32, 0, 0], [key & 0xFFFFFFFF, key >> 32])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers (kat_vectors, philox4x32 10)
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_reference_gives_the_published_answers(counter, key, expected):
    assert reference.philox(counter, key) == expected


ANY_KEY = st.integers(0, 2**64 - 1)
ANY_START = st.one_of(
    st.integers(0, 1000), st.integers(2**34 - 500, 2**34 + 500)
)  # beyond 32 bits of counter


@settings(deadline=None)  # the first call compiles
@given(key=ANY_KEY, start=ANY_START)
def test_normals_are_box_mullers_of_the_generators_words(key, start):
    found = stream(philox.GAUSSIAN, start, 9, key)
    for i, value in enumerate(found.tolist()):
        a, b, c, d = words(start + i, 4, key)
        four = (*reference.box_muller(a, b), *reference.box_muller(c, d))
        assert value == pytest.approx(four[(start + i) % 4], rel=1e-5, abs=2e-6)


@settings(deadline=None)  # the first call compiles
@given(key=ANY_KEY, start=ANY_START)
def test_signs_are_the_generators_bits(key, start):
    for i, value in enumerate(stream(philox.SIGNS, start, 200, key).tolist()):
        place = (start + i) % 128
        bit = words(start + i, 128, key)[place // 32] >> place % 32 & 1
        assert value == (1.0 if bit else -1.0)


@settings(deadline=None)  # the first call compiles
@given(key=ANY_KEY, start=ANY_START)
def test_sixteen_bits_are_the_upper_half_of_each_word(key, start):
    for i, value in enumerate(stream(philox.SIXTEEN_BITS, start, 9, key).tolist()):
        assert value == words(start + i, 4, key)[(start + i) % 4] >> 16


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(start=st.integers(0, 300), n=st.integers(0, 300))
def test_any_part_of_a_stream_is_that_part_of_the_whole(kind, start, n):
    assert torch.equal(stream(kind, start, n), stream(kind, 0, 600)[start : start + n])


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(kind):
    before = torch.get_num_threads()
    theta, weights, keys = torch.linspace(-1, 1, LARGE), [0.5, -2.0, 1e-3], [1, 2, 3]
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moved = theta.clone()
            philox.add_sum_(kind, moved, -0.1, weights, 5, keys)
            outs = philox.perturb_(kind, torch.empty(2, LARGE), theta, [1e-3, -1e-3], 7, KEY)
            summed = philox.sum_(kind, torch.empty(LARGE), weights, 5, keys)
            found.append((stream(kind, 3, LARGE), outs, summed, moved))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_made_on_other_threads_continue_the_stream(kind):
    theta, weights, keys = torch.zeros(LARGE), [0.5, -2.0], [1, 2]
    pieces = [(lo, min(50_001, LARGE - lo)) for lo in range(0, LARGE, 50_001)]
    assert 50_001 < philox._PART < LARGE
    z = torch.cat([stream(kind, 3 + lo, n) for lo, n in pieces])
    assert torch.equal(stream(kind, 3, LARGE), z)
    assert torch.equal(philox.perturb_(kind, torch.empty(1, LARGE), theta, [1.0], 3, KEY)[0], z)
    total = torch.cat([philox.sum_(kind, torch.empty(n), weights, 3 + lo, keys) for lo, n in pieces])
    assert torch.equal(philox.sum_(kind, torch.empty(LARGE), weights, 3, keys), total)
    assert torch.equal(philox.add_sum_(kind, theta, 1.0, weights, 3, keys), total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_is_perturbed_by_the_noise_that_fill_makes(kind, dtype):
    theta, scales = torch.linspace(-1, 1, 9999, dtype=dtype).view(33, 303), [1e-3, -1e-3, 0.5]
    z = stream(kind, 11, 9999, dtype=dtype).view(33, 303)
    outs = philox.perturb_(kind, torch.empty(3, 33, 303, dtype=dtype), theta, scales, 11, KEY)
    for out, scale in zip(outs, scales, strict=True):
        assert torch.equal(out, theta + torch.tensor(scale, dtype=dtype) * z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_updates_are_of_the_noise_that_fill_makes_in_order(kind, dtype):
    weights, keys, alpha = [0.5, -2.0, 1e-3], [4, 2**63, 6], -0.1
    expected = torch.zeros(10_001, dtype=dtype)
    for weight, key in zip(weights, keys, strict=True):
        expected += torch.tensor(weight, dtype=dtype) * stream(kind, 13, 10_001, key, dtype)
    total = philox.sum_(kind, torch.full_like(expected, torch.nan), weights, 13, keys)
    assert torch.equal(total, expected)
    theta = torch.linspace(-1, 1, 10_001, dtype=dtype)
    moved = theta.clone()
    philox.add_sum_(kind, moved, alpha, weights, 13, keys)
    assert torch.equal(moved, theta + torch.tensor(alpha, dtype=dtype) * expected)


@pytest.mark.parametrize("width", [1, 3, 8, 129])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole_matrix(kind, width):
    ids = torch.tensor([5, 0, 49, 5, 17])
    whole = stream(kind, 0, 50 * width).view(50, width)
    assert torch.equal(philox.fill_rows_(kind, torch.empty(5, width), ids, KEY), whole[ids])


def test_noise_reaches_beyond_six_standard_deviations_and_is_never_infinite():
    """Torch's own stops at 5.8: its uniform numbers have 24 bits."""
    words = (0, 1, 2, 3, 100, 2**32 - 1)
    extremes = [reference.box_muller(word, 0x20000000)[0] for word in words]
    assert extremes[0] > 6.6
    assert extremes[-1] < 1e-4
    assert [philox._radius(np.uint32(word)) for word in words] == pytest.approx(extremes, rel=1e-6, abs=1e-7)
    sample = stream(philox.GAUSSIAN, 0, 2**24)
    assert sample.isfinite().all()
    assert sample.abs().max() > 5


def test_many_streams_of_neighbouring_keys_are_unrelated():
    draws = [stream(philox.GAUSSIAN, 0, 40_000, key).double() for key in (0, 1, 2, 2**32, 2**63, 2**64 - 1)]
    for left, right in itertools.combinations(draws, 2):  # 15 z scores: false alarm 1e-4
        assert abs(torch.dot(left, right).item()) / 200 < 4.5
