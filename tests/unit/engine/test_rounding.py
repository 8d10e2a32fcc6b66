"""Stochastic rounding to bf16: to one of two neighbours, exact in the mean, the same for the same key."""

import pytest
import torch

from zo.engine import directions
from zo.engine.estimate import Estimate
from zo.engine.noise import make_noise
from zo.engine.rounding import StochasticRounding, add_, make_rounding

ULP = 2.0**-7
"""Between 1 and 2, of bf16."""


def rounded(exact: torch.Tensor, parameter: int = 0, start: int = 0, seed: int = 0, step: int = 1):
    out = torch.empty_like(exact, dtype=torch.bfloat16)
    StochasticRounding(seed, step).store_(out, exact.clone(), parameter, start)
    return out


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.9])
def test_it_rounds_to_a_neighbour_and_up_as_often_as_the_number_is_near_it(share, sign):
    n = 1_000_000
    found = rounded(torch.full((n,), sign * (1 + share * ULP))).float() * sign
    assert set(found.unique().tolist()) == {1.0, 1 + ULP}
    deviation = (share * (1 - share) / n) ** 0.5  # 8 z scores: false alarm 5e-5
    assert (found > 1).double().mean().item() == pytest.approx(share, abs=4.5 * deviation)


def test_what_bf16_can_hold_stays_as_it_is():
    exact = torch.cat([torch.randn(10_000).bfloat16().float(), torch.tensor([0.0, -0.0, float("inf")])])
    assert torch.equal(rounded(exact).float(), exact)


def test_it_carries_into_the_next_power_of_two():
    found = rounded(torch.full((10_000,), 2 - ULP / 4)).float()
    assert set(found.unique().tolist()) == {2 - ULP, 2.0}


def test_each_step_seed_and_parameter_rounds_otherwise_and_the_same_key_the_same():
    exact = torch.full((1000,), 1 + ULP / 2)
    found = [rounded(exact), rounded(exact, seed=1), rounded(exact, step=2), rounded(exact, parameter=1)]
    assert torch.equal(found[0], rounded(exact))
    for i, one in enumerate(found):
        for other in found[:i]:  # 6 z scores of halves: false alarm 1e-5
            assert abs((one == other).double().mean().item() - 0.5) < 4.8 * 0.5 / 1000**0.5


@pytest.mark.parametrize("family", ["gaussian", "lowrank"])
def test_a_compact_update_and_a_dense_one_round_alike_in_any_blocks(monkeypatch, family):
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.randn(*size, generator=draw).bfloat16() for size in ((40, 33), (33,), (7, 5))]
    directions_ = make_noise(family, 1, 2, parameters)
    estimate = Estimate(directions_, torch.tensor([1e-3, -2e-3], dtype=torch.float64), 0.0, 4)
    store_ = make_rounding("bf16", 1, 2)
    dense, found = estimate.gradients(parameters), []
    for block in (2**19, 7 * 33):
        monkeypatch.setitem(directions._BLOCK, "cpu", block)
        compact, whole = ([p.clone() for p in parameters] for _ in range(2))
        estimate.add_to_(compact, -0.1, store_)
        add_(whole, dense, -0.1, store_)
        found += [compact, whole]
    for one in found[1:]:
        for ours, first in zip(one, found[0], strict=True):
            # A sum in another order can differ in its last bit: seen in fewer than one of 1000.
            assert (ours != first).double().mean() < 5e-3


def test_updates_far_below_half_an_ulp_add_up_and_rounded_to_the_nearest_they_are_lost():
    change = [torch.full((10_000,), ULP / 100)]
    for weights, moved in (("bf16", 4 * ULP), ("bf16-nearest", 0.0)):
        parameter = [torch.ones(10_000, dtype=torch.bfloat16)]
        for step in range(1, 401):
            add_(parameter, change, 1.0, make_rounding(weights, 0, step))
        assert (parameter[0].double().mean() - 1).item() == pytest.approx(moved, rel=0.02)
