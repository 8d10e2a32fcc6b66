"""Killed at any moment and started again, a run ends at the bytes of one that was never disturbed."""

import itertools
import random
import signal
import subprocess
import time

import pytest
from processes import killed_at_end, wait_for_lock
from small_runs import everything, run_zo, small_spec, train_command, write_corpus

from zo.methods import METHODS
from zo.optimizers import OPTIMIZERS
from zo.training.checkpoint import load_checkpoint
from zo.training.record import RunFiles

# Momentum, moments and step counters are what a resume can lose; each method gets another rule.
EACH = itertools.cycle([{"optimizer": name} for name in OPTIMIZERS] + [{"momentum": 0.9}])
RULES = dict(zip(METHODS, EACH, strict=False)) | {"Frozen": {}, "Random": {"momentum": 0.9}}
STEPS = 60
PATIENCE = 120.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def find_progress(files: RunFiles) -> tuple[int, str]:
    """Grows with the attempts that have their model, and with the whole checkpoints that these write."""
    manifest = files.folder / "manifest.json"
    started = manifest.stat().st_mtime_ns if manifest.exists() else 0
    return started, max((path.name for path in files.checkpoints.glob("step-*")), default="")


def kill_in_training(command, files: RunFiles, delay: float, in_training: bool) -> bool:
    """Start the run and kill it ``delay`` seconds after it has its model, or its next checkpoint.

    False if it ended before.
    """
    before = find_progress(files)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with killed_at_end(subprocess.Popen(command, **quiet)) as process:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and find_progress(files)[in_training] == before[in_training]:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def disturb(spec, results, kills: int, draw: random.Random) -> list[int]:
    """Kill the run ``kills`` times at random and let it end; the steps that its checkpoints were at."""
    files, seen = RunFiles(results, spec.name), []
    command = train_command(spec, results)
    while len(seen) < kills:
        if kill_in_training(command, files, draw.uniform(0, 0.3), in_training=draw.random() < 0.8):
            checkpoint, complaints = load_checkpoint(files.checkpoints)
            assert complaints == []  # a kill leaves whole files or none
            seen.append(checkpoint.step if checkpoint else 0)
        else:
            break
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return seen


def check_kills(corpus, folder, mode: str, kills: int) -> None:
    """Kill in one run after another until there were ``kills``; each must end as the calm one did."""
    length = {"max_steps": STEPS, "checkpoint_interval": 1, "validation_interval": 20}
    spec = small_spec(corpus, mode, learning_rate=1e-3, **length, **RULES[mode])
    calm = run_zo(*train_command(spec, folder / "calm")[3:])
    assert calm.returncode == 0, calm.stderr
    expected, draw, seen = everything(folder / "calm", spec.name), random.Random(mode), []
    while len(seen) < kills:
        results = folder / f"after{len(seen)}"
        results.mkdir()
        (results / "cache").symlink_to(folder / "calm" / "cache")
        seen += disturb(spec, results, kills - len(seen), draw)
        assert everything(results, spec.name) == expected
        assert not [path for path in results.rglob(".*") if path.name != ".lock"]  # half-written files
    assert len(set(seen)) > kills // 3, seen  # not all of them before the first step
    print(f"{mode}: killed at steps {seen} of {STEPS}")


def test_a_run_killed_three_times_ends_at_the_same_bytes(corpus, tmp_path):
    check_kills(corpus, tmp_path, "ZO", kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", METHODS)
def test_every_method_survives_twelve_kills_at_random(corpus, tmp_path, mode):
    check_kills(corpus, tmp_path, mode, kills=12)


def test_a_run_that_was_finished_while_another_process_waited_for_it_is_not_repeated(corpus, tmp_path):
    """As when Snakemake is killed: its job goes on, and the next Snakemake starts the run once more."""
    spec = small_spec(corpus, "ZO", max_steps=300, learning_rate=1e-3)
    files, command = RunFiles(tmp_path, spec.name), train_command(spec, tmp_path)
    with killed_at_end(subprocess.Popen(command, stderr=subprocess.DEVNULL)) as first:
        while not files.attempt.exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # until the second one waits, however long that starts
        with killed_at_end(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as second:
            wait_for_lock(second)
            first.send_signal(signal.SIGCONT)
            _, said = second.communicate(timeout=200)
        assert first.wait(timeout=60) == 0
    assert second.returncode == 0, said
    assert "another process finished it meanwhile: done" in said
    assert "started" not in said
    assert run_zo("replay", files.folder).returncode == 0
