"""The cluster that the other tests run on: where it can't be, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_lab
from real_sweep import STUDY, Sweep

from zo.errors import UserError
from zo.sweep import slurm
from zo.sweep.slurm import choose_status_command

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import started_lab
with started_lab(Path(sys.argv[2])):
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_cluster_leaves_nothing_behind_even_when_its_test_is_killed(tmp_path, number):
    if reason := slurm_lab.why_not():
        pytest.skip(reason)
    command = [sys.executable, "-c", HOLDER, str(Path(__file__).parent), str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert holder.stdout.readline() == "started\n"
    assert (slurm_lab.ETC / "slurm.conf").is_symlink()
    sleep = f"sleep 500.{os.getpid()}"  # no one else's on this machine
    sleeper = ["sbatch", "--output=/dev/null", "--wrap", sleep]
    subprocess.run(sleeper, check=True, capture_output=True)
    deadline = time.monotonic() + 60
    while "R" not in slurm_lab.ask("squeue", "--noheader", "--format=%t"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert slurm_lab.leftovers(tmp_path / "lab")
    holder.send_signal(number)
    holder.wait()
    while slurm_lab.leftovers(tmp_path / "lab") or (tmp_path / "lab").exists():
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    assert not [
        path for path in (slurm_lab.ETC / "slurm.conf", slurm_lab.ETC / "gres.conf") if path.is_symlink()
    ]
    assert sleep not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_without_accounts_squeue_tells_of_ended_jobs_unless_they_are_forgotten_too_soon(start_lab, tmp_path):
    with start_lab(tmp_path):
        assert choose_status_command() == "squeue"
        with pytest.raises(UserError, match="MinJobAge above 360"):
            choose_status_command(first_pause_s=120)


def test_a_cluster_that_would_be_waited_for_for_ever_stops_the_sweep_with_one_line(start_lab, tmp_path):
    sweep = Sweep(tmp_path, STUDY | {"modes": "Frozen"}, profile="slurm")
    with start_lab(tmp_path, "--min-job-age", "60"):
        refused = sweep.run()
        assert not slurm_lab.ask("squeue", "--noheader", "--states=all")
    assert refused.returncode != 0
    [line] = [line for line in refused.stdout.splitlines() if line.startswith("Error")]
    assert "forgets an ended job after 60 s" in line
    assert "Traceback" not in refused.stdout


@pytest.mark.slow
def test_with_accounts_sacct_does(start_lab, tmp_path):
    with start_lab(tmp_path, "--accounts"):
        assert choose_status_command() == "sacct"


def test_without_a_cluster_that_answers_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "ANSWER_WITHIN_S", 3)  # they look for a missing file for longer than a minute
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "missing.conf"))
    with pytest.raises(UserError, match="does not answer"):
        choose_status_command()


def test_where_no_cluster_can_be_the_reason_names_the_remedy(monkeypatch):
    monkeypatch.setattr(slurm_lab, "PROGRAMS", ("no-such-slurmd",))
    assert "apt-get install" in slurm_lab.why_not()
    monkeypatch.setattr(slurm_lab, "PROGRAMS", ())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "as root" in slurm_lab.why_not()


def test_a_real_clusters_configuration_is_never_touched(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm_lab, "PROGRAMS", ())
    monkeypatch.setattr(slurm_lab, "ETC", tmp_path)
    (tmp_path / "slurm.conf").write_text("ClusterName=real\n")
    assert "real cluster" in slurm_lab.why_not()
