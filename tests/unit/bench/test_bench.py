"""What ``zo bench`` reports: the names and fields that others read, ratios that fit together, true peaks."""

import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F
from small_runs import run_zo
from torch.utils._python_dispatch import TorchDispatchMode

from zo.bench.contenders import FAMILIES, Setting, Workbench
from zo.bench.memory import _measure_in_child, extra_memory
from zo.bench.ranks import _measure_all
from zo.bench.timing import GPU_SAMPLES, STEPLESS, Record, measure, print_table, run_bench, take_turn
from zo.cli import main
from zo.distributed.ranks import Ranks

TINY = Setting(model_size="100k", vocab_size=512, batch_size=4, block_size=16, threads=1)
NAMES = {"inference", "inference-best", "fo", "mezo", "mezo-tuned", "mezo-tuned-philox"}
NAMES |= {"noise-gaussian", "noise-rademacher", "train-loop", "lowrank-parallel-onesided", "lowrank-sharded"}
NAMES |= {f"{family}-sequential" for family in FAMILIES} | {f"{family}-parallel" for family in FAMILIES}
FIELDS = {"name", "q", "seconds_per_direction", "forwards_per_direction", "share_of_inference", "times_mezo"}
FIELDS |= {"times_mezo_tuned", "step_over_q1", "extra_memory_mb", "spread"}


@pytest.fixture(scope="module")
def records():
    bench = Workbench(TINY)
    return measure(bench, bench.contenders([1, 4]), rounds=1)


def test_every_contender_has_a_record_with_every_field(records):
    assert {record.name for record in records} == NAMES
    assert all(set(asdict(record)) == FIELDS for record in records)
    assert {r.q for r in records if r.name == "lowrank-parallel"} == {1, 4}
    assert [r.q for r in records if r.name == "lowrank-sharded"] == [4]  # a direction for each sequence


def test_the_ratios_follow_from_the_seconds(records):
    found = {(record.name, record.q): record for record in records}
    base = found["inference", 1].seconds_per_direction
    needed = {"lowrank-parallel-onesided": 5 / 4, "lowrank-sharded": 2 / 4}
    for (name, q), record in found.items():
        assert record.forwards_per_direction == pytest.approx(record.seconds_per_direction / base)
        if name in STEPLESS:
            assert record.times_mezo is None
            continue
        times = found["mezo-tuned", 1].seconds_per_direction / record.seconds_per_direction
        assert record.times_mezo_tuned == pytest.approx(times)
        passes = needed.get(name, 2.0) if q == 4 else 2.0
        assert record.share_of_inference == pytest.approx(passes / record.forwards_per_direction)
    four, one = found["gaussian-parallel", 4], found["gaussian-parallel", 1]
    assert four.step_over_q1 == pytest.approx(4 * four.seconds_per_direction / one.seconds_per_direction)


def test_the_benchs_cache_is_its_users_own_and_no_contender_is_made_before_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (loop,) = (c for c in Workbench(TINY).contenders([1]) if c.name == "train-loop")
    assert list(tmp_path.glob("zo-*")) == []
    loop.step()
    assert [path.name for path in tmp_path.glob("zo-*")] == [f"zo-bench-cache-{os.getuid()}"]


def test_a_table_has_a_row_for_each_record(capsys):
    print_table(TINY, [Record("inference", 1, 0.5, 1.0, 1.0), Record("fo", 1, 1.5, 3.0, 1 / 3)])
    out = capsys.readouterr().out
    assert "inference" in out
    assert "1500.0" in out


def test_losses_of_inference_are_taken_of_as_many_rows_at_once_as_ours(monkeypatch):
    """A softmax of all members together is memory that no step of ours needs."""
    rows = []

    def record(logits, labels):
        rows.append(len(logits))
        return F.cross_entropy(logits, labels)

    monkeypatch.setattr("zo.bench.contenders.F", SimpleNamespace(cross_entropy=record))
    bench = Workbench(TINY)
    for step in (lambda: bench.infer(4), *(c.step for c in bench.ours(2) if c.name == "lowrank-parallel")):
        rows.clear()
        step()
        assert rows == 4 * [TINY.batch_size * TINY.block_size]


