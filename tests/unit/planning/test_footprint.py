"""What a run will take, told before it: counts against built models, memory and work in their order."""

import pytest
import torch

from zo.models import build_model, parameter_roles, select_scope
from zo.models import count_parameters as count_built
from zo.optimizers import build_optimizers, pack_state
from zo.planning.footprint import (
    FLOOR_MINUTES,
    GPU_RATE,
    NOMINAL_TOKENS,
    THREAD_RATE,
    checkpoint_bytes,
    count_parameters,
    count_passes,
    job_memory_mb,
    job_minutes,
    jobs_at_once,
    memory_bytes,
    relative_cost,
    sharing_ranks,
    validation_passes,
)
from zo.planning.storage import CHECKPOINTS_KEPT
from zo.sizes import ARCHITECTURES, SIZES
from zo.spec import RunSpec
from zo.training.checkpoint import KEPT


def make(mode="ZO", **settings) -> RunSpec:
    return RunSpec.make(mode=mode, **({"max_steps": 10} | settings))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["full", "reduced", "head", "norms", "block1", "embedding"])
def test_the_counts_are_those_of_the_model_that_is_built(architecture, scope):
    spec = make(scope=scope, architecture=architecture, model_size="1M", vocab_size=600)
    model = build_model("1M", architecture, 600, seed=0)
    trained = sum(parameter.numel() for _, parameter in select_scope(model, scope))
    assert count_parameters(spec) == (model.num_parameters(), trained)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", SIZES)
def test_the_counts_hold_for_every_size(architecture, size):
    spec = make(scope="full", architecture=architecture, model_size=size)
    vocabulary = spec.vocab_size or 50257
    assert count_parameters(spec) == (count_built(size, architecture, vocabulary),) * 2


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [("sgd", 0), ("sgd", 0.9), ("adam", 0), ("adamw", 0), ("muon", 0), ("muon", 0.9), ("mudamw", 0)],
)
def test_a_checkpoint_is_never_larger_than_predicted(optimizer, momentum):
    spec = make("FO", scope="full", optimizer=optimizer, momentum=momentum)
    model = build_model(spec.model_size, spec.architecture, spec.vocab_size, seed=0)
    named = select_scope(model, "full")
    settings = {"lr": 1e-3, "momentum": momentum, "weight_decay": 0.0, "cautious": False}
    optimizers = build_optimizers(optimizer, named, parameter_roles(model, named), **settings)
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    for each in optimizers:
        each.step()
    tensors, _ = pack_state(optimizers)
    state = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    stored = state + sum(4 * parameter.numel() for _, parameter in named)
    steps = 8 * len(named)  # Adam's counters, one number a parameter
    assert stored - steps <= checkpoint_bytes(spec) <= 2 * stored


def test_half_the_weights_bytes_are_half_the_checkpoint_and_less_memory():
    fp32 = make(scope="full", model_size="20M", precision="bf16", query_budget_q=1)
    bf16 = make(scope="full", model_size="20M", precision="bf16", query_budget_q=1, weights="bf16")
    assert checkpoint_bytes(fp32) == 2 * checkpoint_bytes(bf16)
    assert memory_bytes(fp32) - memory_bytes(bf16) == checkpoint_bytes(bf16)


def test_as_many_checkpoints_are_planned_for_as_are_kept():
    assert CHECKPOINTS_KEPT == KEPT


def test_frozen_keeps_no_optimizer_state():
    assert checkpoint_bytes(make("Frozen", scope="head")) == 4 * 512 * 48


def test_memory_grows_with_the_model_the_vocabulary_and_the_directions_in_flight():
    small, large = make(query_budget_q=8), make(query_budget_q=8, model_size="20M")
    assert 400 * 2**20 < memory_bytes(small) < memory_bytes(large)
    assert memory_bytes(make(query_budget_q=1)) < memory_bytes(small)
    assert memory_bytes(make(query_budget_q=8, plan="sequential")) < memory_bytes(small)


@pytest.mark.parametrize("length", [{"max_steps": 100}, {"epochs": 2}, {"max_tokens": 1e5}])
def test_work_grows_with_queries_and_steps(length):
    one, eight = (relative_cost(make(query_budget_q=q, **{"max_steps": None} | length)) for q in (1, 8))
    assert eight == pytest.approx(8 * one)
    assert relative_cost(make("FO", **{"max_steps": None} | length)) == pytest.approx(1.5 * one)


def test_equal_forward_passes_are_equal_work_but_for_backprop():
    length = {"max_steps": None, "max_forwards": 1000}
    assert relative_cost(make(query_budget_q=8, **length)) == relative_cost(make(**length))
    assert relative_cost(make("FO", **length)) == pytest.approx(3 * relative_cost(make(**length)))


def test_work_counts_the_hybrids_backprop_steps():
    cost = {n: relative_cost(make("Calibrate", query_budget_q=8, bp_interval=n)) for n in (1, 4)}
    zo = relative_cost(make(query_budget_q=8))
    assert cost[1] == pytest.approx(relative_cost(make("FO")))
    assert cost[4] == pytest.approx(0.75 * zo + 0.25 * cost[1])


