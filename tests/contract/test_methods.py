"""What every method passes with every optimizer: the textbook's path, resume, an honest ledger."""

import csv
import functools
import gc
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import reference
import torch
from safetensors.torch import load_file

from zo.engine.noise import make_noise
from zo.errors import UserError
from zo.methods import METHODS
from zo.optimizers import OPTIMIZERS
from zo.spec import RunSpec, dataset_spec, guide_dataset_spec
from zo.training.checkpoint import Checkpoint
from zo.training.loop import HIGH_STEPS, Interrupted, step_to_end
from zo.training.record import RunFiles
from zo.training.train import Run, build_run, train

STEPS, INTERVAL = 7, 3
CPU = torch.device("cpu")
TIMINGS = ("timestamp", "seconds", "tokens_per_second", "peak_memory_mb")
OWN = {"FO": {}, "Frozen": {}, "Calibrate": {"bp_interval": INTERVAL}, "Instruct": {"bp_interval": INTERVAL}}
RULES = {name: {"optimizer": name} for name in OPTIMIZERS} | {"momentum": {"momentum": 0.9}}
RULES["adamw"]["weight_decay"] = 0.1  # without it, it is adam
PAIRS = [(mode, rule) for mode in METHODS for rule in RULES if mode != "Frozen" or rule == "sgd"]
FAMILIES = {
    "rank1": {"direction_family": "lowrank"},
    "rank2": {"direction_family": "lowrank", "rank": 2, "momentum": 0.9},
    "shards": {"direction_family": "lowrank", "shard_batch": True},
}
PAIRS += [(mode, rule) for mode in ("ZO", "Random", "Calibrate", "Instruct") for rule in FAMILIES]
HALF = {"precision": "bf16", "weights": "bf16"}
PAIRS += [(mode, "half") for mode in METHODS]
PAIRS.remove(("LayerwiseFrozen", "muon"))  # is adam: outside the blocks no matrix is hidden
RULES |= FAMILIES | {"half": HALF, "half rank1": HALF | FAMILIES["rank1"]}
PAIRS += [("ZO", "half rank1")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two small corpora, and one cache for all runs of this file."""
    folder = tmp_path_factory.mktemp("shared")
    words = "the a quick lazy brown dog fox jumps runs over under river".split()  # noqa: SIM905
    for name, seed in (("corpus", 0), ("guide", 1)):
        draw = random.Random(seed)
        lines = (" ".join(draw.choices(words, k=40)) for _ in range(60))
        (folder / f"{name}.txt").write_text("\n\n".join(lines))
    (folder / "cache").mkdir()
    return folder


@pytest.fixture
def make_spec(shared):
    def make(mode, **settings):
        common = {
            "scope": "full",
            "batch_size": 2,
            "block_size": 8,
            "learning_rate": 1e-2,
            "tokenizer": "bytes",
        }
        watch = {
            "log_interval": 1,
            "validation_interval": 4,
            "validation_blocks": 3,
            "validation_block_size": 8,
        }
        length = {"max_steps": STEPS, "checkpoint_interval": 2, "query_budget_q": 2}
        data = {"dataset": str(shared / "corpus.txt")}
        return RunSpec.make(mode=mode, **(common | watch | length | data | OWN.get(mode, {}) | settings))

    return make


@pytest.fixture
def results(shared, tmp_path):
    """A function: a results folder of its own that reads the shared cache."""
    count = itertools.count()

    def make(base=tmp_path):
        folder = base / f"results{next(count)}"
        folder.mkdir()
        (folder / "cache").symlink_to(shared / "cache")
        return folder

    return make


@pytest.fixture(autouse=True)
def signal_handlers():
    """``train`` sets its own and leaves them set."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def build(shared, make_spec):
    """A function: a run in memory at step 0."""
    return lambda mode, **settings: build_run(make_spec(mode, **settings), shared / "cache", CPU)[0]


def read_rows(files):
    with open(files.csv) as file:
        return list(csv.DictReader(file))


def untimed(files):
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_rows(files)]


def as_bytes(tensors):
    return {
        n: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items()
    }


def everything(files):
    """All that a run's settings decide: the CSV without its timings, the scalar log, the final state."""
    final = as_bytes(load_file(files.folder / "final.safetensors"))
    return untimed(files), files.scalars.read_bytes(), final


def fail_in_step(monkeypatch, number, failure):
    """Let ``failure(run)`` happen inside step ``number``, after its update."""
    take_step = Run.take_step

    def failing(run):
        report = take_step(run)
        if run.ledger.step == number:
            failure(run)
        return report

    monkeypatch.setattr(Run, "take_step", failing)


