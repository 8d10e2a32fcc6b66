"""A running Slurm for a test module, or the reason why there is none."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import slurm_lab


@contextmanager
def started_lab(folder: Path, *flags: str):
    """A process that holds a cluster until its standard input ends."""
    command = [sys.executable, slurm_lab.__file__, str(folder / "lab"), *flags]
    # In a session of its own, so that Ctrl-C on the tests lets it end in order.
    keeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert keeper.stdout.readline() == "ready\n", "slurm_lab.py said why"
        yield keeper
    finally:
        keeper.stdin.close()
        keeper.wait(120)
    assert not slurm_lab.leftovers(folder / "lab")


@pytest.fixture(scope="session")
def start_lab() -> Callable:
    """A context manager that holds a cluster; where none can be, it skips the test with the reason."""

    def start(folder: Path, *flags: str):
        if reason := slurm_lab.why_not(accounts="--accounts" in flags):
            pytest.skip(reason)
        return started_lab(folder, *flags)

    return start


@pytest.fixture(scope="module")
def lab(start_lab, tmp_path_factory):
    """A cluster for all tests of a module."""
    with start_lab(tmp_path_factory.mktemp("slurm")) as keeper:
        yield keeper