def test_many_small_steps_take_longer_than_few_large_ones_of_as_many_tokens():
    """A pass costs something for being one: the shorter the batches of an epoch, the longer it takes."""
    costs = [relative_cost(make(max_steps=None, epochs=1, batch_size=size)) for size in (1, 2, 4, 16)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 2 * costs[-1]
    forwards = [
        relative_cost(make(max_steps=None, max_forwards=99, batch_size=size)) for size in (1, 2, 4, 16)
    ]
    assert forwards == sorted(forwards)


def test_ranks_share_what_is_in_flight_and_the_time_but_not_the_weights():
    one, four = (make(query_budget_q=8, ranks=n, batch_size=1, scope="full") for n in (1, 4))
    assert memory_bytes(four) < memory_bytes(one)
    assert memory_bytes(four) > 0.5 * memory_bytes(make(scope="full", batch_size=1))
    assert relative_cost(four) == relative_cost(one) / 4
    assert relative_cost(make(query_budget_q=2, ranks=8)) == relative_cost(make(query_budget_q=2)) / 2
    fo = [memory_bytes(make("FO", scope="full", ranks=n)) for n in (1, 2)]
    assert fo[1] - fo[0] == 4 * count_parameters(make("FO", scope="full"))[1]  # DDP's copy of the gradient


def test_passes_are_those_of_the_ledger_with_a_backward_one_as_two():
    assert count_passes(make("FO")) == 10 * 3
    assert count_passes(make(query_budget_q=8)) == 10 * 16
    assert count_passes(make(max_steps=None, max_forwards=99)) == 99
    assert count_passes(make("FO", max_steps=None, max_forwards=99)) == 3 * 99


def test_an_epoch_is_as_long_as_the_corpus():
    spec = make("FO", max_steps=None, epochs=2, batch_size=4, block_size=64)
    assert count_passes(spec, corpus_tokens=2560) == 2 * 10 * 3
    assert count_passes(spec) == count_passes(spec, NOMINAL_TOKENS)
    assert job_minutes(spec, 0, 1, 2560) < job_minutes(spec, 0, 1)


def test_a_jobs_time_is_its_work_at_the_rate_of_what_it_runs_on_and_never_below_the_floor():
    assert job_minutes(make("Frozen"), gpus=0, threads=1) == FLOOR_MINUTES + 1
    spec = make("FO", scope="full", model_size="200M", max_steps=100_000, batch_size=8, block_size=128)
    total = 100_000 * 3 + 1001 * 4  # 1001 validations of 64 x 64 tokens, which are four batches
    assert validation_passes(spec, 100_000) == 1001 * 4
    work = total * 8 * 128 * count_parameters(spec)[0]
    assert job_minutes(spec, 0, 4) == pytest.approx(work / (4 * THREAD_RATE) / 60, rel=2e-3)
    passes = total * 0.01
    assert job_minutes(spec, 1, 4) == pytest.approx((passes + work / GPU_RATE) / 60 + FLOOR_MINUTES, rel=0.01)
    assert job_minutes(spec, 2, 4) < job_minutes(spec, 1, 4)


def test_a_jobs_memory_covers_the_estimate_with_a_margin_and_on_a_gpu_grows_with_the_weights_alone():
    small, wide = (
        make(model_size="20M", query_budget_q=8),
        make(model_size="20M", query_budget_q=8, batch_size=64),
    )
    for spec in (small, wide):
        assert job_memory_mb(spec, gpus=0) * 1e6 >= 1.5 * memory_bytes(spec)
        assert job_memory_mb(spec, gpus=0) % 100 == 0
    assert job_memory_mb(wide, gpus=0) > 3 * job_memory_mb(small, gpus=0)
    assert job_memory_mb(wide, gpus=1) == job_memory_mb(small, gpus=1)
    assert job_memory_mb(make(scope="full", model_size="1B"), gpus=1) > job_memory_mb(small, gpus=1) + 8000


@pytest.mark.parametrize(
    ("q", "ranks", "sharing"), [(8, 4, 4), (5, 4, 2.5), (2, 8, 2), (9, 8, 4.5), (1, 4, 1), (8, 1, 1)]
)
def test_ranks_wait_for_the_one_with_the_most_directions(q, ranks, sharing):
    spec, alone = make(query_budget_q=q, ranks=ranks), make(query_budget_q=q)
    assert sharing_ranks(spec) == sharing
    assert relative_cost(spec) == pytest.approx(relative_cost(alone) / sharing)
    long, short = (
        job_minutes(s, 0, s.ranks, 1e9)
        for s in (alone, spec)
        for s in [s.model_copy(update={"max_steps": 10**8})]
    )
    assert (long - FLOOR_MINUTES) / (short - FLOOR_MINUTES) < sharing + 1


@pytest.mark.parametrize(
    ("cores", "threads", "slots", "per_run", "jobs"),
    [
        (16, 1, 0, 1, 16),
        (16, 4, 0, 1, 4),
        (16, 1, 4, 1, 4),
        (16, 1, 4, 2, 2),
        (2, 1, 8, 1, 2),
        (1, 4, 0, 1, 1),
        (None, 2, 8, 1, 8),
    ],
)
def test_as_many_runs_go_at_once_as_cores_and_gpus_allow(cores, threads, slots, per_run, jobs):
    assert jobs_at_once(cores, threads, slots, per_run) == jobs