class Crash(Exception):
    pass


def crash(run):
    raise Crash


@pytest.fixture
def crash_in_step_6(monkeypatch):
    """A function: train until then. Checkpoints lie at 2 and 4; step 5 is in the logs already."""

    def start(spec, folder):
        with monkeypatch.context() as patch:
            fail_in_step(patch, 6, crash)
            with pytest.raises(Crash):
                train(spec, folder)
        return RunFiles(folder, spec.name)

    return start


# -- the textbook's path ----------------------------------------------------------------------------

TEXTBOOK = {
    "sgd": ({}, reference.sgd),
    "momentum": ({"momentum": 0.9, "weight_decay": 0.1}, reference.momentum_sgd(0.9, decay=0.1)),
    # No decay: keys' biases have gradient 0 but for rounding, which Adam would blow up beside any decay.
    "adam": ({"optimizer": "adam"}, reference.adam()),
    "adamw": ({"optimizer": "adamw", "weight_decay": 0.1}, reference.adam(decay=0.1, decoupled=True)),
}
VARIANTS = [
    ("ZO", {"sides": "one"}),
    ("ZO", {"direction_family": "rademacher"}),
    ("ZO", {"scope": "reduced"}),
    ("ZO", {"direction_family": "lowrank", "query_budget_q": 3}),
    ("ZO", {"direction_family": "lowrank", "rank": 2, "sides": "one", "plan": "sequential"}),
    ("ZO", {"direction_family": "lowrank", "rank": 2, "scope": "reduced", "parallel_batch_size": 1}),
    ("ZO", {"shard_batch": True}),
    ("ZO", {"shard_batch": True, "direction_family": "lowrank", "sides": "one"}),
    ("Random", {"direction_family": "lowrank", "rank": 2}),
    ("Instruct", {"direction_family": "lowrank", "query_budget_q": 3}),
    ("ZO", {"schedule": "cosine", "warmup_steps": 2, "query_budget_q": 3, "parallel_batch_size": 2}),
    ("FO", {"gradient_accumulation": 2}),
    ("Calibrate", {"bp_learning_rate": 5e-2, "sides": "one"}),
    ("Instruct", {"blend_bp_gradient": True, "cosine_target": 0.5}),
    ("Instruct", {"sides": "one", "scope": "head"}),
]
WHOLE = [mode for mode in METHODS if not METHODS[mode].only_scope]  # the others: test_layerwise.py
CASES = [(mode, *TEXTBOOK[rule]) for mode in WHOLE if mode != "Frozen" for rule in TEXTBOOK]
CASES += [(mode, settings, reference.sgd) for mode, settings in VARIANTS]


def name_case(value):
    """For pytest's ids: settings as text, nothing for the update rule they imply."""
    return "" if callable(value) else str(value)


def descend_along(run, mode):
    """gradient_at(theta, step): what the method's definition says, from the oracle's parts."""
    spec, parameters = run.spec, run.state.parameters
    model, _ = reference.write_weights(run.state.model, parameters, parameters)
    names = {id(p): name for name, p in run.state.model.named_parameters()}
    parameters = [dict(model.named_parameters())[names[id(p)]] for p in parameters]
    q, c, eps, sides = spec.query_budget_q, spec.cosine_target, spec.epsilon, spec.sides

    def gradient_at(theta, step):
        blocks = run.batch(run.data, step)
        inputs = {"input_ids": blocks}
        backprop = step % INTERVAL == 0 and mode in ("Calibrate", "Instruct")
        g = reference.gradient(model, parameters, theta, inputs, blocks) if backprop or mode == "FO" else None
        if mode == "FO" or (backprop and mode == "Calibrate"):
            return g

        @torch.no_grad()
        def loss(values, blocks=blocks):
            clone, _ = reference.write_weights(model, parameters, values)
            return reference.language_model_loss(clone, {"input_ids": blocks}, blocks)

        noise = make_noise(spec.direction_family, spec.seed, step, theta, spec.rank)
        z = [[noise.fill_(torch.empty_like(p), i, j) for j, p in enumerate(theta)] for i in range(q)]
        if backprop:
            estimate, _, _ = reference.instruct(loss, theta, g, z, c, eps, sides)
            return (
                [(a + b) / 2 for a, b in zip(estimate, g, strict=True)]
                if spec.blend_bp_gradient
                else estimate
            )
        if spec.shard_batch:  # direction i reads its own share of the sequences
            parts = []
            for own, u in zip(blocks.chunk(q), z, strict=True):
                parts.append(
                    reference.estimate(functools.partial(loss, blocks=own), theta, [u], eps, sides)[0]
                )
            estimate = [sum(part) / q for part in zip(*parts, strict=True)]
        else:
            estimate, _, _ = reference.estimate(loss, theta, z, eps, sides)
        if mode != "Random":
            return estimate
        other = [noise.control().fill_(torch.empty_like(p), 0, j) for j, p in enumerate(theta)]
        return [part * reference.norm(estimate) / reference.norm(other) for part in other]

    return gradient_at


