"""Weights kept at chosen steps: the run's own, made again when it resumes, probed, let go once probed."""

import csv

import pytest
from small_runs import read_final, run_zo, small_spec, train_command, write_corpus

import zo.training.loop
from zo.cli.flags import read_wholes
from zo.engine.probe import ProbeSettings
from zo.errors import UserError
from zo.files import read_json
from zo.sweep.prune import prune
from zo.training.checkpoint import checkpoint_path
from zo.training.probe_run import probe_run
from zo.training.record import RunFiles
from zo.training.train import train

STEPS = (4, 5)
QUICK = ProbeSettings(queries=(1,), epsilons=(1e-3,), directions=2)
"""Of a run of 7 steps with a checkpoint at every second one."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def make(corpus, tmp_path):
    """A function: train a run, in a folder of its own; its files."""

    def make(name="results", mode="FO", keep_steps=STEPS, **settings) -> RunFiles:
        spec = small_spec(corpus, mode, **settings)
        train(spec, tmp_path / name, device="cpu", threads=1, keep="weights", keep_steps=keep_steps)
        return RunFiles(tmp_path / name, spec.name)

    return make


def read_kept(files):
    return {path.name: read_final(path) for path in sorted(files.kept.glob("*"))}


def probed_rows(files, *places):
    probe_run(files.folder, places=places, batches=2, settings=QUICK, device="cpu", threads=1)
    with open(files.probe, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", ["FO", "ZO"])
def test_weights_of_a_step_are_those_of_a_run_that_ends_there(make, mode):
    files, short = make(mode=mode), make("short", mode, (), max_steps=5)
    assert list(read_kept(files)) == [checkpoint_path(files.kept, step).name for step in STEPS]
    assert read_final(checkpoint_path(files.kept, 5)) == read_final(short.final)
    assert read_final(checkpoint_path(files.kept, 4)) != read_final(short.final)


def test_a_run_that_asks_for_none_keeps_none_and_writes_the_same(make):
    files, plain = make(), make("plain", keep_steps=())
    assert not plain.kept.exists()
    assert read_final(files.final) == read_final(plain.final)
    same = ("spec.json", "scalars.jsonl")
    assert [(files.folder / name).read_bytes() for name in same] == [
        (plain.folder / name).read_bytes() for name in same
    ]


@pytest.mark.parametrize("written", [True, False])
def test_a_killed_run_keeps_the_same_bits_when_it_goes_on(make, monkeypatch, written):
    """Killed at step 4: after its checkpoint, from which step 4 is not made again, or just before."""
    whole = read_kept(make("whole"))
    save = zo.training.loop.save_checkpoint

    def die(folder, checkpoint):
        if checkpoint.step != 4:
            return save(folder, checkpoint)
        if written:
            save(folder, checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(zo.training.loop, "save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.undo()
    assert read_kept(make()) == whole


def test_a_run_that_starts_over_keeps_nothing_of_the_one_before(make):
    assert read_kept(make())
    assert not read_kept(make(keep_steps=()))


def test_a_probe_measures_the_places_in_the_order_of_the_run(make):
    rows = probed_rows(make(), "end", "5", "start", "4")
    assert list(dict.fromkeys((row["at"], row["step"]) for row in rows)) == [
        ("start", "0"),
        ("4", "4"),
        ("5", "5"),
        ("end", "7"),
    ]
    assert len({row["value"] for row in rows if row["quantity"] == "gradient_noise"}) == 4


def test_a_probe_in_any_order_measures_the_untrained_model_at_the_start(make):
    files = make()
    first = [row for row in probed_rows(files, "start", "end") if row["at"] == "start"]
    assert first == [row for row in probed_rows(files, "end", "start") if row["at"] == "start"]


def test_weights_that_were_not_kept_are_asked_for_and_those_that_never_were_are_passed_over(make, caplog):
    files = make()
    with pytest.raises(UserError, match="kept no weights of step 3: make it again with --keep-steps 3"):
        probed_rows(files, "3")
    assert {row["at"] for row in probed_rows(files, "start", "3", "4")} == {"start", "4"}
    assert "3 is not probed" in caplog.text
    assert {row["at"] for row in probed_rows(files, "start", "8")} == {"start"}
    assert "no weights of 8 to probe" in caplog.text


def test_damaged_weights_are_told_from_whole_ones(make):
    files = make()
    path = checkpoint_path(files.kept, 4)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"step-000000004\.safetensors is damaged"):
        probed_rows(files, "4")


def test_pruning_takes_kept_weights_after_their_probe_alone(make):
    files = make()
    assert not [each for each in prune(files.results) if each.kind == "kept"]
    probed_rows(files, "start", "4")
    gone = [each.path for each in prune(files.results) if each.kind == "kept"]
    assert gone == [checkpoint_path(files.kept, 4)]
    assert list(read_kept(files)) == [checkpoint_path(files.kept, 5).name]


def test_the_command_keeps_them_too(corpus, tmp_path):
    spec = small_spec(corpus, "ZO")
    done = run_zo(*train_command(spec, tmp_path, "--keep-steps", "5,4", "--no-job-log")[3:])
    assert done.returncode == 0, done.stderr
    files = RunFiles(tmp_path, spec.name)
    assert [path.name for path in sorted(files.kept.iterdir())] == [
        checkpoint_path(files.kept, step).name for step in STEPS
    ]
    assert read_json(files.outcome)["status"] == "done"


@pytest.mark.parametrize("text", ["0", "4,x", "-1", "1.5"])
def test_a_step_that_is_none_is_named(text):
    with pytest.raises(UserError, match=r"--keep-steps: '.*' is not allowed: whole numbers from 1"):
        read_wholes(text, "keep-steps")
