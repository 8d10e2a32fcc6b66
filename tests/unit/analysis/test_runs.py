"""Reading logs back: statuses, definitions of the run table, and what a user gets wrong."""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from made_runs import (
    START,
    blow_up,
    name_run,
    true_val_loss,
    write_beside,
    write_crash,
    write_run,
    write_sweep,
)

from zo.analysis.runs import COLUMNS, read_logs, spell_lr, summarize_runs
from zo.errors import UserError


def read_table(folder):
    return summarize_runs(read_logs(folder)).set_index("run")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "csv_logs"


def test_a_done_run_is_measured_as_the_docstring_defines(folder):
    run = write_run(folder, "ZO", q=8, lr=1e-3, steps=100, every=5)
    frame = pd.read_csv(folder / f"{run}.csv")
    row = read_table(folder).loc[run]
    assert row["status"] == "done"
    losses = frame["loss"].dropna().to_numpy()  # 20 rows: the last 10 % are 2
    assert row["final_loss"] == pytest.approx(losses[-2:].mean(), abs=1e-12)
    assert row["initial_val_loss"] == 6.0
    assert row["final_val_loss"] == row["best_val_loss"] == true_val_loss("ZO", 8, 1e-3, 100)
    assert (row["best_val_step"], row["steps"], row["q"], row["seed"]) == (100, 100, 8, 0)
    assert (row["tokens"], row["forward_passes"], row["backward_passes"]) == (25_600, 1600, 0)
    assert row["tokens_per_second"] == pytest.approx(25_600 / row["seconds"])
    assert row["peak_memory_mb"] == 416.0


def test_status_is_inferred_where_no_outcome_was_written(folder):
    done = write_run(folder, "FO", q=0, lr=1e-2)
    gone = write_run(folder, "FO", q=0, lr=1e-1, diverges_at=30)
    (folder / "ZO_full_bs4_q2_lr1e-05.csv").write_text("")
    (folder / "ZO_full_bs4_q4_lr1e-05.csv").write_text(",".join(COLUMNS) + "\n")
    table = read_table(folder)
    assert table.loc[done, "status"] == "done"
    assert table.loc[gone, "status"] == "diverged"
    assert table.loc[gone, "reason"] == "loss not finite from step 30"
    assert np.isinf(table.loc[gone, "final_loss"])
    assert pd.isna(table.loc[gone, "final_val_loss"])
    crashed = table.loc[["ZO_full_bs4_q2_lr1e-05", "ZO_full_bs4_q4_lr1e-05"]]
    assert list(crashed["status"]) == ["crashed", "crashed"]
    assert list(crashed["q"]) == [2, 4]
    assert list(crashed["mode"]) == ["ZO", "ZO"]
    assert crashed["peak_memory_mb"].isna().all()


def test_a_row_without_loss_is_not_a_diverged_one(folder):
    run = write_run(folder, "ZO", q=1, every=10)
    path = folder / f"{run}.csv"
    last = path.read_text().splitlines()[-1].split(",")
    last[list(COLUMNS).index("loss")], last[list(COLUMNS).index("step")] = "", "110"
    path.write_text(path.read_text() + ",".join(last) + "\n")
    assert read_table(folder).loc[run, "status"] == "done"


def test_the_outcome_file_decides_over_the_log(folder):
    run = write_run(folder, "ZO", q=1)
    write_beside(folder, run, "outcome.json", {"status": "diverged", "reason": "20 steps above", "step": 100})
    row = read_table(folder).loc[run]
    assert (row["status"], row["reason"]) == ("diverged", "20 steps above")


@pytest.mark.parametrize("outcome", [None, {"status": "done", "reason": None}])
def test_a_run_that_blew_up_and_stayed_no_better_is_diverged_though_it_is_done(folder, outcome):
    run = write_run(folder, "ZO", q=1)
    blow_up(folder, run, peak=191_024)
    if outcome:
        write_beside(folder, run, "outcome.json", outcome)
    row = read_table(folder).loc[run]
    assert row["status"] == "diverged"
    assert row["reason"] == (
        "blew up: a loss of 191024 at step 50, more than twice the untrained model's; "
        "it ended at 6, no better than it began"
    )
    assert pd.isna(row["final_val_loss"])


@pytest.mark.parametrize("column", ["loss", "val_loss"])
def test_either_loss_shows_that_a_run_blew_up(folder, column):
    run = write_run(folder, "ZO", q=1)
    blow_up(folder, run)
    path = folder / f"{run}.csv"
    frame = pd.read_csv(path)
    frame[column] = frame[column].clip(upper=START)
    frame.to_csv(path, index=False)
    assert read_table(folder).loc[run, "status"] == "diverged"