def rates(spec, mode, steps):
    """The documented schedule: linear warm-up, then a cosine to a tenth of the peak; Calibrate's own rate."""
    for step in range(1, steps + 1):
        factor = 1.0
        if spec.schedule == "cosine":
            progress = (step - spec.warmup_steps) / (spec.max_steps - spec.warmup_steps)
            factor = 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        if step <= spec.warmup_steps:
            factor = step / spec.warmup_steps
        own = mode == "Calibrate" and step % INTERVAL == 0 and spec.bp_learning_rate
        yield factor * (own or spec.learning_rate)


@pytest.mark.parametrize(("mode", "settings", "update"), CASES, ids=name_case)
def test_every_method_takes_the_textbooks_path_in_fp64(build, mode, settings, update):
    run = build(mode, **settings)
    run.state.model.double()
    theta, gradient_at = [p.detach().clone() for p in run.state.parameters], descend_along(run, mode)
    path = reference.trajectory(theta, gradient_at, update, rates(run.spec, mode, steps=4))
    for step, expected in enumerate(path[1:], start=1):
        report = run.take_step()
        moved = [a - b for a, b in zip(expected, path[step - 1], strict=True)]
        ours = [p.detach() - b for p, b in zip(run.state.parameters, path[step - 1], strict=True)]
        error = reference.norm([a - b for a, b in zip(ours, moved, strict=True)])
        assert error < 1e-6 * reference.norm(moved), step
        blocks = run.batch(run.data, step)
        g = gradient_at(path[step - 1], step)
        assert report.grad_norm == pytest.approx(reference.norm(g), rel=1e-7)
        if mode == "FO":
            clone, _ = reference.write_weights(run.state.model, run.state.parameters, path[step - 1])
            loss = reference.language_model_loss(clone, {"input_ids": blocks}, blocks)
            assert report.loss == pytest.approx(loss.item(), rel=1e-9)


@pytest.mark.parametrize("other_data", [False, True])
def test_instruct_logs_the_cosines_that_the_law_gives(build, shared, other_data):
    settings = {"bp_dataset": str(shared / "guide.txt")} if other_data else {}
    run = build("Instruct", bp_interval=1, query_budget_q=4, cosine_target=0.6, epsilon=1e-4, **settings)
    run.state.model.double()
    report = run.take_step()
    assert report.scalars["cosine_directions"] == pytest.approx([0.6] * 4, abs=1e-5)
    assert report.cosine == report.scalars["cosine_estimate"]
    if other_data:  # measured against the guide it leans on, and against the batch that it descends
        assert report.scalars["cosine_estimate_own_data"] != report.cosine
        assert 0 < report.scalars["cosine_estimate_own_data"] < 1
        assert (report.forward_passes, report.backward_passes) == (8 + 2, 2)
    else:
        assert report.cosine == pytest.approx(0.6 / math.sqrt(0.36 + 0.64 / 4), abs=0.01)


def test_instruct_and_calibrate_read_their_guide_from_the_other_corpus(build, shared):
    for mode in ("Instruct", "Calibrate"):
        one = build(mode, bp_interval=1)
        two = build(mode, bp_interval=1, bp_dataset=str(shared / "guide.txt"))
        assert one.take_step().grad_norm != two.take_step().grad_norm
        assert torch.equal(one.batch(one.data, 1), two.batch(two.data, 1))


def test_calibrates_backprop_steps_log_the_loss_of_the_runs_own_batch(build, shared):
    """The guide's corpus may be an easier one: its loss would pass for the run's, and end up as its last."""
    run = build("Calibrate", bp_interval=1, bp_dataset=str(shared / "guide.txt"))
    batch, guide = run.batch(run.data, 1), run.batch(run.guide_data, 1)
    own, other = (run.state.objective(blocks).losses().item() for blocks in (batch, guide))
    report = run.take_step()
    assert report.loss == pytest.approx(own, rel=1e-6)
    assert report.loss != pytest.approx(other, rel=1e-3)


