"""The summary: what it says first, what it never hides, and that it is the same twice."""

import io
import json
import re

import pandas as pd
import pytest
from made_runs import write_beside, write_crash, write_run, write_sweep

from zo.analysis.summary import stats_text, write_summary
from zo.cli import main
from zo.errors import UserError
from zo.layout import render, shorten


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "csv_logs"
    write_sweep(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return write_summary(folder, folder.parent / "summary.txt", folder.parent / "summary.csv")


def test_the_answer_comes_first_and_names_losses_and_differences(text):
    head, answer = text.split("=====", 1)
    assert "33 runs" in head
    assert "30 done, 2 diverged, 1 crashed" in head
    assert "n = 1 seed: no intervals, differences may be chance" in head
    said = " ".join(answer.split())
    assert "best ZO q=8 (lr 1e-03) ends at 4.100: 1.425 above the best FO's 2.674, 1.900 below Frozen" in said
    assert "Learning rate not settled: ZO (high edge)." in said


def test_seeds_bring_intervals(tmp_path):
    write_sweep(tmp_path / "csv_logs", seeds=(0, 1, 2), scopes=("full",))
    text = write_summary(tmp_path / "csv_logs", tmp_path / "s.txt", tmp_path / "s.csv")
    assert "n = 3 seeds" in text
    assert "2.684 ± 0.025" in text


def test_no_line_is_wider_than_110_columns(text):
    assert max(len(line) for line in text.splitlines() if "log: " not in line) <= 110


def test_crashed_and_diverged_runs_stand_at_the_end_with_reason_and_log(text, folder):
    log = folder.parent / "job_logs" / "ZO_full_bs4_q8_lr1e-02.log"
    lines = text.splitlines()
    crashed = [i for i, line in enumerate(lines) if line.startswith("crashed ")]
    assert [lines[i] for i in crashed] == [f"crashed ZO_full_bs4_q8_lr1e-02: RuntimeError: boom (log: {log})"]
    assert lines[crashed[0] + 1 : crashed[0] + 4] == [
        "    step 1",
        "    Traceback (most recent call last):",
        "    boom",
    ]
    diverged = [line for line in lines if line.startswith("diverged ")]
    assert [line.split(":")[0] for line in diverged] == [
        "diverged FO_full_bs4_q0_lr1e-01",
        "diverged FO_reduced_bs4_q0_lr1e-01",
    ]


def test_the_same_logs_give_the_same_bytes_and_nothing_is_left_aside(folder, text, tmp_path):
    write_summary(folder, tmp_path / "a.txt", tmp_path / "a.csv")
    assert (tmp_path / "a.txt").read_text() == text == (folder.parent / "summary.txt").read_text()
    assert (tmp_path / "a.csv").read_bytes() == (folder.parent / "summary.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.txt"]


def test_the_csv_is_the_run_table(folder, text):
    table = pd.read_csv(folder.parent / "summary.csv")
    assert list(table.columns[:10]) == [
        *("run", "mode", "scope", "batch_size", "q", "lr", "optimizer", "seed", "status", "reason")
    ]
    assert len(table) == 33
    assert sorted(table["run"]) == sorted(path.stem for path in folder.glob("*.csv"))


def test_nothing_finished_is_said_and_not_a_crash(tmp_path):
    folder = tmp_path / "csv_logs"
    write_crash(folder, "ZO_full_bs4_q1_lr1e-05", [])
    write_run(folder, "FO", "full", 0, 1e-1, diverges_at=1)
    text = write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv")
    assert "No run finished" in text
    assert "crashed ZO_full_bs4_q1_lr1e-05" in text


def test_a_method_that_only_diverged_is_named_in_the_answer(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "FO", "full", 0, 1e-2)
    write_run(folder, "ZO", "full", 8, 1e-1, diverges_at=10)
    text = write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv")
    assert "full: ZO has no learning rate that finished in every seed (1 diverged)." in text
    assert "full: FO has no" not in text


def test_a_crash_with_a_missing_log_and_a_long_reason_stays_one_line(tmp_path):
    folder = tmp_path / "csv_logs"
    write_crash(folder, "ZO_full_bs4_q1_lr1e-05", [])
    reason = "first line\nsecond " + "long " * 60
    outcome = {"status": "crashed", "reason": reason, "log": "results/job_logs/gone.log"}
    write_beside(folder, "ZO_full_bs4_q1_lr1e-05", "outcome.json", outcome)
    (folder.parent / "job_logs" / "ZO_full_bs4_q1_lr1e-05.log").unlink()
    text = write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv")
    line = next(line for line in text.splitlines() if line.startswith("crashed "))
    assert "first line second long" in line
    assert line.endswith("(log: results/job_logs/gone.log)")
    assert "(no log file)" in text


def read_same(folder, **keywords) -> str:
    """What the summary says is the same in every run."""
    text = write_summary(folder, folder.parent / "s.txt", folder.parent / "s.csv", **keywords)
    head = " ".join(text.split("=====")[0].split())
    return re.search(r"The same in every run: (.*?) Loss", head)[1]


def test_a_setting_that_some_runs_do_not_have_is_not_called_the_same_in_every_run(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, name="a", spec={"max_steps": 20, "model_size": "100k"})
    write_run(folder, name="b", spec={"max_forwards": 80, "model_size": "100k"})
    same = read_same(folder)
    assert "batch_size 4" in same
    assert "max_" not in same


def test_what_a_control_does_not_read_and_a_crash_did_not_record_is_the_same_all_the_same(tmp_path):
    folder = tmp_path / "csv_logs"
    write_run(folder, "FO", "full", 0, 1.0)
    write_run(folder, "ZO", "full", 1, 1.0)
    write_run(folder, "Frozen", "full", 0, 1.0)
    write_crash(folder, "ZO_full_bs4_q8_lr1e+00", [])
    same = read_same(folder)
    assert "optimizer sgd" in same
    assert "lr 1," in same  # a whole number


def test_losses_fall_back_to_training_and_say_so(tmp_path):
    folder = tmp_path / "csv_logs"
    folder.mkdir()
    for mode, losses in {"FO": (3, 2, 1.2), "ZO": (3, 2.5, 2.2)}.items():
        rows = [f"{i},{mode},{loss}" for i, loss in enumerate(losses)]
        (folder / f"{mode}.csv").write_text("\n".join(["step,mode,loss", *rows]) + "\n")
    text = write_summary(folder, tmp_path / "s.txt", tmp_path / "s.csv")
    assert "final TRAINING loss" in text
    assert "1.000 above the best FO's 1.200" in text
    assert "Learning rate not settled: FO (single value), ZO (single value)." in " ".join(text.split())


def test_stats_come_in_four_formats(folder):
    plain, md = stats_text(folder), stats_text(folder, format="md", targets=[5.0])
    assert "Convergence" in plain
    assert "| full | 5.000 | ZO q=8 |" in md
    tables = json.loads(stats_text(folder, format="json"))
    assert list(tables) == [
        *("answer", "guards", "best_learning_rates", "convergence", "equal_budgets", "pareto", "costs")
    ]
    frame = pd.read_csv(io.StringIO(stats_text(folder, format="csv")))
    assert set(frame["table"]) == set(tables)
    assert len(frame) == sum(map(len, tables.values()))


def test_the_whole_summary_comes_in_every_format(tmp_path, capsys):
    folder, said = tmp_path / "csv_logs", {}
    write_run(folder, "FO", "full", 0, 1e-2)
    write_run(folder, "FO", "full", 0, 1e-1, diverges_at=30)
    write_run(folder, "ZO", "full", 8, 1e-3)
    for format in ("text", "md", "csv", "json", "tex"):
        assert main(["analyze", str(folder), "--out", str(tmp_path), "--format", format]) == 0
        said[format] = capsys.readouterr().out
    assert said["text"] == (tmp_path / "summary.txt").read_text()
    assert said["csv"] == (tmp_path / "summary.csv").read_text()
    assert len(json.loads(said["json"])["runs"]) == 3
    assert "| FO_full_bs4_q0_lr1e-01 | diverged |" in said["md"]
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", said["tex"], re.S)
    assert len(tables) == 7
    for columns, body in tables:  # as many cells a row as columns, and nothing that LaTeX reads as a command
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
    assert not re.search(r"(?<!\\)[%#_]", said["tex"])


def test_wrong_formats_and_targets_are_user_errors(folder):
    with pytest.raises(UserError, match="allowed: text, md, csv, json"):
        stats_text(folder, format="jsn")
    with pytest.raises(UserError, match="finite"):
        stats_text(folder, targets=[float("nan")])


def test_tables_wrap_to_the_width_and_align_numbers():
    text = render(pd.DataFrame({"name": ["a" * 80, "b"], "n": ["1", "22"]}), "text", width=40)
    assert max(map(len, text.splitlines())) == 40
    assert re.search(r"b +22$", text)


def test_numbers_are_shortened_to_four_figures():
    shown = [shorten(x) for x in (0.01234, 431, 1036.2, 25_600, 1_234_567, float("nan"))]
    assert shown == ["0.01234", "431", "1036", "25.6k", "1.235M", "-"]
