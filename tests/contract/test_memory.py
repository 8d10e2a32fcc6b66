"""Memory that runs out costs a run rounding errors and nothing else: real limits on real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import everything, read_rows, run_zo, small_spec, train_command, write_corpus

from zo.causes import TRY_AGAIN, may_pass
from zo.errors import UserError
from zo.training.attempt import Attempt, halve_memory
from zo.training.record import RunFiles
from zo.training.train import Run, _release_memory, train

LARGE = {"block_size": 256, "validation_block_size": 8, "max_steps": 3, "checkpoint_interval": 1}
ZO = {"mode": "ZO", "batch_size": 8, "query_budget_q": 8, "parallel_batch_size": 8} | LARGE
FO = {"mode": "FO", "batch_size": 32} | LARGE
HYBRID = FO | {"mode": "Calibrate", "query_budget_q": 2, "plan": "sequential", "bp_interval": 2}
# Of every mode the model fits into 40 MiB and the smallest step not into 120.
HUGE = {"model_size": "20M", "block_size": 512, "batch_size": 16, "query_budget_q": 4, "bp_interval": 2}
LIMITED = """
import os, resource, signal, sys
from pathlib import Path
import torch
from zo.engine import philox
from zo.errors import UserError
from zo.engine.estimate import Estimate
from zo.training.run import build_run
from zo.spec import RunSpec
from zo.training.train import train

spec, results = RunSpec.from_json(sys.argv[1]), Path(sys.argv[2])
build_run(spec, results / "cache", torch.device("cpu"))  # so that what is measured now is all but the steps
z = torch.zeros(2, 8)  # the compiled noise, too
philox.fill_(0, z, 0, 1), philox.fill_rows_(0, z, torch.zeros(2, dtype=torch.int64), 1)
philox.perturb_(0, torch.zeros(2, 2, 8), z, [1.0, 1.0], 0, 1), philox.add_sum_(0, z, 1.0, [1.0], 0, [1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
for mib in sys.argv[3:]:
    if os.fork():
        os.wait()
        continue
    signal.alarm(60)  # with no memory at all left, C++ or Python itself may stop for ever
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (int(mib) << 20),) * 2)
    (results / mib).mkdir()
    (results / mib / "cache").symlink_to(results / "cache")
    try:
        said = train(spec, results / mib, threads=1).status
    except UserError as error:
        said = str(error)
    (results / mib / "said").write_text(said)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def train_under_limits(spec, results, *margins: int) -> None:
    """One run for each margin: MiB of address space beyond what the process needs before its first step."""
    results.mkdir()
    command = [sys.executable, "-c", LIMITED, spec.to_json(), str(results), *map(str, margins)]
    # What is freed goes back at once, and no thread holds 64 MiB in reserve.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read_said(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("settings", [ZO, FO, HYBRID], ids=["ZO", "FO", "Calibrate"])
def test_out_of_memory_the_run_goes_on_with_less_at_once_and_ends_the_same_to_rounding(
    corpus, tmp_path, settings
):
    spec, margins = small_spec(corpus, **settings), (2000, 60, 40)
    train_under_limits(spec, tmp_path / "r", *margins)
    ends = {mib: RunFiles(tmp_path / "r" / str(mib), spec.name) for mib in margins}
    spared = {mib: read_json(files.folder / "manifest.json")["out_of_memory"] for mib, files in ends.items()}
    assert {mib: read_said(tmp_path / f"r/{mib}/said") for mib in margins} == dict.fromkeys(margins, "done")
    assert spared[2000] == []
    free = read_rows(ends[2000].csv)
    for mib in margins[1:]:
        assert spared[mib]
        assert all("allocate memory" in step["reason"].lower() for step in spared[mib])
        rows = read_rows(ends[mib].csv)
        assert [row["step"] for row in rows] == [row["step"] for row in free]
        for row, other in zip(rows[1:], free[1:], strict=True):
            assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        stored = read_json(ends[mib].folder / "spec.json")
        assert stored["gradient_accumulation"] == 1  # it is in names
        if settings is ZO:
            assert stored["parallel_batch_size"] == spared[mib][-1]["settings"]["parallel_batch_size"] < 8
        else:
            assert spared[mib][-1]["settings"]["gradient_accumulation"] > 1


