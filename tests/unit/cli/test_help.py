"""What --help says: every flag's meaning and default, in groups; nothing that only the workflow calls."""

import argparse
import re

import pytest

from zo.cli import COMMANDS, build_parser, main
from zo.cli.flags import SECTIONS
from zo.study import PLURAL


def help_of(command: str, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def line_of(flag: str, text: str) -> str:
    """What it says of one flag."""
    return re.search(rf"^  {flag}[ ,].*(?:\n {{4,}}.*)*", text, re.M)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_says_what_it_is(command):
    [known] = [a.choices for a in build_parser(command)._actions if isinstance(a, argparse._SubParsersAction)]
    flags = {action.dest: action.help for action in known[command]._actions}
    assert [name for name, text in flags.items() if not text or text.startswith("(default")] == []


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_settings_of_a_run_stand_in_groups_in_the_order_of_the_spec(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    places = [text.index(f"\n{title}:\n") for title in SECTIONS.values()]
    for (key, title), start, end in zip(SECTIONS.items(), places, [*places[1:], len(text)], strict=True):
        flag = PLURAL.get(key, key) if command == "sweep" else key
        first = text[start:end].splitlines()[2]
        assert first.startswith(f"  --{flag.replace('_', '-')} "), title
    assert places == sorted(places)


def test_no_flag_of_a_sweep_shows_an_empty_default_or_one_that_it_has_not(capsys, monkeypatch):
    text = help_of("sweep", capsys, monkeypatch)
    assert "(default ())" not in text
    assert "(default None)" not in text
    for flag in ("--modes", "--learning-rates"):
        assert line_of(flag, text).endswith("(required, but with --quick)")
    assert line_of("--epsilon", text).endswith("(default 0.001)")
    assert "1 epoch if none is given" in text


def test_the_flags_of_a_run_by_hand_say_what_is_required(capsys, monkeypatch):
    text = help_of("train", capsys, monkeypatch)
    assert line_of("--mode", text).endswith("(required)")
    assert line_of("--learning-rate", text).endswith("(default 1e-05)")
    assert "1 epoch if none is given" in text


def test_gpus_are_a_number_for_one_run_and_ids_for_a_sweep(capsys, monkeypatch):
    said = {
        name: line_of("--gpus", help_of(name, capsys, monkeypatch)) for name in ("train", "probe", "sweep")
    }
    assert "how many free GPUs" in said["train"]
    assert "how many free GPUs" in said["probe"]
    assert "ids of the GPUs" in said["sweep"]
    assert "ranks" in said["train"]
    assert "ranks" not in said["probe"]


def test_what_only_the_workflow_calls_is_not_listed_but_has_help(capsys, monkeypatch):
    assert "crash" not in help_of("--help", capsys, monkeypatch)
    assert "(for the workflow)" in help_of("crash", capsys, monkeypatch)
