"""Mistakes at the command line: each is one line that names the value and the remedy, before any work."""

import pytest
from small_runs import SETTINGS, fail, write_corpus

from zo.cli import main
from zo.errors import UserError
from zo.spec import RunSpec
from zo.training.run import pick_device
from zo.training.train import train


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


WRITERS = ["replay none", "probe none", "bench --device cpu", "report none", "claims none", "pack none"]
"""Commands with an --out, and what they cannot read: that is found later."""


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/made.tar.gz", "--out: folder file cannot be made: File exists: choose another"),
        ("folder", "--out: folder is a folder: name a file in it"),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_anything_is_read_or_measured(
    command, out, words, tmp_path, capsys
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    name, *flags = command.split()
    assert fail(capsys, name, *flags, "--out", out) == f"zo {name}: {words}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--learning_rat", "1e-3"], "unexpected '--learning-rat': did you mean '--learning-rate'?"),
        (["train", "--xyz=1"], "unexpected '--xyz=1': `zo train --help` lists what is allowed"),
        (["status", "--formt", "json"], "did you mean '--format'? allowed: --watch, --format"),
        (["status", "a", "b"], "unexpected 'b': allowed: --watch, --format"),
        (["sweep", "--scope", "full"], "unexpected '--scope': did you mean '--scopes'?"),
        (["trian"], "unknown command 'trian': did you mean 'train'? allowed: train, sweep"),
        (["train", "--threads", "x"], "argument --threads: invalid int value: 'x': `zo train --help` says"),
        (["train", "--keep", "all"], "argument --keep: invalid choice: 'all'"),
        (["pack"], "the following arguments are required: --out: `zo pack --help` says more"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_flag_that_is_not_there_is_one_line_with_the_nearest_that_is(arguments, words, capsys):
    assert words in fail(capsys, *arguments)


def test_no_command_at_all_says_where_help_is(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.endswith("COMMAND: `zo --help` says more\n")


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "gpu"])
def test_no_device_but_a_cpu_or_cuda_is_taken(name):
    with pytest.raises(UserError, match=f"device: '{name}' is not allowed: auto, cpu, cuda or cuda:<index>"):
        pick_device(name)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not allowed: it must be a number"),
        ({"batch_size": "many"}, "batch_size: 'many' is not allowed: it must be an integer"),
        (
            {"shard_batch": "maybe"},
            "shard_batch: 'maybe' is not allowed: it must be a boolean",
        ),
        ({"scope": "block7"}, "scope: 'block7' is not allowed: there is no block7 among the model's 2"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_told_in_plain_words(setting, words):
    with pytest.raises(UserError, match=words):
        RunSpec.make(mode="ZO", max_steps=1, **setting)


@pytest.mark.parametrize(
    ("mode", "given", "told"),
    [("ZO", {}, True), ("ZO", {"learning_rate": 1e-5}, False), ("Frozen", {}, False)],
)
def test_a_learning_rate_that_was_not_chosen_is_said_in_the_log(tmp_path, caplog, mode, given, told):
    settings = {key: value for key, value in SETTINGS.items() if key != "learning_rate"} | {"max_steps": 1}
    spec = RunSpec.make(mode=mode, dataset=str(write_corpus(tmp_path)), **settings, **given)
    with caplog.at_level("INFO", logger="zo"):
        train(spec, tmp_path / "results")
    assert ("learning_rate 1e-05 (the default; FO and ZO want rates far apart)" in caplog.messages) == told