def test_random_takes_a_step_of_the_estimates_norm_in_an_unrelated_direction(build):
    steps = {}
    for mode in ("ZO", "Random"):
        run = build(mode)
        before = [p.detach().double() for p in run.state.parameters]
        report = run.take_step()
        steps[mode] = [p.detach().double() - b for p, b in zip(run.state.parameters, before, strict=True)]
        assert reference.norm(steps[mode]) == pytest.approx(1e-2 * report.grad_norm, rel=1e-4)
    assert reference.norm(steps["Random"]) == pytest.approx(reference.norm(steps["ZO"]), rel=1e-4)
    d = sum(p.numel() for p in steps["ZO"])
    assert abs(reference.cosine(*steps.values())) * math.sqrt(d) < 4.5  # false alarm: 7e-6


# -- what no method may touch -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", WHOLE)
def test_only_the_scopes_parameters_move_and_frozen_moves_none(build, mode):
    run = build(mode, scope="reduced", optimizer="sgd")
    before = as_bytes(dict(run.state.model.named_parameters()))
    for _ in range(INTERVAL):
        run.take_step()
    after = as_bytes(dict(run.state.model.named_parameters()))
    moved = {name for name in before if before[name] != after[name]}
    assert moved == (set() if mode == "Frozen" else {name for name, _ in run.named})


@pytest.mark.parametrize("mode", METHODS)
def test_a_run_leaves_every_global_generator_alone(make_spec, results, global_rng, mode):
    before = global_rng()
    assert train(make_spec(mode), results()).status == "done"
    assert global_rng() == before


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["FO", "ZO"])
def test_the_same_weights_and_batch_always_give_the_same_loss_for_no_dropout_is_on(build, mode, architecture):
    run = build(mode, architecture=architecture)
    objective = run.state.objective(run.batch(run.data, 1))
    twice = torch.arange(2).expand(2, -1)
    first = objective.losses(twice)
    assert torch.equal(first, objective.losses(twice))
    assert first[0].item() == pytest.approx(first[1].item(), rel=1e-6)
    assert not [
        m for m in run.state.model.modules() if isinstance(m, torch.nn.Dropout) and m.p and m.training
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("mode", "settings"), [("FO", {}), ("ZO", {}), ("ZO", FAMILIES["rank1"]), ("Instruct", {})]
)
def test_weights_stay_fp32_in_half_precision_so_that_no_small_update_is_lost(
    build, mode, settings, precision
):
    """An update of about a millionth of the weights is far below half precision's resolution."""
    run = build(
        mode,
        precision=precision,
        learning_rate=1e-9,
        epsilon=1e-2,
        **settings | (OWN.get(mode, {}) and {"bp_interval": 1}),
    )
    before = [p.detach().clone() for p in run.state.parameters]
    report = run.take_step()
    assert {p.dtype for p in run.state.parameters} == {torch.float32}
    moved = reference.norm(
        [(p - b).detach().double() for p, b in zip(run.state.parameters, before, strict=True)]
    )
    largest = max(p.abs().max().item() for p in before)
    assert 0 < moved == pytest.approx(1e-9 * report.grad_norm, rel=0.5)
    assert 1e-9 * report.grad_norm < 1e-3 * largest


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("FO", {"learning_rate": 3e-5}),
        ("ZO", {"learning_rate": 1e-6}),
        ("ZO", FAMILIES["rank1"] | {"learning_rate": 1e-6}),
        ("Instruct", {"learning_rate": 3e-5, "bp_interval": 1}),
    ],
)
def test_with_matrices_in_bf16_a_small_update_is_kept_in_the_mean_and_norms_stay_fp32(build, mode, settings):
    """Updates far below the gap between two bf16 numbers: to the nearest, next to none moves a weight."""
    moved = {}
    for weights in ("bf16", "bf16-nearest"):
        run = build(mode, **HALF | settings | {"weights": weights})
        assert {p.dtype for p in run.state.model.parameters() if p.ndim >= 2} == {torch.bfloat16}
        assert {p.dtype for p in run.state.model.parameters() if p.ndim < 2} == {torch.float32}
        matrices = [p for p in run.state.parameters if p.ndim >= 2]
        before = [p.detach().clone() for p in matrices]
        run.take_step()
        pairs = zip(matrices, before, strict=True)
        moved[weights] = sum(((p != b) & (b.abs() > 1e-2)).sum().item() for p, b in pairs)
    assert moved["bf16"] > 30 > 3 * moved["bf16-nearest"]


