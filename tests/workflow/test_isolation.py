"""What one bad run costs the others: nothing. A crash, a divergence, memory that runs out, a kill."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from processes import killed_at_end
from real_sweep import STUDY, Sweep, runs_of

pytestmark = pytest.mark.slow
MEMORY = 3 * 2**30
"""Address space of every process: a small run takes 1 GiB of it, the weights of the 1B model 3.7."""
DIVERGES = "FO_full_bs2_q0_lr1e+10_block16"
CRASHES = "FO_full_bs2_q0_lr1e-01_block16"
TOO_LARGE = "ZO_full_bs2_q2_lr1e-03_size1B_block16"
GOOD = ["ZO_full_bs2_q2_lr1e-03_block16", "ZO_full_bs2_q8_lr1e-03_block16"]
BAD_STUDY = STUDY | {
    "modes": ["FO", "ZO"],
    "learning_rates": {"FO": ["1e-1", "1e10"], "ZO": "1e-3"},
    "query_budgets": [2, 8],
    "model_size": {"FO": "100k", "ZO": ["100k", "1B"]},
    "tokenizer": "bpe",
    "retries": 0,
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    """A sweep on one core in which one run crashes, one diverges, and two need more memory than there is."""
    sweep = Sweep(tmp_path_factory.mktemp("isolation"), BAD_STUDY)
    (sweep.results / "runs" / CRASHES / "spec.json").mkdir(parents=True)  # stands in the way of its spec
    sweep.first = sweep.run("--cores", "1", address_space=MEMORY)
    sweep.started = runs_started(sweep)
    return sweep


def runs_started(sweep: Sweep) -> list[str]:
    return re.findall(r"run started: (\S+)", (sweep.results / "sweep.log").read_text())


def test_the_other_runs_finish_and_all_are_accounted_for(sweep):
    assert sweep.first.returncode == 1, sweep.first.stdout
    statuses = {run: sweep.outcome(run)["status"] for run in [CRASHES, DIVERGES, TOO_LARGE, *GOOD]}
    assert statuses == {
        CRASHES: "crashed",
        DIVERGES: "diverged",
        TOO_LARGE: "crashed",
        **dict.fromkeys(GOOD, "done"),
    }
    assert len(list((sweep.results / "plots").glob("*.png"))) >= 5
    assert not (sweep.results / "summary.partial.txt").exists()


@pytest.mark.parametrize(
    ("status", "run", "reason"),
    [
        ("crashed", CRASHES, "IsADirectoryError"),
        ("crashed", TOO_LARGE, "allocate memory"),
        ("diverged", DIVERGES, "loss nan"),
    ],
)
def test_the_summary_says_why_and_where_the_log_is(sweep, status, run, reason):
    summary = (sweep.results / "summary.txt").read_text()
    block = re.search(rf"^{status} {re.escape(run)}: (.*)\n((?:    .*\n)*)", summary, re.M)
    assert reason in block[1]
    assert f"(log: results/tiny/job_logs/{run}.log)" in block[1]
    log = (sweep.results / "job_logs" / f"{run}.log").read_text()
    tail = [line.strip() for line in block[2].splitlines()]
    assert len(tail) == (5 if status == "crashed" else 0)
    assert all(line in log for line in tail)


def test_on_one_core_the_longest_predicted_run_starts_first(sweep):
    """By passes x (tokens x parameters): the study lists them otherwise, and so do their names."""
    assert sweep.started == [TOO_LARGE.replace("_q2_", "_q8_"), TOO_LARGE, *GOOD[::-1], *sweep.started[4:]]
    assert set(sweep.started[4:]) == {CRASHES, DIVERGES}


def test_the_next_call_repeats_the_crashed_runs_and_no_other(sweep):
    crashed = {CRASHES, TOO_LARGE, TOO_LARGE.replace("_q2_", "_q8_")}
    assert set(runs_of(sweep.planned())) == crashed
    (sweep.results / "runs" / CRASHES / "spec.json").rmdir()
    again = sweep.run(address_space=MEMORY)
    assert again.returncode == 1, again.stdout
    assert set(runs_started(sweep)[len(sweep.started) :]) == crashed
    assert sweep.outcome(CRASHES)["status"] == "done"
    assert set(runs_of(sweep.planned())) == crashed - {CRASHES}


SLOW = "ZO_full_bs2_q64_lr1e-03_block16"
QUICK = "FO_full_bs2_q0_lr1e-01_block16"


def test_a_run_killed_with_its_launcher_past_its_last_retry_is_named_in_a_partial_summary(tmp_path):
    """What the kernel or Slurm does: no process is left that could record anything."""
    study = STUDY | {"modes": ["FO", "ZO"], "learning_rates": {"FO": "1e-1", "ZO": "1e-3"}}
    sweep = Sweep(tmp_path, study | {"query_budgets": 64, "max_steps": 60, "retries": 0})
    with killed_at_end(sweep.start()) as process:
        kill_when_begun(process, sweep)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    partial = sweep.results / "summary.partial.txt"
    assert "summary.partial.txt" in output
    assert not (sweep.results / "summary.txt").exists()
    text = partial.read_text()
    assert text.startswith("PARTIAL: no outcome of 1 of the runs")
    found = re.search(
        rf"^lost {SLOW}: .*\(log: results/tiny/job_logs/{SLOW}.log\)\n((?:    .*\n)+)", text, re.M
    )
    log = (sweep.results / "job_logs" / f"{SLOW}.log").read_text()
    assert [line.strip() for line in found[1].splitlines()] == log.splitlines()[-5:]
    assert "1 run in results/tiny/csv_logs: 1 done" in text
    partial.unlink()
    by_hand = [sys.executable, "-m", "zo", "analyze", "results/tiny/csv_logs", "--study", "study.yaml"]
    assert subprocess.run(by_hand, cwd=tmp_path, capture_output=True, text=True).stdout == text
    assert partial.read_text() == text
    again = sweep.run()
    assert again.returncode == 0, again.stdout
    assert runs_of(re.findall(r"wildcards: run=(\S+)", again.stdout)) == [SLOW]
    assert (sweep.results / "summary.txt").read_text().startswith("2 runs in results/tiny/csv_logs: 2 done")
    assert not partial.exists()


def test_a_sigterm_to_every_process_of_a_job_leaves_a_checkpoint_and_a_word_in_the_log(tmp_path):
    """What Slurm does to a job that is cancelled, preempted or out of time."""
    study = STUDY | {"modes": ["FO", "ZO"], "learning_rates": {"FO": "1e-1", "ZO": "1e-3"}}
    sweep = Sweep(tmp_path, study | {"query_budgets": 64, "max_steps": 60, "checkpoint_interval": 1000})
    with killed_at_end(sweep.start()) as process:
        kill_when_begun(process, sweep, signal.SIGTERM)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    log = (sweep.results / "job_logs" / f"{SLOW}.log").read_text()
    [stopped] = re.findall(r"signal 15: stopped at step (\d+)", log)
    assert re.findall(r"resumed at step (\d+)", log) == [stopped]


def kill_when_begun(process, sweep: Sweep, number: int = signal.SIGKILL) -> None:
    """A signal to every process of the slow run, shell first, once it has rows and the other run is done."""
    log, other = sweep.results / "runs" / SLOW / "log.csv", sweep.results / "csv_logs" / f"{QUICK}.csv"
    deadline = time.monotonic() + 120
    while not (other.exists() and log.exists() and len(log.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    shells = [child for child in family if "bash" in child.name() and SLOW in " ".join(child.cmdline())]
    below = [child for shell in shells for child in shell.children(recursive=True)]
    assert any("train" in child.cmdline() for child in below)
    for child in [*shells, *below]:
        child.send_signal(number)
