"""Runs of several processes on a real Slurm: as jobs of a sweep, and started by srun."""

import json
import re
import subprocess
import sys

import pytest
from real_sweep import STUDY
from small_runs import everything
from test_slurm import SOON, ClusterSweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ONE, TWO = "ZO_full_bs2_q2_lr1e-03_block16", "ZO_full_bs2_q2_lr1e-03_block16_ranks2"


@pytest.fixture(scope="module")
def swept(lab, tmp_path_factory) -> ClusterSweep:
    """A sweep of one run by one process, and by two."""
    study = STUDY | {"modes": "ZO", "learning_rates": 1e-3, "ranks": [1, 2], "plan": "sequential"}
    sweep = ClusterSweep(tmp_path_factory.mktemp("ranks"), study, profile="slurm")
    sweep.first = sweep.run(*SOON)
    return sweep


def test_a_job_of_two_ranks_asks_for_two_gpus_and_has_the_weights_of_one(swept):
    assert swept.first.returncode == 0, swept.first.stdout
    job = swept.job_of(TWO)
    assert (job["TresPerJob"], job["CPUs/Task"]) == ("gres:gpu:2", "2")
    assert json.loads((swept.results / "runs" / TWO / "manifest.json").read_text())["ranks"] == 2
    one, two = (everything(swept.results, run) for run in (ONE, TWO))
    assert two["csv"] == one["csv"]
    assert two["final"] == one["final"]


def test_srun_starts_the_ranks_of_a_run_and_all_bytes_are_those_of_one(swept, tmp_path):
    spec = (swept.results / "runs" / ONE / "spec.json").read_text()
    command = [sys.executable, "-m", "zo", "train", "--spec", spec, "--results", str(tmp_path / "results")]
    srun = [
        "srun",
        "--ntasks=2",
        "--cpus-per-task=1",
        "--mem=4000",
        *command,
        "--threads",
        "1",
        "--no-job-log",
    ]
    done = subprocess.run(srun, cwd=swept.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(f"{ONE}: started", done.stderr)) == 1  # by the first rank
    manifest = json.loads((tmp_path / "results/runs" / ONE / "manifest.json").read_text())
    assert manifest["ranks"] == 2
    found, wanted = everything(tmp_path / "results", ONE), everything(swept.results, ONE)
    assert {key: found[key] for key in ("csv", "scalars", "final")} == {
        key: wanted[key] for key in ("csv", "scalars", "final")
    }