def test_validation_reads_the_same_tokens_whatever_the_run(build):
    seen = []
    for mode, settings in [
        ("FO", {}),
        ("ZO", {"seed": 5}),
        ("Frozen", {"batch_size": 5}),
        ("ZO", {"block_size": 4}),
    ]:
        run, tokens = build(mode, **settings), []
        run.state.model.register_forward_pre_hook(
            lambda _, args, kwargs, tokens=tokens: tokens.append(kwargs["input_ids"]), with_kwargs=True
        )
        run.take_step()
        tokens.clear()
        run.validate()
        seen.append(torch.cat(tokens))
    assert seen[0].shape == (3, 8)
    assert all(torch.equal(seen[0], other) for other in seen)


def test_validation_loss_is_the_mean_over_blocks_also_when_the_last_part_is_smaller(build):
    run = build("FO")
    blocks = run.data.validation_blocks(8, 3)
    each = [
        reference.language_model_loss(run.state.model, {"input_ids": b[None]}, b[None]).item() for b in blocks
    ]
    assert run.validate() == pytest.approx(sum(each) / 3, rel=1e-6)


# -- an honest ledger -------------------------------------------------------------------------------


class Counted:
    """Rows of the model's real forward and backward passes, in units of the run's batch."""

    def __init__(self, run):
        self.forward = self.backward = 0.0
        self.batch_size, self.tokens = run.spec.batch_size, 0
        run.state.model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs, output):
        rows = len(kwargs["input_ids"])
        self.tokens += kwargs["input_ids"].numel()
        self.forward += rows / self.batch_size
        if output.logits.requires_grad:
            output.logits.register_hook(lambda _: self._count_backward(rows))

    def _count_backward(self, rows):
        self.backward += rows / self.batch_size


LEDGER = [(mode, {"plan": plan}) for mode in METHODS for plan in ("sequential", "parallel")]
LEDGER += [
    ("ZO", {"sides": "one", "query_budget_q": 3}),
    ("Instruct", {"sides": "one", "query_budget_q": 3, "parallel_batch_size": 2}),
    ("FO", {"gradient_accumulation": 2}),
    ("FO", {"precision": "fp16"}),
    ("Instruct", {"bp_dataset": "guide"}),
    ("Calibrate", {"bp_dataset": "guide"}),
    *[
        ("ZO", {"shard_batch": True, "direction_family": family, "sides": sides, "plan": plan})
        for family in ("gaussian", "lowrank")
        for sides in ("two", "one")
        for plan in ("sequential", "parallel")
    ],
    ("ZO", {"shard_batch": True, "query_budget_q": 1, "direction_family": "lowrank"}),
    ("Calibrate", {"shard_batch": True}),
    ("Instruct", {"shard_batch": True, "parallel_batch_size": 1}),
]


@pytest.mark.parametrize(("mode", "settings"), LEDGER, ids=name_case)
def test_the_ledger_counts_the_passes_that_were_really_made(build, shared, mode, settings):
    if "bp_dataset" in settings:
        settings = settings | {"bp_dataset": str(shared / "guide.txt")}
    run = build(mode, **settings)
    real, predicted = Counted(run), [0, 0]
    for step in range(1, 2 * INTERVAL + 1):
        run.take_step()
        predicted[0] += METHODS[mode].forward_passes(run.spec, step, run.total)
        predicted[1] += METHODS[mode].backward_passes(run.spec, step, run.total)
        ledger = run.ledger
        assert (ledger.forward_passes, ledger.backward_passes) == (real.forward, real.backward)
        assert (ledger.forward_passes, ledger.backward_passes) == tuple(predicted)
        assert ledger.tokens_evaluated == real.tokens
        assert (ledger.step, ledger.tokens) == (step, step * 2 * 8)


def test_the_clock_waits_for_the_device_before_what_is_no_training(build, monkeypatch):
    run, waited = build("ZO", log_interval=3, validation_interval=4, checkpoint_interval=5), []
    monkeypatch.setattr("zo.training.run.settle", lambda _: waited.append(run.ledger.step + 1))
    for _ in range(run.total):
        run.take_step()
    due = [step for step in range(1, run.total + 1) if step % 3 == 0 or step % 4 == 0 or step % 5 == 0]
    assert waited == sorted({*due, run.total})