@pytest.mark.parametrize(
    ("mode", "floor", "halved"),
    [
        ("ZO", "one direction at a time, the sequential plan", [2, 1, 1]),
        ("FO", "one sequence at a time", [2, 4, 8, 16]),
        ("Frozen", "one forward pass", []),
        (
            "Calibrate",
            "one direction at a time, the sequential plan and one sequence at a time in backprop",
            [2, 1, 1, 2, 4, 8, 16],
        ),
    ],
    ids=["ZO", "FO", "Frozen", "Calibrate"],
)
def test_where_nothing_is_left_to_halve_it_fails_with_one_line(corpus, tmp_path, mode, floor, halved):
    settings = {"mode": mode, "parallel_batch_size": 4} if mode in ("ZO", "Calibrate") else {"mode": mode}
    spec = small_spec(corpus, **LARGE | HUGE | settings)
    train_under_limits(spec, tmp_path / "r", 75)
    (line,) = read_said(tmp_path / "r/75/said").splitlines()
    assert line.startswith(f"out of memory with {floor}: take a smaller batch_size, ")
    record = read_json(RunFiles(tmp_path / "r/75", spec.name).attempt)
    assert record["ended"] == "refused"
    settings = [step["settings"] for step in record["reductions"]]
    assert [s.get("gradient_accumulation") or s["parallel_batch_size"] for s in settings] == halved


def test_it_goes_on_from_its_checkpoint_and_keeps_the_limit(corpus, tmp_path, monkeypatch, caplog):
    spec, take_step = small_spec(corpus, "ZO", query_budget_q=8), Run.take_step
    seen = []

    def short_of_memory(run):
        report = take_step(run)
        seen.append((run.ledger.step, run.state.plan.directions_in_flight))
        if run.ledger.step == 5 and run.state.plan.directions_in_flight > 2:
            raise MemoryError
        if run.ledger.step == 6 and len(seen) < 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    monkeypatch.setattr(Run, "take_step", short_of_memory)
    with caplog.at_level("INFO", logger="zo"), pytest.raises(SystemExit):
        train(spec, tmp_path)
    assert seen == [(1, 8), (2, 8), (3, 8), (4, 8), (5, 8), (5, 4), (5, 2), (6, 2)]
    assert caplog.text.count("out of memory") == 2
    assert caplog.text.count("resumed at step 4") == 2
    assert train(spec, tmp_path).status == "done"
    assert seen[8:] == [(7, 2)]


TOLD_AND_SHORT = """
import os, sys
from zo.cli import main
from zo.training.train import Run
take_step = Run.take_step
def short_of_memory(run):
    if run.ledger.step == 5 and run.state.plan.directions_in_flight > 2:
        os.kill(os.getpid(), int(sys.argv[1]))
        raise MemoryError
    return take_step(run)
Run.take_step = short_of_memory
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_told_to_stop_in_a_step_that_runs_out_of_memory_it_stops(corpus, tmp_path, number, status):
    """It would go on with less, and be killed when its time is up."""
    spec = small_spec(corpus, "ZO", query_budget_q=8)
    words = [sys.executable, "-c", TOLD_AND_SHORT, str(int(number))]
    done = subprocess.run(
        [*words, *train_command(spec, tmp_path / "told")[3:]], capture_output=True, check=False
    )
    assert done.returncode == status, done.stderr.decode()
    for results in (tmp_path / "told", tmp_path / "calm"):
        assert train(spec, results, threads=1).status == "done"
    assert everything(tmp_path / "told", spec.name) == everything(tmp_path / "calm", spec.name)


def test_after_an_attempt_that_did_not_fit_the_peak_of_memory_is_counted_anew(monkeypatch):
    counted = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", counted.append)
    for device in (torch.device("cpu"), torch.device("cuda")):
        _release_memory(device)
    assert counted == [torch.device("cuda")]


def test_a_hybrids_backprop_goes_in_parts_also_after_a_kill(corpus, tmp_path, monkeypatch):
    """The mode reads no gradient_accumulation: the next process knows the parts from the attempt's record."""
    spec = small_spec(corpus, "Calibrate", batch_size=4, plan="sequential")
    take_step, seen = Run.take_step, []

    def short_of_memory(run):
        seen.append((run.ledger.step, run.state.spec.gradient_accumulation))
        if run.ledger.step == 2 and run.state.spec.gradient_accumulation == 1:
            raise MemoryError
        report = take_step(run)
        if run.ledger.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    monkeypatch.setattr(Run, "take_step", short_of_memory)
    with pytest.raises(SystemExit):
        train(spec, tmp_path)
    assert seen == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 2)]
    record = RunFiles(tmp_path, spec.name).attempt
    killed = read_json(record) | {"ended": "out of memory"}
    record.write_text(json.dumps(killed))
    assert Attempt(record, spec).limits["gradient_accumulation"] == 4
    monkeypatch.setattr(Run, "take_step", take_step)
    assert train(spec, tmp_path).status == "done"
    assert read_json(RunFiles(tmp_path, spec.name).folder / "spec.json")["gradient_accumulation"] == 1