class Empties(TorchDispatchMode):
    """Elements of all the tensors that were asked for."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.elements += out.numel() if "empty" in function.__name__ else 0
        return out


@pytest.mark.parametrize("name", ["mezo-tuned", "noise-gaussian"])
def test_a_buffer_is_made_in_the_first_step_where_the_baselines_peak_has_been_read(name):
    bench = Workbench(TINY)
    with Empties() as made:
        step = next(c.step for c in bench.baselines() if c.name == name)
        assert made.elements == 0
        step()
    assert made.elements >= max(parameter.numel() for parameter in bench.parameters)


CHILD = """#!/bin/sh
[ -s "$OUT" ] && echo "a warning" >&2 && echo "no kernel image" >&2 && exit 1
echo "the times were not saved yet" >&2; exit 1
"""


def test_times_are_shown_and_saved_before_memory_is_measured_and_a_row_that_fails_says_why(
    tmp_path, monkeypatch, capfd
):
    (tmp_path / "python").write_text(CHILD)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("OUT", str(tmp_path / "bench.json"))
    run_bench(TINY, [1], rounds=1, memory=True, chunks=False, out=tmp_path / "bench.json")
    records = json.loads((tmp_path / "bench.json").read_text())
    assert all(record["seconds_per_direction"] > 0 for record in records)
    assert {record["extra_memory_mb"] for record in records} == {None}
    out, err = capfd.readouterr()
    assert "lowrank-parallel" in out
    assert "100k lowrank-parallel at q = 1: memory not measured: no kernel image\n" in err
    assert err.count("not measured") == len(records) - 1  # inference-best is no contender of its own


def test_a_process_that_was_killed_says_by_which_signal(tmp_path, monkeypatch, capfd):
    (tmp_path / "python").write_text("#!/bin/sh\necho a warning >&2; kill -9 $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert set(_measure_in_child(TINY, {"memory": "fo-adam"}).values()) == {None}
    assert capfd.readouterr().err == "100k fo-adam: memory not measured: killed by signal 9\n"


@pytest.mark.parametrize(("device", "taken"), [("cuda", list(range(1, 1 + GPU_SAMPLES))), ("cpu", [0, 1, 2])])
def test_the_first_step_of_a_turn_does_not_count_on_a_gpu(device, taken):
    """Its seconds are here the number of the step."""
    seconds = iter(range(100))
    bench = SimpleNamespace(device=torch.device(device), time=lambda step: next(seconds))
    assert take_turn(bench, SimpleNamespace(step=None, forwards=2, q=1)) == taken


def test_each_rank_is_timed_on_a_gpu_of_its_own(monkeypatch):
    """Up to the model, which would be built there."""

    class Built(Exception):
        pass

    def build(*_, device, **__):
        raise Built(device)

    current = []
    monkeypatch.setattr("zo.bench.contenders.build_model", build)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    second = Ranks()
    second.rank, second.count, second.local_rank, second.local_count = 1, 2, 1, 2
    with pytest.raises(Built) as built:
        _measure_all({"setting": asdict(replace(TINY, device="cuda"))}, second)
    assert [*built.value.args, *current] == 2 * [torch.device("cuda:1")]


def test_an_adam_step_is_seen_to_hold_gradients_and_two_moments(monkeypatch):
    """A table of 50257 x 128 is 25 MB: FO with Adam holds three more of it, ZO none."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # else glibc keeps what was freed at times
    setting = Setting(model_size="1M", vocab_size=50257, batch_size=1, block_size=16, threads=1)
    parameters = Workbench(setting).model.num_parameters() * 4 / 2**20
    fo, zo = (_measure_in_child(setting, {"memory": name}) for name in ("fo-adam", "gaussian-sequential"))
    assert fo["extra"] > 2.9 * parameters
    assert zo["extra"] < 0.9 * parameters
    assert fo["peak"] == pytest.approx(fo["loaded"] + fo["extra"])
    contender = next(c for c in Workbench(setting).contenders([1]) if c.name == "gaussian-sequential")
    assert extra_memory(setting, contender) < 0.9 * parameters


