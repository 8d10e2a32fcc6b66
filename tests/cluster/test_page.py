"""docs/cluster.md does what it says: its lines run in their order, on a real Slurm."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_lab
import yaml
from processes import killed_at_end
from real_sweep import ROOT

SOON = " --slurm-init-seconds-before-status-checks 5"
"""The plugin's 40 s add nothing to a test."""
EDITOR_LINES = ("make", "nano", ". .venv")
"""What needs no cluster: the installation is there, and the test edits."""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    [block] = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/cluster.md").read_text(), re.M | re.S)
    return block.splitlines()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what a user has, the profile edited as its comments say."""
    for name in ("Snakefile", "config.yaml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("workflow", "profiles", "zo", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    profile = tmp_path / "profiles/slurm/config.yaml"
    keys = {
        "slurm_partition": "gpu",
        "slurm_account": "lab",
        "set-resources": "",
        "  train": "",
        "gpu_model": "fake",
    }
    profile.write_text(fill_in(profile.read_text(), keys))
    return tmp_path


def fill_in(text: str, keys: dict[str, str]) -> str:
    """Uncomment keys of the profile, with the cluster's values."""
    for key, value in keys.items():
        text, found = re.subn(rf"^( *)# ( *){key}:( \S+)?", rf"\1\2{key}: {value}", text, flags=re.M)
        assert found == 1, key
    return text


def start(line: str, folder: Path) -> subprocess.Popen:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
    env |= {"ZO_GPU_LOCKS": str(folder)}
    line = line.split("  #")[0]
    return subprocess.Popen(
        line, shell=True, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(line: str, folder: Path) -> str:
    with killed_at_end(start(line, folder)) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"{line}\n{output}"
    return output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_ten_lines_lead_to_a_report(lab, lines, checkout):
    assert len(lines) == 10
    todo = [line for line in lines if not line.startswith(EDITOR_LINES)]
    plan, cache, sweep, status, queue, tail, report = todo
    assert "rule train:" in run(plan, checkout)
    assert "rule cache:" in run(cache, checkout)
    snakemake = start(sweep.split("  #")[0].replace(" --configfile", SOON + " --configfile"), checkout)
    with killed_at_end(snakemake):
        deadline = time.monotonic() + 200
        while "RUNNING" not in run(queue, checkout) or " running " not in run(status, checkout):
            assert snakemake.poll() is None, snakemake.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        queued = run(queue, checkout)
        jobs = [job for job in slurm_lab.ask("scontrol", "show", "job", "--oneliner").splitlines()]
        output, _ = snakemake.communicate(timeout=400)
    assert snakemake.returncode == 0, output
    assert re.search(r"^\d+ RUNNING \S+ \S+ \d+M rule_train_wildcards_(FO|ZO|Frozen)_full_", queued, re.M)
    assert all("Partition=gpu" in job and "TresPerJob=gres:gpu:fake:1" in job for job in jobs)
    assert all("Account=lab" in job and "JobName=quick_" in job for job in jobs)
    assert "run done: " in run(tail, checkout)
    assert run(report, checkout).startswith("6 runs in results/quick/csv_logs: 6 done")


def test_the_profile_says_everything_that_the_default_one_does():
    slurm, default = (
        yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text()) for name in ("slurm", "default")
    )
    assert {key: slurm.get(key) for key in default if key != "cores"} == {
        key: value for key, value in default.items() if key != "cores"
    }
