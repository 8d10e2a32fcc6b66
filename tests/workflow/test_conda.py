"""`--sdm conda`: every rule's job runs in the environment of its yaml; conda itself is a stand-in."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import stand_in_conda
from real_sweep import STUDY, Sweep

pytestmark = pytest.mark.slow


@pytest.fixture
def conda(tmp_path) -> str:
    """PATH with a ``conda`` at its head."""
    folder = tmp_path / "conda"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(stand_in_conda.__file__, folder)
    script = f'#!/bin/sh\nexec {sys.executable} {folder}/{Path(stand_in_conda.__file__).name} "$@"\n'
    (folder / "bin" / "conda").write_text(script)
    (folder / "bin" / "conda").chmod(0o755)
    (folder / "bin" / "activate").write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    return f"{folder}/bin:{os.environ['PATH']}"


def test_every_job_runs_with_the_python_of_its_environment(conda, tmp_path):
    sweep = Sweep(tmp_path, STUDY | {"modes": "FO", "learning_rates": "1e-1"})
    ran = sweep.run("--sdm", "conda", PATH=conda)
    assert ran.returncode == 0, ran.stdout
    [used] = tmp_path.glob(".snakemake/conda/*/used")
    commands = {line.split()[2] for line in used.read_text().splitlines() if line.startswith("-m zo ")}
    assert commands == {"cache", "train", "analyze", "plot", "report"}
    assert sweep.run("-n", "--sdm", "conda", PATH=conda).stdout.count("Nothing to be done") == 1
