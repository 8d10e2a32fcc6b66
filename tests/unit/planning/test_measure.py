"""Real steps, timed: every mode, a rank's share, and that the machine's state is left alone."""

import pytest
import torch

from zo.methods import METHODS
from zo.planning.measure import time_steps
from zo.spec import RunSpec

CPU = torch.device("cpu")
OWN = {"Calibrate": {"bp_interval": 3}, "Instruct": {"bp_interval": 2, "bp_dataset": "kjv"}}


def make(mode="ZO", **settings) -> RunSpec:
    shared = {"max_steps": 10, "scope": "full", "batch_size": 4, "block_size": 16}
    return RunSpec.make(mode=mode, **(shared | OWN.get(mode, {}) | settings))


@pytest.mark.parametrize("mode", METHODS)
def test_steps_of_every_mode_are_timed_without_a_corpus(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seconds = time_steps(make(mode), CPU, 2)
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert not list(tmp_path.iterdir())


def test_many_directions_take_longer_than_one():
    one, many = (min(time_steps(make(query_budget_q=q, plan="sequential"), CPU, 3)) for q in (1, 32))
    assert many > 4 * one


def test_of_several_ranks_it_is_the_share_of_one():
    alone, shared = (min(time_steps(make(query_budget_q=32, ranks=n), CPU, 3)) for n in (1, 16))
    assert alone > 2 * shared


def test_a_period_is_the_mean_of_its_steps(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "zo.planning.measure._time_step", lambda state, step, batch, guide: taken.append(step) or float(step)
    )
    assert time_steps(make("Calibrate", bp_interval=4), CPU, 1) == [(3 * 1 + 4) / 4]
    assert taken == [1, 1, 4]


def test_a_slow_class_is_timed_once(monkeypatch):
    monkeypatch.setattr("zo.planning.measure.ENOUGH_S", 0.0)
    assert len(time_steps(make("Frozen"), CPU, 50)) == 1


def test_the_global_generator_is_left_where_it_was():
    before = torch.random.get_rng_state()
    time_steps(make(), CPU, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
