"""What a job shows of its progress: a bar on a terminal, plain lines elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    """A run of four steps."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(f"Part {i}. " + "To be or not to be. " * 8 for i in range(40)))
    flags = "--mode FO --max-steps 4 --log-interval 2 --validation-interval 4 --validation-blocks 2"
    flags += " --block-size 16 --validation-block-size 16 --dataset text.txt --tokenizer bytes --threads 1"
    return [sys.executable, "-m", "zo", "train", *flags.split()]


def read_all(terminal: int) -> str:
    """Read what was shown until the last process that had the terminal is gone."""
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux's way to say so
        pass
    return shown.decode()


def test_on_a_terminal_there_is_a_bar_and_no_line_for_each_row(command):
    terminal, inside = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside)
    os.close(inside)
    shown = read_all(terminal)
    os.close(terminal)
    assert process.wait() == 0
    assert "4/4" in shown
    assert "step/s" in shown
    assert "val_loss=" in shown
    assert " left " not in shown


def test_elsewhere_there_are_plain_lines_with_the_time_left_and_no_bar(command):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split(" ", 2)[2] for line in done.stderr.splitlines() if " step " in line]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert all(line.endswith(" s") and " left " in line and "loss: " in line for line in lines)
    assert "\r" not in done.stderr
    assert "step/s" not in done.stderr
    [log] = Path("results/job_logs").iterdir()
    assert log.read_text().splitlines()[-1].endswith("done")