def test_a_finished_run_asked_for_again_starts_without_limits(corpus, tmp_path, monkeypatch):
    spec, take_step = small_spec(corpus, "FO"), Run.take_step

    def short_of_memory(run):
        if run.state.spec.gradient_accumulation == 1:
            raise RuntimeError("CUDA error: out of memory")
        return take_step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "take_step", short_of_memory)
        assert train(spec, tmp_path).status == "done"
    folder = RunFiles(tmp_path, spec.name).folder
    assert len(read_json(folder / "manifest.json")["out_of_memory"]) == 1
    assert train(spec, tmp_path).status == "done"
    assert read_json(folder / "manifest.json")["out_of_memory"] == []


@pytest.mark.parametrize(
    ("mode", "settings", "halved"),
    [
        (
            "ZO",
            {"plan": "parallel", "parallel_batch_size": 8},
            {"plan": "parallel", "parallel_batch_size": 4},
        ),
        (
            "Random",
            {"plan": "parallel", "parallel_batch_size": 3},
            {"plan": "parallel", "parallel_batch_size": 1},
        ),
        (
            "Instruct",
            {"plan": "parallel", "parallel_batch_size": 1},
            {"plan": "sequential", "parallel_batch_size": 1},
        ),
        ("ZO", {"plan": "sequential"}, None),
        (
            "Calibrate",
            {"plan": "sequential", "batch_size": 6},
            {"plan": "sequential", "parallel_batch_size": 1, "gradient_accumulation": 2},
        ),
        ("Instruct", {"plan": "sequential", "batch_size": 1}, None),
        ("FO", {"batch_size": 8}, {"gradient_accumulation": 2}),
        ("FO", {"batch_size": 6, "gradient_accumulation": 2}, {"gradient_accumulation": 6}),
        ("FO", {"batch_size": 6, "gradient_accumulation": 6}, None),
        ("FO", {"batch_size": 1}, None),
        ("Frozen", {}, None),
    ],
)
def test_what_is_halved(corpus, mode, settings, halved):
    assert halve_memory(small_spec(corpus, mode, **settings)) == halved


