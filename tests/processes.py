"""Real processes in tests: none outlives its block, and the moment at which one waits for a lock is known."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PATIENCE_S = 120


@contextlib.contextmanager
def killed_at_end(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Kill the process and all below it if the block leaves it at work, as where an assertion fails.

    All below, not its group: ranks and some jobs have sessions of their own.
    """
    try:
        yield process
    finally:
        if process.poll() is None:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        process.wait()


def wait_for_lock(process: subprocess.Popen) -> None:
    """Return when the process waits for a file lock that another one holds: the kernel says so."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(
        "->" in words and str(process.pid) in words
        for words in (line.split() for line in Path("/proc/locks").read_text().splitlines())
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
