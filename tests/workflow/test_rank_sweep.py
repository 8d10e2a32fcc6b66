"""`ranks` in a study: jobs start their own ranks, with the cores of all; the results are the same."""

import json

import pytest
from real_sweep import STUDY, Sweep
from small_runs import read_rows

ONE, TWO = "ZO_full_bs2_q2_lr1e-03_block16", "ZO_full_bs2_q2_lr1e-03_block16_ranks2"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    study = STUDY | {"modes": "ZO", "learning_rates": 1e-3, "ranks": [1, 2], "plan": "sequential"}
    sweep = Sweep(tmp_path_factory.mktemp("ranks"), study)
    sweep.first = sweep.run("results/tiny/summary.txt")
    return sweep


def test_a_run_of_two_ranks_is_done_with_a_core_for_each_and_is_the_run_of_one(sweep):
    assert sweep.first.returncode == 0, sweep.first.stdout
    rows = [read_rows(sweep.results / "csv_logs" / f"{run}.csv") for run in (ONE, TWO)]
    assert rows[0] == rows[1]
    manifest = json.loads((sweep.results / "runs" / TWO / "manifest.json").read_text())
    assert (manifest["ranks"], manifest["threads"]) == (2, 1)


def test_each_rank_gets_the_runs_threads_as_long_as_the_cores_suffice(sweep):
    command = sweep.run("--forcerun", "train", "-n", "-p", "--cores", "4").stdout
    assert command.count("threads: 2") == 1  # of the run of two ranks
    assert command.count("--threads 1 ") == 2
