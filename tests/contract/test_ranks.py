"""One run over several real processes is the run of one: every method, layout, resume, loss of a rank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import killed_at_end
from small_runs import OWN, everything, run_zo, small_spec, train_command, write_corpus

from zo.causes import TRY_AGAIN
from zo.distributed.heartbeat import PATIENCE
from zo.methods import METHODS
from zo.training.checkpoint import load_checkpoint
from zo.training.record import RunFiles
from zo.training.train import train

SCRIPT = Path(__file__).parents[1] / "rank_script.py"
SEQUENTIAL = {"query_budget_q": 3, "plan": "sequential", "parallel_batch_size": 1, "max_steps": 6}


def start_ranks(count: int, *words, launcher: str = "launch") -> subprocess.CompletedProcess:
    """Run tests/rank_script.py as so many ranks, by zo/distributed/launch.py or by torchrun itself."""
    command = [str(SCRIPT), *map(str, words)]
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", *command]
    else:
        code = (
            "import sys; from zo.distributed.launch import launch;"
            " sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))"
        )
        command = [sys.executable, "-c", code, str(count), sys.executable, *command]
    # No sign of life is due while a test lasts: on a slow machine none is missed, and none is on the wire.
    env = os.environ | {PATIENCE: "20000"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    with killed_at_end(process):
        output, words = process.communicate(timeout=280)
    return subprocess.CompletedProcess(command, process.returncode, output, words)


def run_ranks(count: int, case: str, folder: Path, task: dict | None = None, status: int = 0) -> list[dict]:
    """What each rank found."""
    folder.mkdir(exist_ok=True)
    done = start_ranks(count, case, folder, *([json.dumps(task)] if task else []))
    assert done.returncode == status, done.stderr
    return [] if status else [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


# -- the engine -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """What three ranks found, tests/rank_script.py's ``engine``."""
    return run_ranks(3, "engine", tmp_path_factory.mktemp("engine"))


def test_an_estimate_shared_out_is_that_of_one_process(engine):
    """Over 3 ranks 8, 4, 2 and 1 directions; to the bit wherever the same forward passes are made."""
    for found in engine:
        for layout, (shared, alone) in found["estimates"].items():
            if "sequential" in layout and "one sharded" not in layout:
                assert shared == alone, layout
            assert shared == pytest.approx(alone, rel=2e-3, abs=2e-3), layout
    assert len(engine[0]["estimates"]) == 4 * 3 * 2 * 4


def test_all_ranks_get_the_same_estimate_to_the_bit(engine):
    assert engine[0]["estimates"]
    for layout, (shared, _) in engine[0]["estimates"].items():
        assert [other["estimates"][layout][0] for other in engine[1:]] == [shared] * 2, layout


def test_a_rank_that_fails_in_its_share_fails_on_all_and_memory_is_agreed_on(engine):
    bugs = [found["failures"]["bug"] for found in engine]
    assert bugs[1]["met"] == "'a bug'"
    assert {bugs[0]["met"], bugs[2]["met"]} == {"rank 1 failed: its own message says how"}
    assert not any(bug["memory"] or bug["agreed"] for bug in bugs)
    for found in engine:
        assert found["failures"]["memory"]["memory"]
        assert found["failures"]["memory"]["agreed"]


def test_ranks_whose_weights_differ_say_so_on_all(engine):
    for found in engine:
        assert found["failures"]["same"] is None
        assert "the weights of rank 2 differ from rank 0's" in found["failures"]["differ"]


def test_ranks_see_who_has_the_same_digest(engine):
    numbers = engine[0]["failures"]["compare"]
    assert numbers[0] == numbers[2] != numbers[1]
    assert all(found["failures"]["compare"] == numbers for found in engine)


def test_a_signal_to_one_rank_is_heard_by_all_with_the_next_exchange(engine):
    assert [found["failures"]["told"] for found in engine] == [[0, 15]] * 3
    assert [found["failures"]["broadcast"] for found in engine] == [{"from": 0}] * 3


def test_bytes_on_the_wire_grow_with_q_and_not_with_the_model(engine):
    for found in engine:
        wire = found["wire"]
        for q in (4, 400):
            (small, counted), (large, again) = wire[f"100k {q}"], wire[f"1M {q}"]
            assert counted == again <= 2 * 8 * (2 + 2 * (q + 2) / 3)  # two others, 2q losses shared by three
            # gloo's frames: some hundred bytes, for any model.
            assert counted <= small <= counted + 2000, (q, wire)
            assert counted <= large <= counted + 2000, (q, wire)