def test_the_clock_runs_while_a_batch_is_read(build, monkeypatch):
    """On a GPU that is where the step before is waited for: a ZO step's update would cost nothing."""
    run, running, seen = build("ZO"), [], []
    read, timed = run.data.batch, run.ledger.timed

    @contextmanager
    def clock():
        with timed():
            running.append(True)
            yield
            running.clear()

    monkeypatch.setattr(run.ledger, "timed", clock)
    monkeypatch.setattr(run.data, "batch", lambda *words: seen.append(list(running)) or read(*words))
    run.take_step()
    assert seen == [[True]]


def test_a_guides_batch_is_read_where_backprop_reads_it_alone(build, shared, monkeypatch):
    run, asked = build("Calibrate", bp_dataset=str(shared / "guide.txt")), []
    read = run.guide_data.batch
    monkeypatch.setattr(run.guide_data, "batch", lambda *words: asked.append(words[1]) or read(*words))
    for _ in range(2 * INTERVAL):
        run.take_step()
    assert asked == [INTERVAL, 2 * INTERVAL]


def test_first_order_reads_no_guides_batch_though_the_study_has_one_for_another_mode(
    build, shared, monkeypatch
):
    run = build("FO", bp_dataset=str(shared / "guide.txt"))
    monkeypatch.setattr(run.guide_data, "batch", None)
    run.take_step()


