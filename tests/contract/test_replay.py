"""A ZO run's scalar log, a few kilobytes, is worth its weights: they come out of it bit for bit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import run_zo, small_spec, write_corpus

from zo.errors import UserError
from zo.methods import METHODS, ZO
from zo.optimizers import OPTIMIZERS
from zo.step import Method, descend, make_estimate, report_estimate
from zo.training.checkpoint import read_checkpoint
from zo.training.record import RunFiles
from zo.training.replay import replay
from zo.training.train import train

RULES = [{"optimizer": name} for name in OPTIMIZERS]
RULES += [
    {"momentum": 0.9},
    {"weight_decay": 0.1},
    {"optimizer": "mudamw", "cautious": True, "weight_decay": 0.1},
]
FAMILIES = [
    {"direction_family": "rademacher"},
    {"direction_family": "lowrank"},
    {"direction_family": "lowrank", "rank": 2, "optimizer": "adam"},
]
OTHERS = [
    *({"scope": scope} for scope in ("reduced", "head", "norms", "block1")),
    {"schedule": "cosine", "warmup_steps": 3},
    {"sides": "one"},
    {"shard_batch": True},
    {"sides": "one", "shard_batch": True, "direction_family": "lowrank"},
    {"query_budget_q": 5, "parallel_batch_size": 2},
    {"query_budget_q": 1, "epsilon": 1e-2},
    {"plan": "sequential"},
    {"precision": "bf16"},
    {"precision": "bf16", "weights": "bf16"},
    {"precision": "bf16", "weights": "bf16", "direction_family": "lowrank"},
    {"precision": "bf16", "weights": "bf16-nearest"},
    {"architecture": "llama"},
    {"seed": 2**32 + 1},
    {"tokenizer": "bpe", "vocab_size": 300},
]
RANDOM = [
    {},
    {"precision": "bf16", "weights": "bf16"},
    {"optimizer": "muon"},
    {"direction_family": "lowrank"},
    {"direction_family": "rademacher"},
]
CASES = [("ZO", case) for case in RULES + FAMILIES + OTHERS] + [("Random", case) for case in RANDOM]
CASES += [("Frozen", {}), ("Calibrate", {"bp_interval": 100}), ("Instruct", {"bp_interval": 8})]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def finish(corpus, tmp_path):
    """A function: a finished run's files, with nothing left that its data could be read from."""

    def finish(mode, results=tmp_path / "results", keep="checkpoint", **settings):
        spec = small_spec(corpus, mode, **settings)
        train(spec, results, keep=keep)
        shutil.rmtree(results / "cache")
        return RunFiles(results, spec.name)

    return finish


def weights_of(path):
    tensors = read_checkpoint(path).tensors
    return {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}


@pytest.mark.parametrize(("mode", "settings"), CASES, ids=lambda value: "-".join(map(str, value)) or "as is")
def test_the_weights_are_rebuilt_bit_for_bit_without_data(finish, mode, settings):
    files = finish(mode, **settings)
    replayed = replay(files.folder)
    assert replayed.equal
    kept = weights_of(files.final)
    assert kept.keys() == replayed.weights.keys()
    assert all(torch.equal(tensor, replayed.weights[name]) for name, tensor in kept.items())


def test_the_log_is_kilobytes_and_the_weights_need_not_have_been_kept(finish, tmp_path):
    files = finish("ZO", optimizer="adam", keep="nothing")
    assert not files.final.exists()
    assert files.scalars.stat().st_size < 1000
    out = tmp_path / "weights.safetensors"
    told = run_zo("replay", files.folder, "--out", out)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{files.run}: 7 steps replayed: weights sha256 ")
    assert told.stdout.endswith(": equal to the run's\n")
    again = replay(files.folder).weights
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(out).items())


def test_with_weights_alone_kept_no_optimizer_state_is_left_and_it_replays(finish):
    files = finish("ZO", optimizer="adam", keep="weights")
    tensors = read_checkpoint(files.final).tensors
    assert tensors
    assert all(name.startswith("model.") for name in tensors)
    assert not files.checkpoints.exists()
    replayed = replay(files.folder)
    assert replayed.equal
    assert all(torch.equal(t, replayed.weights[n.removeprefix("model.")]) for n, t in tensors.items())


def test_a_changed_coefficient_is_noticed_and_the_exit_status_says_so(finish):
    files = finish("ZO")
    lines = files.scalars.read_text().splitlines()
    line = json.loads(lines[3])
    line["coefficients"][1] *= 1 + 1e-6
    files.scalars.write_text("\n".join([*lines[:3], json.dumps(line), *lines[4:]]) + "\n")
    told = run_zo("replay", files.folder)
    assert told.returncode == 1
    assert "NOT the run's" in told.stdout


@pytest.mark.parametrize(("mode", "step"), [("FO", 1), ("Calibrate", 3), ("Instruct", 3)])
def test_backprop_steps_are_refused_with_one_line(finish, mode, step):
    told = run_zo("replay", finish(mode).folder)
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 1
    assert f"step {step} is a backprop step of mode {mode}" in told.stderr
    assert "cannot be replayed from scalars" in told.stderr


class Blind(Method):
    """Zeroth order, with a step of its own: nothing says what it makes of an estimate."""

    uses = ZO.uses
    forward_passes = staticmethod(ZO.forward_passes)

    def step(self, state, batch, guide):
        estimate = make_estimate(state, batch)
        return report_estimate(estimate, descend(state, estimate))


def test_a_method_that_does_not_say_its_direction_is_refused_with_one_line(finish, monkeypatch):
    monkeypatch.setitem(METHODS, "Blind", Blind)
    files = finish("Blind")
    with pytest.raises(UserError, match=r"mode Blind cannot be replayed: .* final\.safetensors$"):
        replay(files.folder)


def lose_a_line(files):
    lines = files.scalars.read_text().splitlines(keepends=True)
    files.scalars.write_text("".join(lines[:2] + lines[3:]))


def lose_the_end(files):
    files.scalars.write_text(files.scalars.read_text()[:-20])


def write_a_list(files):
    files.scalars.write_text("[1]\n")


def crash(files):
    files.write_outcome("crashed", "x", 3)


DAMAGES = [
    (lose_a_line, r"line 3 is not step 3's"),
    (lose_the_end, "is no scalar log: JSONDecodeError"),
    (write_a_list, "is no scalar log: TypeError"),
    (lambda files: files.scalars.unlink(), "is no scalar log: FileNotFoundError"),
    (lambda files: files.outcome.unlink(), "the run is not finished: only"),
    (crash, "the run is crashed: only"),
    (lambda files: (files.folder / "spec.json").unlink(), "is not a run's folder"),
    (lambda files: (files.folder / "spec.json").write_text('{"mode": "XX"}'), "unknown mode 'XX'"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_what_cannot_be_replayed_is_one_line(finish, damage, words):
    files = finish("ZO")
    damage(files)
    with pytest.raises(UserError, match=words) as error:
        replay(files.folder)
    assert "\n" not in str(error.value)


def test_initial_weights_that_come_out_otherwise_are_no_mismatch_but_a_line_that_says_why(finish):
    files = finish("ZO", scope="head")
    path = files.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"frozen_weights_sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"initial weights cannot be made again here: .*'torch'"):
        replay(files.folder)


def test_noise_of_another_kind_of_device_is_refused(finish):
    files = finish("ZO")
    path = files.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "cuda:0"}))
    with pytest.raises(UserError, match=r"device: 'cpu' makes other noise than the run's cuda"):
        replay(files.folder, device="cpu")