# -- runs -------------------------------------------------------------------------------------------


def specs_of(corpus) -> dict:
    """A run of every method, as well as the layouts that share out in another way."""
    specs = {mode: small_spec(corpus, mode, **SEQUENTIAL) for mode in METHODS}
    specs["FO accumulated"] = small_spec(
        corpus, "FO", batch_size=5, gradient_accumulation=5, scope="reduced", optimizer="adamw", max_steps=6
    )
    specs["FO recomputed"] = small_spec(
        corpus, "FO", gradient_checkpointing=True, batch_size=3, momentum=0.9, max_steps=6
    )
    specs["ZO parallel"] = small_spec(corpus, "ZO", query_budget_q=5, sides="one", max_steps=6)
    return specs


@pytest.fixture(scope="module")
def pairs(corpus, tmp_path_factory):
    """Every run of ``specs_of`` by one process and by two under torchrun: what it wrote."""
    folder, specs = tmp_path_factory.mktemp("runs"), specs_of(corpus)
    task = {"results": str(folder / "two"), "specs": [spec.to_json() for spec in specs.values()]}
    (folder / "out").mkdir()
    done = start_ranks(2, "runs", folder / "out", json.dumps(task), launcher="torchrun")
    assert done.returncode == 0, done.stderr
    for spec in specs.values():
        train(spec, folder / "one", device="cpu", threads=1)
    return {
        name: [everything(folder / which, spec.name) for which in ("one", "two")]
        for name, spec in specs.items()
    }


@pytest.mark.parametrize("name", ["ZO", "Random", "Frozen"])
def test_two_ranks_write_the_same_bytes_as_one_process(pairs, name):
    one, two = pairs[name]
    assert two == one


@pytest.mark.parametrize(
    "name",
    [
        *("FO", "FO accumulated", "FO recomputed", "Calibrate", "Instruct", "ZO parallel"),
        *("LayerwiseFO", "LayerwiseZO", "LayerwiseFrozen"),
    ],
)
def test_two_ranks_with_backprop_or_other_chunks_agree_to_rounding(pairs, name):
    one, two = (side["csv"] for side in pairs[name])
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        for key, value in ours.items():
            if key in ("loss", "val_loss", "grad_norm", "cosine") and value:
                assert float(theirs[key]) == pytest.approx(float(value), rel=2e-3), (key, ours["step"])
            else:
                assert theirs[key] == value, key


def test_a_run_stopped_by_a_signal_to_one_rank_goes_on_with_other_numbers_of_ranks(corpus, tmp_path):
    """Two ranks, then three, then one process: the bytes of a run that was never stopped."""
    spec = small_spec(corpus, "ZO", **SEQUENTIAL | {"max_steps": 9, "checkpoint_interval": 100}, momentum=0.9)
    files = RunFiles(tmp_path / "moved", spec.name)
    task = {"results": str(tmp_path / "moved"), "specs": [spec.to_json()]}
    for count, signalled, stopped in ((2, [1, 2], 3), (3, [0, 5], 6)):
        run_ranks(count, "runs", tmp_path / "out", task | {"signal": signalled}, status=128 + signal.SIGTERM)
        checkpoint, complaints = load_checkpoint(files.checkpoints)
        assert (checkpoint.step, complaints) == (stopped, [])
        assert json.loads((files.folder / "manifest.json").read_text())["ranks"] == count
    train(spec, tmp_path / "moved", device="cpu", threads=1)
    train(spec, tmp_path / "calm", device="cpu", threads=1)
    assert everything(tmp_path / "moved", spec.name) == everything(tmp_path / "calm", spec.name)
    assert run_zo("replay", files.folder).returncode == 0


@pytest.mark.parametrize("mode", ["LayerwiseZO", "LayerwiseFrozen"])
def test_two_ranks_make_a_blocks_phase_to_the_bit_from_the_embedding_that_one_process_trained(
    corpus, tmp_path, mode
):
    """What remains differs by no rounding: its steps are ZO's, or nothing."""
    spec = small_spec(corpus, mode, **SEQUENTIAL | {"max_steps": 8}, optimizer="adam")
    task = {"results": str(tmp_path / "two"), "specs": [spec.to_json()], "signal": [0, 4]}
    run_ranks(1, "runs", tmp_path / "out", task, status=128 + signal.SIGTERM)
    assert load_checkpoint(RunFiles(tmp_path / "two", spec.name).checkpoints)[0].step == 4  # the last by FO
    run_ranks(2, "runs", tmp_path / "out", {**task, "signal": [0, 0]})
    train(spec, tmp_path / "one", device="cpu", threads=1)
    assert everything(tmp_path / "two", spec.name) == everything(tmp_path / "one", spec.name)