@pytest.mark.parametrize("mib", [60, 100, 300])
def test_no_room_to_load_the_libraries_is_the_machines_failure_and_one_line(corpus, tmp_path, mib):
    """Of numpy first, of torch then: nothing was learned of the run, so the workflow tries again.

    Between the two OpenBLAS ends the process itself, with a line and a status of its own.
    """
    done = subprocess.run(
        train_command(small_spec(corpus, "ZO"), tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mib << 20,) * 2),
        capture_output=True,
        text=True,
        check=False,
    )
    assert may_pass(done.returncode, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    if mib != 100:
        assert done.returncode == TRY_AGAIN
        assert done.stderr.startswith("zo train: out of memory: ")


# --- kills -----------------------------------------------------------------------------------------


def leave_unfinished(path: Path, spec, **changes) -> None:
    """The record of an attempt that was killed without a word."""
    attempt = Attempt(path, spec)
    attempt.begin(spec.model_copy(update={"plan": "parallel", "parallel_batch_size": 4}))
    path.write_text(json.dumps(read_json(path) | changes))


def test_a_plain_kill_sets_no_limit_so_that_the_run_ends_at_the_same_bytes(corpus, tmp_path):
    spec, path = small_spec(corpus, "ZO"), tmp_path / "attempt.json"
    leave_unfinished(path, spec)
    assert Attempt(path, spec).limits == {}


def test_a_kill_that_the_kernel_counted_as_one_for_memory_halves(corpus, tmp_path):
    spec, path = small_spec(corpus, "ZO"), tmp_path / "attempt.json"
    leave_unfinished(path, spec)
    then = read_json(path)["kernel"]
    leave_unfinished(path, spec, kernel=then | {"kills": then["kills"] - 1})
    assert Attempt(path, spec).limits == {"plan": "parallel", "parallel_batch_size": 2}
    assert Attempt(path, spec).reductions[0]["reason"] == "the kernel killed it for memory"


def test_counts_of_another_machine_or_another_start_of_it_say_nothing(corpus, tmp_path):
    spec, path = small_spec(corpus, "ZO"), tmp_path / "attempt.json"
    leave_unfinished(path, spec, kernel={"boot": "another", "kills": -1})
    assert Attempt(path, spec).limits == {}


def test_a_run_that_ended_before_its_first_checkpoint_keeps_its_plan_whatever_is_free_now(
    corpus, tmp_path, monkeypatch
):
    """Else on a shared GPU a kill would change the bytes of its results."""
    spec = small_spec(corpus, "ZO", query_budget_q=4)
    plans = []
    for free, fails in ((2**34, True), (1, False)):
        with monkeypatch.context() as patch:
            patch.setattr("zo.training.run.free_memory", lambda device, free=free: free)
            if fails:
                patch.setattr(Run, "take_step", lambda run: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    train(spec, tmp_path)
            else:
                assert train(spec, tmp_path).status == "done"
        manifest = read_json(RunFiles(tmp_path, spec.name).folder / "manifest.json")
        plans.append((manifest["plan"]["kind"], manifest["plan"]["directions_in_flight"]))
    assert plans == [("parallel", 4)] * 2


def test_a_retry_after_a_bug_ends_at_once_and_a_new_call_tries_again(corpus, tmp_path, monkeypatch):
    spec = small_spec(corpus, "FO")

    def fail(run):
        raise ZeroDivisionError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "take_step", fail)
        with pytest.raises(ZeroDivisionError):
            train(spec, tmp_path)
    with pytest.raises(UserError, match=r"not tried again.* a bug: ZeroDivisionError: planted"):
        train(spec, tmp_path, retry=True)
    assert train(spec, tmp_path).status == "done"
    assert read_json(RunFiles(tmp_path, spec.name).attempt)["ended"] == "done"


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def cage():
    """A function: make a cgroup with a limit in MiB and return what a process joins it with."""
    if os.getuid() or not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("needs root and a memory cgroup (v1) to let the kernel kill for memory")
    group = MEMORY / f"zo-test-{os.getpid()}"
    group.mkdir()

    def limit(mib: int):
        (group / "memory.limit_in_bytes").write_text(str(mib << 20))
        return lambda: (group / "cgroup.procs").write_text(str(os.getpid()))

    yield limit
    group.rmdir()


@pytest.mark.slow
def test_a_run_that_the_kernel_kills_for_memory_goes_on_with_less_at_the_next_attempt(cage, corpus, tmp_path):
    spec = small_spec(corpus, **ZO | {"batch_size": 32})
    command = train_command(spec, tmp_path)
    mib, statuses = 1000, []
    while -signal.SIGKILL not in statuses:
        mib -= 100
        statuses = [
            subprocess.run(command, preexec_fn=cage(mib), capture_output=True, check=False).returncode
        ]
    while statuses[-1] == -signal.SIGKILL and len(statuses) < 6:
        ended = subprocess.run(command, preexec_fn=cage(mib), capture_output=True, text=True, check=False)
        statuses.append(ended.returncode)
    assert statuses[-1] == 0, ended.stderr
    files = RunFiles(tmp_path, spec.name)
    reductions = read_json(files.folder / "manifest.json")["out_of_memory"]
    assert len(reductions) == statuses.count(-signal.SIGKILL)
    assert {step["reason"] for step in reductions} == {"the kernel killed it for memory"}
    assert run_zo("replay", files.folder).returncode == 0