def test_checkpointing_holds_fewer_activations_than_plain_backprop(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # as above
    setting = Setting(model_size="1M", vocab_size=512, batch_size=32, block_size=256, threads=1)
    plain, recomputed = (
        _measure_in_child(setting, {"memory": name}) for name in ("fo-sgd", "fo-sgd-checkpointing")
    )
    assert recomputed["extra"] < 0.7 * plain["extra"]
    assert recomputed["seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_step_of_the_1b_preset_fits_in_24_gib_and_zos_takes_a_tenth_of_fos_above_the_model():
    if psutil.virtual_memory().available < 20 * 2**30:
        pytest.skip("needs 20 GiB of free memory: run it alone")
    setting, names = Setting(model_size="1B", threads=2), ("fo-sgd", "fo-sgd-checkpointing")
    fo = [_measure_in_child(setting, {"memory": name}) for name in names]
    zo = _measure_in_child(setting, {"memory": "gaussian-sequential"})
    half = _measure_in_child(replace(setting, dtype="bf16"), {"memory": "gaussian-sequential"})
    assert max(found["peak"] for found in (*fo, zo, half)) < 24 * 1024
    assert 10 * zo["extra"] < min(found["extra"] for found in fo)
    assert half["peak"] < 0.65 * zo["peak"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--queries", "0"], "queries: 0 is not allowed"),
        (["--queries", "two"], "queries: 'two' is not allowed"),
        (["--dtype", "fp8"], "fp8"),
        (["--memory", "--sizes", "20M,7T"], "7T"),
        (["--memory", "--sizes", "20M,100k", "--block-size", "512"], "model_size 100k has 256 positions"),
        (["--threads", "0"], "threads: 0 is not allowed: it must be 1 or more"),
        (["--vocab-size", "0"], "vocab_size: 0 is not allowed: it should be greater than or equal to 257"),
        (["--batch-size", "0"], "batch_size: 0 is not allowed"),
        (["--block-size", "0"], "block_size: 0 is not allowed"),
        (["--block-size", "2000"], "block_size: 2000 is not allowed"),
        (["--model-size", "7T"], "unknown model_size '7T'"),
    ],
)
def test_a_bad_flag_is_one_line(capsys, flags, message):
    assert main(["bench", "--device", "cpu", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_command_saves_the_records_it_prints(tmp_path, capsys):
    out = tmp_path / "bench.json"
    flags = ["--model-size", "100k", "--vocab-size", "512", "--block-size", "16", "--queries", "1,2"]
    assert main(["bench", *flags, "--device", "cpu", "--rounds", "1", "--out", str(out)]) == 0
    records = json.loads(out.read_text())
    assert {record["name"] for record in records} == NAMES
    assert all(set(record) == FIELDS for record in records)
    assert all(isinstance(r["extra_memory_mb"], float) for r in records if r["name"] != "inference-best")


def test_ranks_are_timed_alone_and_together_and_the_law_is_beside(tmp_path):
    """Two real processes; how much they gain is not for a busy machine to say."""
    flags = "--model-size 100k --vocab-size 512 --batch-size 2 --block-size 16 --threads 1 --device cpu"
    words = ["bench", "--ranks", "2", "--queries", "3", "--rounds", "1", "--out", str(tmp_path / "r.json")]
    done = run_zo(*words, *flags.split())
    assert done.returncode == 0, done.stderr
    assert "2 ranks of 1 threads" in done.stdout
    records = json.loads((tmp_path / "r.json").read_text())
    assert [(r["family"], r["q"], r["ranks"]) for r in records] == [(family, 3, 2) for family in FAMILIES]
    for r in records:
        law = (r["alone"] - r["update"]) * 2 / 3 + r["update"] + r["exchange"]
        assert r["predicted"] == pytest.approx(r["alone"] / law)
        assert r["best"] == r["median"] == pytest.approx(r["alone"] / r["together"])
        assert 0 < r["update"] < r["alone"]


def test_one_rank_is_nothing_to_compare(capsys):
    assert main(["bench", "--ranks", "1"]) == 2
    assert "ranks: 1 is not allowed" in capsys.readouterr().err