@pytest.mark.parametrize(
    "rose",
    [
        {"peak": 14.06, "end": 0.9 * START},  # it came back
        {"peak": 1.9 * START, "end": 1.5 * START},
    ],
)
def test_a_run_that_came_back_or_rose_a_little_is_done(folder, rose):
    run = write_run(folder, "ZO", q=1)
    blow_up(folder, run, **rose)
    row = read_table(folder).loc[run]
    assert (row["status"], row["final_val_loss"]) == ("done", rose["end"])


def test_without_the_untrained_models_loss_nothing_is_known_to_have_blown_up(folder):
    run = write_run(folder, "ZO", q=1)
    blow_up(folder, run)
    path = folder / f"{run}.csv"
    frame = pd.read_csv(path)
    frame[frame["step"] > 0].to_csv(path, index=False)
    assert read_table(folder).loc[run, "status"] == "done"


def test_a_crashed_run_names_its_log(folder):
    log = write_crash(folder, "ZO_full_bs4_q1_lr1e-05", ["boom"])
    row = read_table(folder).loc["ZO_full_bs4_q1_lr1e-05"]
    assert (row["status"], row["reason"], row["log"]) == ("crashed", "RuntimeError: boom", str(log))


def test_further_axes_are_those_that_tell_runs_apart(folder):
    for size in ("1M", "20M"):
        for epsilon in (1e-3, 1e-2):
            name = f"ZO_full_bs4_q1_lr1e-04_{size}_{epsilon}"
            spec = {"model_size": size, "max_steps": 100, "name": name}
            write_run(folder, "ZO", "full", 1, 1e-4, name=name, epsilon=epsilon, spec=spec)
    write_run(folder, "FO", "full", 0, 1e-2, spec={"model_size": "1M", "max_steps": 50})
    columns = list(read_table(folder).columns)
    assert columns[6:10] == ["seed", "epsilon", "model_size", "status"]


def test_an_empty_q_is_zero_as_in_the_name(folder):
    run = write_run(folder, "FO", q=0, lr=1e-2)
    path = folder / f"{run}.csv"
    path.write_text(path.read_text().replace(",reduced,0,", ",reduced,,"))
    assert read_table(folder).loc[run, "q"] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "step, mode, loss or val_loss"),
        ("step,mode\n1,ZO\n", "loss or val_loss"),
        ("step,mode,loss\n1,ZO,high\n", "'high' in column loss"),
        ('step,mode,loss\n1,ZO,"2\n', "is not a CSV log"),
    ],
)
def test_a_foreign_csv_is_an_error_that_names_file_and_fault(folder, content, said):
    folder.mkdir()
    (folder / "alien.csv").write_text(content)
    with pytest.raises(UserError, match=r"alien\.csv") as caught:
        read_logs(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_foreign_csv_with_only_what_is_needed_is_read(folder):
    folder.mkdir()
    (folder / "mine.csv").write_text("step,mode,loss\n1,ZO,3\n2,ZO,2\n")
    assert read_table(folder).loc["mine", "final_loss"] == 2.0


def test_an_empty_or_missing_folder_is_an_error_with_the_right_folder(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_logs(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no run logs"):
        read_logs(tmp_path)
    write_run(tmp_path / "csv_logs")
    with pytest.raises(UserError, match=r"did you mean .*csv_logs"):
        read_logs(tmp_path)


def test_learning_rates_are_spelled_as_in_run_names():
    assert [spell_lr(x) for x in (1e-5, 2.5e-4, 1e10, np.nan)] == ["1e-05", "2.5e-04", "1e+10", "-"]
    assert name_run("ZO", "full", 4, 8, 2.5e-4).endswith(f"_lr{spell_lr(2.5e-4)}")


def test_three_hundred_runs_take_a_few_seconds(folder):
    text = (folder / f"{write_run(folder, every=1)}.csv").read_text()
    for i in range(300):
        (folder / f"run{i}.csv").write_text(text)
    start = time.perf_counter()
    assert len(read_table(folder)) == 301
    assert time.perf_counter() - start < 8


def test_the_table_needs_neither_plots_nor_scipy():
    code = "import sys, zo.analysis.runs as _; print({'matplotlib', 'seaborn', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_whole_sweep_is_one_row_a_run(folder):
    write_sweep(folder)
    table = read_table(folder)
    assert len(table) == len(list(folder.glob("*.csv")))
    assert table["status"].value_counts().to_dict() == {"done": 30, "diverged": 2, "crashed": 1}