def test_a_rank_out_of_memory_makes_all_go_on_with_half(corpus, tmp_path):
    spec = small_spec(corpus, "ZO", query_budget_q=8, plan="parallel", parallel_batch_size=4, max_steps=3)
    task = {"results": str(tmp_path), "specs": [spec.to_json()], "fail": [1, 10]}
    assert run_ranks(2, "runs", tmp_path / "out", task)[1] == {spec.to_json(): "done"}
    reductions = json.loads((tmp_path / "runs" / spec.name / "manifest.json").read_text())["out_of_memory"]
    assert [cut["settings"]["parallel_batch_size"] for cut in reductions] == [2]
    assert "rank 1: out of memory" in reductions[0]["reason"]


@pytest.mark.slow
def test_a_rank_out_of_memory_in_backprop_ends_the_attempt_and_the_next_one_takes_half(corpus, tmp_path):
    spec = small_spec(corpus, "FO", batch_size=4, max_steps=3)
    task = {"results": str(tmp_path), "specs": [spec.to_json()], "fail": [1, 2]}
    run_ranks(2, "runs", tmp_path / "out", task, status=1)  # of the script: zo train has a status for it
    record = json.loads((tmp_path / "runs" / spec.name / "attempt.json").read_text())
    assert (record["ended"], "rank 1" in record["reason"]) == ("out of memory", True)
    run_ranks(2, "runs", tmp_path / "out", task)
    record = json.loads((tmp_path / "runs" / spec.name / "manifest.json").read_text())
    assert [cut["settings"] for cut in record["out_of_memory"]] == [{"gradient_accumulation": 2}]


# -- a rank that is lost ----------------------------------------------------------------------------


def find_rank(launcher: int, rank: int) -> psutil.Process:
    """The process of a rank, once it trains."""
    for child in psutil.Process(launcher).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no rank {rank}")


def lose_a_rank(corpus, tmp_path, number: signal.Signals, rank: int, **environment: str):
    """`zo train --ranks 2`, one rank gets a signal in training: how that ended, its words and its seconds."""
    spec = small_spec(corpus, "ZO", max_steps=10**6, learning_rate=1e-6, ranks=2, log_interval=10**6)
    files = RunFiles(tmp_path, spec.name)
    process = subprocess.Popen(
        train_command(spec, tmp_path), stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    with killed_at_end(process):
        deadline = time.monotonic() + 120
        while not list(files.checkpoints.glob("step-*")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        everyone = psutil.Process(process.pid).children(recursive=True)
        find_rank(process.pid, rank).send_signal(number)
        started = time.monotonic()
        _, words = process.communicate(timeout=120)
    assert not [child for child in everyone if child.is_running() and child.status() != "zombie"]
    return files, process.returncode, words, time.monotonic() - started


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_run_at_once_and_the_next_attempt_goes_on(corpus, tmp_path, rank):
    files, status, words, seconds = lose_a_rank(corpus, tmp_path, signal.SIGKILL, rank)
    assert status == TRY_AGAIN, words
    assert seconds < 60
    assert words.count(f"rank {rank} was killed by signal 9: another attempt goes on") == 1
    assert "Traceback" not in words
    assert load_checkpoint(files.checkpoints)[0].step > 0


@pytest.mark.slow
def test_a_hung_rank_ends_the_run_within_a_minute(corpus, tmp_path):
    files, status, words, seconds = lose_a_rank(corpus, tmp_path, signal.SIGSTOP, 1)
    assert status == TRY_AGAIN, words
    assert seconds < 60
    assert "rank 1 gave no sign of life for 20 s" in words
    assert load_checkpoint(files.checkpoints)[0].step > 0


def test_a_settings_mistake_is_one_line_and_starts_no_ranks():
    done = run_zo("train", "--mode", "FO", "--batch-size", 2, "--max-steps", 1, "--ranks", 3)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "ranks: 3 is not allowed" in done.stderr


def test_every_method_is_run_here():
    assert set(OWN) <= set(METHODS)