@pytest.mark.parametrize("mode", ["Calibrate", "Instruct"])
def test_backprop_is_used_on_the_interval_and_at_no_other_step(build, mode):
    run = build(mode)
    real, backward = Counted(run), []
    for _ in range(2 * INTERVAL + 1):
        run.take_step()
        backward.append(real.backward)
    assert backward == [step // INTERVAL for step in range(1, 2 * INTERVAL + 2)]


# -- determinism and resume -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(shared, tmp_path_factory):
    """A function: everything that a run without interruption wrote; each pair runs once."""

    @functools.cache
    def run(spec):
        folder = tmp_path_factory.mktemp("uninterrupted")
        (folder / "cache").symlink_to(shared / "cache")
        assert train(spec, folder).status == "done"
        return everything(RunFiles(folder, spec.name))

    return run


@pytest.mark.parametrize(("mode", "rule"), PAIRS)
def test_a_crashed_run_resumes_to_the_same_bytes(
    make_spec, results, uninterrupted, crash_in_step_6, mode, rule
):
    spec, folder = make_spec(mode, **RULES[rule]), results()
    files = crash_in_step_6(spec, folder)
    assert [path.stem for path in sorted(files.checkpoints.iterdir())] == ["step-000000002", "step-000000004"]
    assert train(spec, folder).status == "done"
    rows, scalars, final = everything(files)
    expected_rows, expected_scalars, expected_final = uninterrupted(spec)
    assert rows == expected_rows
    assert [row["step"] for row in rows] == [str(step) for step in range(STEPS + 1)]
    assert scalars == expected_scalars
    assert final == expected_final


def test_every_method_makes_a_different_run(make_spec, uninterrupted):
    """Or the comparisons above would compare nothing."""
    finals = {pair: uninterrupted(make_spec(pair[0], **RULES[pair[1]]))[2] for pair in PAIRS}
    weights = {tuple(v for k, v in sorted(f.items()) if k.startswith("model.")) for f in finals.values()}
    assert len(weights) == len(PAIRS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_steps_with_a_checkpoint_and_its_exit_status(
    make_spec, results, uninterrupted, monkeypatch, number
):
    spec, folder = make_spec("ZO", **RULES["adamw"]), results()
    with monkeypatch.context() as patch:
        fail_in_step(patch, 3, lambda run: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as stopped:
            train(spec, folder)
    assert stopped.value.code == 128 + number
    files = RunFiles(folder, spec.name)
    assert sorted(files.checkpoints.iterdir())[-1].stem == "step-000000003"
    assert train(spec, folder).status == "done"
    assert everything(files) == uninterrupted(spec)


KILLED = """
import os, signal, sys
from pathlib import Path
from zo.spec import RunSpec
from zo.training.train import Run, train
take_step = Run.take_step
def killed(run):
    report = take_step(run)
    if run.ledger.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return report
Run.take_step = killed
train(RunSpec.from_json(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_run_killed_without_warning_resumes_to_the_same_bytes(make_spec, results, uninterrupted):
    spec, folder = make_spec("Instruct", **RULES["momentum"]), results()
    ended = subprocess.run([sys.executable, "-c", KILLED, spec.to_json(), str(folder)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert train(spec, folder).status == "done"
    assert everything(RunFiles(folder, spec.name)) == uninterrupted(spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"query_budget_q": 5, "parallel_batch_size": 2},
        {"sides": "one"},
        {"direction_family": "lowrank", "query_budget_q": 5, "parallel_batch_size": 2},
        {"direction_family": "lowrank", "rank": 2, "plan": "sequential"},
        {"direction_family": "lowrank", "rank": 2, "shard_batch": True, "optimizer": "adam"},
    ],
)
def test_two_runs_of_one_spec_are_the_same_bytes(make_spec, results, settings):
    spec = make_spec("ZO", **settings)
    folders = results(), results()
    for folder in folders:
        train(spec, folder)
    one, two = (everything(RunFiles(folder, spec.name)) for folder in folders)
    assert one == two


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"direction_family": "lowrank"},
        {"direction_family": "lowrank", "rank": 2},
        {"direction_family": "lowrank", "sides": "one"},
        {"direction_family": "lowrank", "rank": 2, "shard_batch": True, "batch_size": 5},
    ],
)
def test_runs_of_every_plan_and_chunk_end_at_the_same_weights_to_rounding(build, settings):
    ends = []
    for plan in (
        {"plan": "sequential"},
        *({"plan": "parallel", "parallel_batch_size": n} for n in (1, 2, 5)),
    ):
        run = build("ZO", query_budget_q=5, **settings, **plan)
        run.state.model.double()
        start = [p.detach().clone() for p in run.state.parameters]
        for _ in range(3):
            run.take_step()
        ends.append([p.detach() - b for p, b in zip(run.state.parameters, start, strict=True)])
    for other in ends[1:]:
        difference = [a - b for a, b in zip(ends[0], other, strict=True)]
        assert reference.norm(difference) < 1e-8 * reference.norm(ends[0])


def test_a_sharded_step_whose_batch_does_not_divide_is_refused_when_the_run_is_made(make_spec):
    with pytest.raises(UserError, match="shard_batch: query_budget_q 3 is not allowed"):
        make_spec("ZO", shard_batch=True, query_budget_q=3)


def test_another_seed_is_another_run(make_spec, uninterrupted):
    losses = {uninterrupted(make_spec("ZO", seed=seed))[0][1]["loss"] for seed in (0, 1, 2**32)}
    assert len(losses) == 3


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(
    make_spec, results, uninterrupted, crash_in_step_6, caplog
):
    spec, folder = make_spec("ZO", **RULES["momentum"]), results()
    files = crash_in_step_6(spec, folder)
    newest = sorted(files.checkpoints.iterdir())[-1]
    os.truncate(newest, newest.stat().st_size - 1)
    with caplog.at_level("INFO", logger="zo"):
        assert train(spec, folder).status == "done"
    assert f"{newest} is damaged" in caplog.text
    assert "resumed at step 2" in caplog.text
    assert everything(files) == uninterrupted(spec)


def test_a_run_whose_settings_changed_starts_over(make_spec, results, uninterrupted, crash_in_step_6, caplog):
    old, new, folder = make_spec("ZO"), make_spec("ZO", log_interval=2), results()
    assert old.name == new.name
    crash_in_step_6(old, folder)
    with caplog.at_level("INFO", logger="zo"):
        assert train(new, folder).status == "done"
    assert "settings changed since step 4: starting over" in caplog.text
    assert everything(RunFiles(folder, new.name)) == uninterrupted(new)


def test_the_plan_that_auto_chose_is_kept_when_a_run_resumes(
    make_spec, results, crash_in_step_6, monkeypatch
):
    spec, folder = make_spec("ZO", query_budget_q=5), results()
    files = crash_in_step_6(spec, folder)
    monkeypatch.setattr("zo.engine.plan.CPU_LOGITS_BYTES", 1)  # auto would now choose one direction in flight
    before = json.loads((files.folder / "spec.json").read_text())
    assert before["plan"] == "parallel"
    assert train(spec, folder).status == "done"
    assert json.loads((files.folder / "spec.json").read_text()) == before


def test_a_run_resumes_with_the_directions_in_flight_that_are_asked_for(make_spec, results, crash_in_step_6):
    """As a retry after running out of memory asks for fewer: kept silently, they would never fit."""
    folder = results()
    files = crash_in_step_6(make_spec("ZO", query_budget_q=5), folder)
    assert train(make_spec("ZO", query_budget_q=5, parallel_batch_size=1), folder).status == "done"
    assert json.loads((files.folder / "spec.json").read_text())["parallel_batch_size"] == 1


def test_a_checkpoint_whose_log_is_gone_does_not_publish_a_log_of_nothing(
    make_spec, results, crash_in_step_6
):
    spec, folder = make_spec("ZO"), results()
    files = crash_in_step_6(spec, folder)
    files.live_csv.unlink()
    assert train(spec, folder).status == "done"
    assert b"\0" not in files.csv.read_bytes()


def test_a_run_that_goes_on_holds_no_copy_of_its_checkpoint(make_spec, results, crash_in_step_6, monkeypatch):
    """It is as large as what is trained."""
    spec, folder, held = make_spec("ZO"), results(), []
    crash_in_step_6(spec, folder)

    def look(run, files, logs):
        gc.collect()
        held.append((run.ledger.step, sum(type(each) is Checkpoint for each in gc.get_objects())))
        return step_to_end(run, files, logs)

    monkeypatch.setattr("zo.training.train.step_to_end", look)
    assert train(spec, folder).status == "done"
    assert held == [(4, 0)]


# -- runs that diverge ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [mode for mode in METHODS if mode not in ("Frozen", "Random")])
def test_a_run_whose_loss_is_no_number_is_recorded_as_diverged_with_its_curve(make_spec, results, mode):
    # No validation before the end: the training loss alone must stop the run.
    spec, folder = make_spec(mode, learning_rate=1e10, validation_interval=100), results()
    outcome, files = train(spec, folder), RunFiles(folder, spec.name)
    assert outcome.status == "diverged"
    assert outcome.reason
    recorded = json.loads((files.folder / "outcome.json").read_text())
    rows = read_rows(files)
    assert recorded["status"] == "diverged"
    assert recorded["reason"] == outcome.reason
    assert recorded["step"] == int(rows[-1]["step"]) < STEPS
    assert math.isfinite(float(rows[0]["val_loss"]))


def test_a_loss_far_above_chance_for_twenty_logged_steps_in_a_row_is_diverged(
    make_spec, results, monkeypatch
):
    spec, folder = make_spec("Frozen", max_steps=3 * HIGH_STEPS, log_interval=2), results()
    take_step, limit = Run.take_step, 2 * math.log(257)

    def high_but_once(run):
        report = take_step(run)
        loss = limit * (0.99 if run.ledger.step == 6 else 1.01)
        return type(report)(loss, report.forward_passes)

    monkeypatch.setattr(Run, "take_step", high_but_once)
    outcome = train(spec, folder)
    assert outcome.status == "diverged"
    assert int(read_rows(RunFiles(folder, spec.name))[-1]["step"]) == 6 + 2 * HIGH_STEPS


def test_a_diverged_run_leaves_no_final_weights_not_even_those_of_the_run_before(
    make_spec, results, monkeypatch
):
    """A run of the same name with other settings had ended well."""
    folder, take_step = results(), Run.take_step
    assert train(make_spec("FO"), folder).status == "done"
    final = RunFiles(folder, make_spec("FO").name).final
    assert final.exists()
    monkeypatch.setattr(Run, "take_step", lambda run: replace(take_step(run), loss=math.nan))
    assert train(make_spec("FO", max_steps=3), folder).status == "diverged"
    assert not final.exists()


# -- the seam ---------------------------------------------------------------------------------------


def test_the_two_corpora_of_a_guided_run_share_one_tokenizer(make_spec, shared):
    spec = make_spec("Instruct", bp_dataset=str(shared / "guide.txt"))
    assert dataset_spec(spec).dataset != guide_dataset_spec(spec).dataset
    assert dataset_spec(spec).tokenizer == guide_dataset_spec(spec).tokenizer == "bytes"


# -- runs by hand -------------------------------------------------------------------------------------


def test_a_run_by_hand_does_not_overwrite_one_of_the_same_name_with_other_settings(make_spec, results):
    folder = results()
    assert train(make_spec("FO"), folder).status == "done"
    before = RunFiles(folder, make_spec("FO").name).csv.read_bytes()
    with pytest.raises(UserError, match=r"another max_steps \(\d+, not 3\): choose another --results"):
        train(make_spec("FO", max_steps=3), folder, replace=False)
    assert RunFiles(folder, make_spec("FO").name).csv.read_bytes() == before
    assert train(make_spec("FO"), folder, replace=False).status == "done"


def test_a_validation_loss_that_is_no_number_makes_a_run_diverged(make_spec, results):
    spec, folder = make_spec("ZO", learning_rate=1e30, max_steps=1), results()
    outcome = train(spec, folder)
    assert outcome.status == "diverged"
    assert "val_loss" in outcome.reason
