"""The layer-wise modes: who is trained when, from which weights, at which rate, killed at any step."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import everything, run_zo, small_spec, write_corpus

from zo.errors import UserError
from zo.lengths import total_steps
from zo.methods import METHODS
from zo.planning.footprint import (
    checkpoint_bytes,
    count_parameters,
    count_passes,
    memory_bytes,
    trained_at_once,
)
from zo.sizes import ARCHITECTURES
from zo.spec import RunSpec
from zo.training.record import RunFiles
from zo.training.run import Run, build_run
from zo.training.train import train

MODES = ["LayerwiseFO", "LayerwiseZO", "LayerwiseFrozen"]
STEPS = 7
SCOPES = ["embedding"] * 3 + ["block0"] * 2 + ["block1"] * 2
"""Of a run's seven steps: two blocks, and twice a block's length for the embedding."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder)
    return folder


@pytest.fixture
def build(shared):
    """A function: a run in memory at step 0."""
    return lambda mode, **settings: build_run(
        small_spec(shared / "corpus.txt", mode, **settings), shared / "cache", CPU
    )[0]


def copy_weights(run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.state.model.named_parameters()}


def scope_of(name: str) -> str:
    """Of a parameter's name, `transformer.h.1.mlp...` or `model.layers.1.mlp...`."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return f"block{numbers[0]}" if numbers else "embedding"


# -- the schedule -----------------------------------------------------------------------------------


@given(st.sampled_from(MODES), st.integers(1, 9), st.sampled_from(["100k", "1M", "20M"]), st.integers(0, 500))
def test_the_phases_are_the_embedding_and_every_block_in_order_and_none_is_empty(mode, parts, size, more):
    cell = {"scope": "full", "model_size": size, "embedding_parts": parts}
    least = METHODS[mode].least_steps(RunSpec.make(mode=mode, max_tokens=1e9, **cell))
    total = least + more
    spec = RunSpec.make(mode=mode, max_steps=total, **cell)
    phases = [METHODS[mode].phase(spec, step, total) for step in range(1, total + 1)]
    found = [(phase, len(list(same))) for phase, same in itertools.groupby(phases)]
    assert [phase.scope for phase, _ in found] == ["embedding", *(f"block{i}" for i in range(spec.layers))]
    assert [phase.last - phase.first + 1 for phase, _ in found] == [length for _, length in found]
    assert [phase.first for phase, _ in found] == [1, *(phase.last + 1 for phase, _ in found[:-1])]
    part = total / least
    assert found[0][1] == int(parts * part)
    assert all(abs(length - part) < 1 for _, length in found[1:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scope": "reduced"}, ["scope: reduced", "LayerwiseZO", "give scope full"]),
        ({"scope": "block0"}, ["scope: block0", "give scope full"]),
        ({"max_steps": 3}, ["max_steps: 3", "3 steps", "the 4 that"]),
        ({"max_steps": 8, "embedding_parts": 7}, ["max_steps: 8", "the 9 that"]),
        ({"embedding_parts": 0}, ["embedding_parts: 0", "greater than or equal to 1"]),
    ],
)
def test_a_scope_or_a_length_that_cannot_be_cut_is_one_line(shared, settings, words):
    with pytest.raises(UserError) as caught:
        small_spec(shared / "corpus.txt", "LayerwiseZO", **settings)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [{"max_tokens": 3 * 16}, {"max_forwards": 9}, {"epochs": 1e-3}])
def test_every_kind_of_length_must_suffice_for_each_phase(shared, length):
    def count(**length):
        spec = small_spec(shared / "corpus.txt", "LayerwiseZO", **{"max_steps": None} | length)
        return total_steps(spec, steps_per_epoch=3000)

    with pytest.raises(UserError, match=f"{next(iter(length))}: .*not the 4 that its phases need"):
        count(**length)
    assert count(**{key: 10 * value for key, value in length.items()}) >= 4


# -- what a phase trains ----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_only_the_phases_parameters_change_and_a_trained_block_never_again(
    build, mode, architecture, optimizer
):
    run, seen, scopes = build(mode, architecture=architecture, optimizer=optimizer), set(), []
    for _ in range(STEPS):
        before = copy_weights(run)
        run.take_step()
        phase = run.state.phase
        moved = {name for name, old in before.items() if not torch.equal(old, copy_weights(run)[name])}
        own = {name for name in before if scope_of(name) == phase.scope}
        starts = phase.scope not in seen
        if mode != "LayerwiseFrozen" or phase.scope == "embedding":
            assert moved == own
        else:  # a block's norms and biases are drawn anew at the values that they had
            assert moved <= own if starts else not moved
            assert bool(moved) == starts
        model = run.state.model
        assert {name for name, p in model.named_parameters() if p.requires_grad} == own
        seen.add(phase.scope)
        scopes.append(phase.scope)
    assert scopes == SCOPES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_block_starts_from_new_weights_of_its_own_the_same_in_all_modes(build, architecture):
    starts = {}
    for mode in MODES:
        for seed in (0, 1):
            run = build(mode, architecture=architecture, seed=seed)
            run.ledger.step = 3
            first = copy_weights(run)
            run.enter(4)
            run.enter(6)
            starts[mode, seed] = first, copy_weights(run)
    matrices = [name for name, p in starts["LayerwiseZO", 0][0].items() if p.ndim > 1]
    for name in matrices:
        (first, fresh), (_, other) = (
            [weights[name] for weights in starts["LayerwiseZO", seed]] for seed in (0, 1)
        )
        if scope_of(name) == "embedding":
            assert torch.equal(first, fresh)
            continue
        assert not torch.equal(fresh, first)
        assert not torch.equal(fresh, other)
        twin = starts["LayerwiseZO", 0][1][name.replace(".0.", ".1.")]
        assert scope_of(name) == "block1" or not torch.equal(fresh, twin)
        assert fresh.std().item() == pytest.approx(first.std().item(), rel=0.1)
        assert all(torch.equal(fresh, starts[mode, 0][1][name]) for mode in MODES)


def test_new_weights_are_rounded_as_the_first_ones_are(build):
    run = build("LayerwiseZO", precision="bf16", weights="bf16")
    run.enter(4)
    types = {parameter.dtype for parameter in run.state.parameters if parameter.ndim > 1}
    assert types == {torch.bfloat16}


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam"}, {"direction_family": "lowrank"}])
@pytest.mark.parametrize(("mode", "own"), [("LayerwiseFO", "FO"), ("LayerwiseZO", "ZO")])
def test_a_blocks_phase_is_the_method_on_that_block_to_the_bit(build, mode, own, settings):
    check_phase(build(mode, **settings), build(own, scope="block1", **settings), first=6, last=7)


@pytest.mark.parametrize("mode", MODES)
def test_the_embeddings_phase_is_backprop_on_all_outside_the_blocks_to_the_bit(build, mode):
    check_phase(build(mode, optimizer="adam"), build("FO", scope="embedding", optimizer="adam"), 1, 3)


def check_phase(run: Run, plain: Run, first: int, last: int) -> None:
    """A phase of ``run`` against ``plain``, which trains that scope alone, from the same weights and step."""
    while run.ledger.step < first - 1:
        run.take_step()
    run.enter(first)
    plain.ledger.step = first - 1
    plain.state.model.load_state_dict(run.state.model.state_dict())
    for _ in range(first, last + 1):
        ours, theirs = run.take_step(), plain.take_step()
        assert (ours.loss, ours.grad_norm) == (theirs.loss, theirs.grad_norm)
        assert ours.scalars == theirs.scalars
    assert all(torch.equal(p, copy_weights(plain)[name]) for name, p in copy_weights(run).items())


def test_backprop_pays_for_nothing_below_the_block_that_it_trains(build):
    run, needs = build("LayerwiseFO"), []
    for block in run.state.model.transformer.h:
        block.register_forward_pre_hook(lambda _, args: needs.append(args[0].requires_grad))
    for _ in range(STEPS):
        run.take_step()
    assert needs == [True, True] * 3 + [False, True] * 2 + [False, False] * 2  # into the two blocks


# -- rates and optimizers ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_phase_has_its_own_warm_up_and_cosine_and_the_embedding_its_own_rate(build, mode):
    settings = {"learning_rate": 1e-3, "bp_learning_rate": 5e-2, "schedule": "cosine", "warmup_steps": 1}
    run, rates = build(mode, max_steps=12, **settings), []
    for _ in range(12):
        run.take_step()
        rates.append(run.state.learning_rate)
    middle = 0.1 + 0.9 / 2
    block = 0.0 if mode == "LayerwiseFrozen" else 1e-3
    assert rates[:6:5] == pytest.approx([5e-2, 0.1 * 5e-2])
    assert rates[1:5] == sorted(rates[1:5], reverse=True)
    assert rates[6:] == pytest.approx([block, block * middle, block * 0.1] * 2)
    assert build(mode, max_steps=12).state.learning_rate == 0
    plain = build(mode, learning_rate=1e-3)
    plain.take_step()
    assert plain.state.learning_rate == 1e-3


@pytest.mark.parametrize("mode", ["LayerwiseFO", "LayerwiseZO"])
def test_every_phase_has_new_optimizers_of_its_own_parameters(build, mode):
    run, ages = build(mode, optimizer="adam"), []
    for _ in range(STEPS):
        run.take_step()
        [optimizer] = run.state.optimizers
        assert {id(p) for p in optimizer.state} == {id(p) for p in run.state.parameters}
        ages += {state["step"].item() for state in optimizer.state.values()}
    assert ages == [1, 2, 3, 1, 2, 1, 2]


# -- killed and resumed -----------------------------------------------------------------------------


class Crash(Exception):
    pass


@pytest.mark.parametrize("interval", [1, 3, 5])
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        *((mode, {"optimizer": "adam"}) for mode in MODES),
        *((mode, {"architecture": "llama", "momentum": 0.9}) for mode in MODES),
        ("LayerwiseZO", {"direction_family": "lowrank"}),
        ("LayerwiseFO", {"precision": "bf16", "weights": "bf16", "schedule": "cosine"}),
    ],
)
def test_a_run_killed_in_every_one_of_its_steps_ends_at_the_same_bytes(
    shared, tmp_path, monkeypatch, mode, settings, interval
):
    """Checkpoints lie at every step; at the borders of phases alone (3); or in the middle of one (5)."""
    spec = small_spec(shared / "corpus.txt", mode, checkpoint_interval=interval, **settings)
    for which in ("calm", "killed"):
        (tmp_path / which).mkdir()
        (tmp_path / which / "cache").symlink_to(shared / "cache")
    assert train(spec, tmp_path / "calm", device="cpu").status == "done"
    take_step = Run.take_step
    for number in range(1, STEPS + 1):

        def take(run, number=number):
            report = take_step(run)
            if run.ledger.step == number:
                raise Crash
            return report

        with monkeypatch.context() as patch:
            patch.setattr(Run, "take_step", take)
            with pytest.raises(Crash):
                train(spec, tmp_path / "killed", device="cpu")
    assert train(spec, tmp_path / "killed", device="cpu").status == "done"
    assert everything(tmp_path / "killed", spec.name) == everything(tmp_path / "calm", spec.name)


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_says_that_the_embeddings_backprop_is_not_in_the_log(shared, tmp_path, mode):
    (tmp_path / "cache").symlink_to(shared / "cache")
    spec = small_spec(shared / "corpus.txt", mode)
    train(spec, tmp_path, device="cpu")
    files = RunFiles(tmp_path, spec.name)
    refused = run_zo("replay", files.folder)
    assert refused.returncode != 0
    words = f"step 1 is a backprop step of mode {mode}: its gradient is not in the scalar log"
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    manifest = json.loads((files.folder / "manifest.json").read_text())
    assert manifest["trainable_parameters"] == manifest["parameters"]
    logged = [json.loads(line)["step"] for line in files.scalars.read_text().splitlines()]
    assert logged == ([4, 5, 6, 7] if mode == "LayerwiseZO" else [])


# -- what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_forecast_counts_the_passes_and_the_memory_of_the_phases(build, mode):
    run = build(mode, max_steps=8, optimizer="adam", scope="full", vocab_size=300, tokenizer="bpe")
    sizes = []
    for _ in range(8):
        run.take_step()
        sizes.append(sum(p.numel() for p in run.state.parameters))
    spec, ledger = run.spec, run.ledger
    costs = {"LayerwiseFO": (8, 8), "LayerwiseZO": (4 + 4 * 4, 4), "LayerwiseFrozen": (8, 4)}
    assert (ledger.forward_passes, ledger.backward_passes) == costs[mode]
    assert count_passes(spec) == ledger.forward_passes + 2 * ledger.backward_passes
    assert trained_at_once(spec) == max(sizes) < count_parameters(spec)[1] == run.state.model.num_parameters()
    tensors = run.checkpoint({"csv": 0}).tensors.values()
    stored = sum(t.numel() * t.element_size() for t in tensors if t.ndim)  # without the steps' counters
    if mode != "LayerwiseFrozen":  # whose last phases have no state
        assert stored == checkpoint_bytes(spec)
    whole = RunSpec.make(**spec.model_dump() | {"mode": "FO"})
    assert mode == "LayerwiseZO" or memory_bytes(spec) < memory_bytes(whole)  # it has members in flight
