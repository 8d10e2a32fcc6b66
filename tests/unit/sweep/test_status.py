"""The status of a sweep: states told from records and locks of real processes; the table and its times."""

import fcntl
import json
import math
import os
import platform
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from processes import killed_at_end

from zo.cli import main
from zo.errors import UserError
from zo.files import write_json
from zo.study import load_study
from zo.sweep.machine import read_machine
from zo.sweep.status import SILENT_S, read_status
from zo.sweep.sweep_record import begin_sweep, end_sweep, is_at_work
from zo.training.record import Logs, RunFiles
from zo.units import spell_seconds

TRAINER = """
import sys, time
from pathlib import Path
from zo.files import hold
from zo.training.job import recorded_job
from zo.training.record import RunFiles
files = RunFiles(Path(sys.argv[1]), sys.argv[2])
files.make_folders()
with hold(files.folder / ".lock"), recorded_job(files):
    print("held", flush=True)
    time.sleep(600)
"""
STUDY = {"study": "default", "modes": ["FO", "ZO"], "learning_rates": [1e-2, 1e-3], "max_steps": 100}
FO, FO2, ZO, ZO2 = (
    f"{mode}_reduced_bs8_q{q}_lr1e-0{e}" for mode, q in (("FO", 0), ("ZO", 1)) for e in (2, 3)
)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """The folder of a sweep of four runs that has begun, by this very process."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results")
    folder.mkdir()
    begin_sweep(load_study(STUDY), jobs=2)
    return folder


@pytest.fixture
def trainer(results):
    """A function: a process that holds a run as the trainer does, and has said so."""
    started = []

    def start(run: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(results), run], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def write_log(results: Path, run: str, steps: range, *, began: datetime, pace: float = 30.0, **last) -> None:
    """A run's manifest, and a row for each of ``steps``, ``pace`` wall seconds a step from ``began`` on."""
    files = RunFiles(results, run)
    files.make_folders()
    write_json(files.folder / "manifest.json", {"steps": 100})
    logs = Logs(files)
    for step in steps:
        when = (began + timedelta(seconds=pace * (step - steps[0]))).isoformat(timespec="seconds")
        row = {"timestamp": when, "step": step, "loss": 5 - step / 100, "seconds": step * 0.5}
        logs.write_row(row | {"tokens_per_second": 1000.0, "peak_memory_mb": 400.0})
    if last:
        logs.write_row({"step": steps[-1] + 1, "seconds": 1.0} | last)
    logs.close()


def write_job(results: Path, run: str, **changes) -> None:
    job = {"run": run, "pid": 1, "host": platform.node(), "gpus": "", "attempt": 1, "slurm_job_id": None}
    files = RunFiles(results, run)
    files.make_folders()
    write_json(files.folder / "job.json", job | {"started": now()} | changes)


def now(before: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=before)).isoformat(timespec="seconds")


def states(results) -> dict[str, str]:
    return {run.run: run.state for run in read_status(results).runs}


def find(results, name):
    return next(run for run in read_status(results).runs if run.run == name)


# --- states --------------------------------------------------------------------------------------


def test_all_runs_of_a_sweep_that_has_just_begun_are_queued_in_their_order(results):
    status = read_status(results)
    assert [run.run for run in status.runs] == [FO, FO2, ZO, ZO2]
    assert status.counts == {"queued": 4}
    assert status.at_work is True
    assert status.eta_seconds is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_is_running_while_its_process_lives_and_stopped_when_it_is_gone(results, trainer, number):
    process = trainer(ZO)
    assert states(results) == {FO: "queued", FO2: "queued", ZO: "running", ZO2: "queued"}
    process.send_signal(number)
    process.wait()
    assert states(results)[ZO] == "stopped"


def test_looking_never_takes_a_trainers_lock_away(results, trainer):
    """A trainer that starts while others look must still get its lock: they wait for one another."""
    looking = "import sys; from pathlib import Path; from zo.sweep.status import read_status\n"
    looking += "read_status(Path('results')); print('looking', flush=True)\n"
    looking += "while True: read_status(Path('results'))"
    command = [sys.executable, "-c", looking]
    onlookers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [onlooker.stdout.readline() for onlooker in onlookers] == ["looking\n"] * 2
        for _ in range(3):
            process = trainer(ZO)
            assert states(results)[ZO] == "running"
            process.kill()
            process.wait()
        assert [onlooker.poll() for onlooker in onlookers] == [None, None]
    finally:
        for onlooker in onlookers:
            onlooker.kill()
            onlooker.wait()


@pytest.mark.parametrize("status", ["done", "diverged", "crashed"])
def test_an_outcome_is_the_state_and_gives_its_reason(results, status):
    write_log(results, ZO, range(0, 50, 10), began=datetime.now(UTC), loss=math.inf)
    RunFiles(results, ZO).write_outcome(status, "why", 41)
    run = find(results, ZO)
    assert (run.state, run.reason, run.step, run.total, run.loss) == (status, "why", 41, 100, math.inf)


def test_a_run_that_is_repeated_is_running_whatever_its_old_outcome_says(results, trainer):
    RunFiles(results, ZO).make_folders()
    RunFiles(results, ZO).write_outcome("done", None, 100)
    process = trainer(ZO)
    assert states(results)[ZO] == "running"
    process.kill()


def test_a_run_of_another_machine_is_lost_when_it_is_silent_for_long(results):
    write_job(results, ZO, host="elsewhere")
    write_log(results, ZO, range(0, 50, 10), began=datetime.now(UTC))
    log = RunFiles(results, ZO).live_csv
    for silent, state in ((0, "running"), (SILENT_S - 60, "running"), (SILENT_S + 2000, "lost")):
        os.utime(log, (time.time() - silent,) * 2)
        assert states(results)[ZO] == state


def test_a_slow_run_of_another_machine_is_not_lost_between_two_rows(results):
    write_job(results, ZO, host="elsewhere")
    write_log(results, ZO, range(5), began=datetime.now(UTC), pace=3600)
    os.utime(RunFiles(results, ZO).live_csv, (time.time() - 7200,) * 2)
    assert states(results)[ZO] == "running"


def test_runs_of_an_earlier_grid_are_in_the_table_only_while_they_run(results, trainer):
    old = "ZO_full_bs1_q1_lr1e-01"
    process = trainer(old)
    assert states(results)[old] == "running"
    process.kill()
    process.wait()
    assert old not in states(results)


def test_without_a_sweep_all_runs_of_the_folder_are_listed(results):
    (results / "sweep.json").unlink()
    RunFiles(results, ZO).make_folders()
    RunFiles(results, ZO).write_outcome("done", None, 3)
    status = read_status(results)
    assert [(run.run, run.state) for run in status.runs] == [(ZO, "done")]
    assert status.at_work is False


def test_half_a_row_is_no_row(results):
    write_log(results, ZO, range(0, 50, 10), began=datetime.now(UTC))
    with open(RunFiles(results, ZO).live_csv, "a") as log:
        log.write("2026-01-01T00:00:00+00:00,0.1,4")
    assert find(results, ZO).step == 40


def test_a_log_longer_than_what_is_read_gives_the_same_last_row(results):
    write_log(results, ZO, range(1000), began=datetime.now(UTC), pace=1)
    run = find(results, ZO)
    assert (run.step, run.loss, run.tokens_per_second, run.peak_memory_mb) == (999, 5 - 9.99, 1000.0, 400.0)


def test_a_folder_without_runs_is_an_error_that_names_the_study_inside_it(results, tmp_path):
    (results / "runs").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*results"):
        read_status(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="give the results folder"):
        read_status(tmp_path / "empty")


# --- the sweep's own process ---------------------------------------------------------------------


def test_a_sweep_is_at_work_while_its_process_lives_and_has_not_ended(results):
    record = json.loads((results / "sweep.json").read_text())
    assert is_at_work(record) is True
    assert is_at_work(record | {"process_started": record["process_started"] - 60}) is False  # a reused pid
    assert is_at_work(record | {"host": "elsewhere"}) is None
    with killed_at_end(subprocess.Popen(["sleep", "600"])) as process:
        child = psutil.Process(process.pid)
        record |= {"pid": child.pid, "process_started": child.create_time()}
        assert is_at_work(record) is True
        process.kill()
        while child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert is_at_work(record) is False
    assert is_at_work(record) is False  # gone
    end_sweep(str(results), succeeded=True)
    assert read_status(results).at_work is False


def test_the_end_of_a_sweep_is_logged_with_its_counts(results):
    for run, outcome in ((FO, "done"), (FO2, "done"), (ZO, "diverged")):
        RunFiles(results, run).make_folders()
        RunFiles(results, run).write_outcome(outcome, None, 1)
    end_sweep(str(results), succeeded=False)
    *_, line = (results / "sweep.log").read_text().splitlines()
    assert re.search(r"sweep failed after \d+ s: 4 runs: 1 diverged, 2 done, 1 without an outcome$", line)


# --- times left ----------------------------------------------------------------------------------


def test_the_time_left_of_a_run_is_its_steps_left_at_the_pace_of_its_rows(results, trainer):
    trainer(ZO)
    write_log(results, ZO, range(41), began=datetime.now(UTC), pace=30)
    assert find(results, ZO).eta_seconds == pytest.approx(60 * 30, abs=30)


def test_rows_before_a_resume_do_not_count_for_the_pace(results, trainer):
    trainer(ZO)
    write_log(results, ZO, range(0, 21), began=datetime.now(UTC) - timedelta(days=1), pace=1000)
    assert find(results, ZO).eta_seconds is None
    old = RunFiles(results, ZO).live_csv.read_text()
    write_log(results, ZO, range(20, 41), began=datetime.now(UTC) + timedelta(seconds=1), pace=30)
    new = RunFiles(results, ZO).live_csv.read_text().split("\n", 1)[1]
    RunFiles(results, ZO).live_csv.write_text(old + new)
    assert find(results, ZO).eta_seconds == pytest.approx(60 * 30, abs=30)


def test_the_sweeps_time_left_is_the_work_left_at_the_pace_of_the_work_done(results):
    """FO took 100 s; ZO q = 1 takes 2/3 of FO's passes: 100 + 2 x 66.7 s are left, one at a time."""
    write_job(results, FO, started=now(before=100))
    write_log(results, FO, range(0, 101, 10), began=datetime.now(UTC), pace=0)
    RunFiles(results, FO).write_outcome("done", None, 100)
    assert read_status(results).eta_seconds == pytest.approx(100 + 2 * 200 / 3, rel=0.05)
    for run in (FO2, ZO, ZO2):
        write_log(results, run, range(0, 101, 10), began=datetime.now(UTC), pace=0)
        RunFiles(results, run).write_outcome("done", None, 100)
    assert read_status(results).eta_seconds == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (86399, "23 h 59 min"),
        (100000, "1 d 03 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert spell_seconds(seconds) == text


# --- what is printed -----------------------------------------------------------------------------


def test_the_table_shows_every_run_with_its_numbers_and_the_footer_counts(results, trainer, capsys):
    process = trainer(ZO)
    write_log(results, ZO, range(41), began=datetime.now(UTC), pace=30)
    RunFiles(results, FO).make_folders()
    RunFiles(results, FO).write_outcome("diverged", "loss nan at step 2", 2)
    assert main(["status", str(results)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "loss", "tokens/s", "ETA", "peak", "MiB", "GPU"]
    rows = {line.split()[0]: line for line in lines}
    assert re.match(rf"{re.escape(ZO)} +running +40/100 +4\.6000 +1,000 +\d+ min \d\d s +400 +cpu", rows[ZO])
    assert rows[FO].split()[1] == "diverged"
    assert rows[ZO2].split()[1:] == ["queued", "-", "-", "-", "-", "-", "-"]
    assert "4 runs: 1 diverged, 2 queued, 1 running; sweep ETA" in lines[4]
    assert f"process {os.getpid()} on {platform.node()}" in lines[5]
    assert "CPU cores" in lines[6]
    process.kill()


def test_a_run_elsewhere_under_slurm_says_where_it_is(results, capsys):
    write_job(results, ZO, host="node7", gpus="2", slurm_job_id="4711")
    assert main(["status", str(results)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(ZO)]
    assert line.endswith("node7:2 (Slurm 4711)")


def test_as_json_it_holds_the_same_and_no_number_that_json_lacks(results, capsys):
    write_log(results, ZO, range(0, 50, 10), began=datetime.now(UTC), loss=math.inf)
    RunFiles(results, ZO).write_outcome("diverged", "loss inf at step 41", 41)
    assert main(["status", str(results), "--format", "json"]) == 0

    def refuse(word):
        raise AssertionError(word)

    said = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert said["counts"] == {"queued": 3, "diverged": 1}
    [run] = [run for run in said["runs"] if run["run"] == ZO]
    assert (run["state"], run["step"], run["loss"], run["reason"]) == (
        "diverged",
        41,
        None,
        "loss inf at step 41",
    )
    assert said["machine"]["cpus"] >= 1
    assert "runs" not in said["sweep"]


def watch(results: Path, **how) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "zo", "status", str(results), "--watch"]
    return subprocess.Popen(command, **how)


def finish(results: Path, run: str) -> None:
    RunFiles(results, run).make_folders()
    RunFiles(results, run).write_outcome("done", None, 100)


@pytest.mark.timeout(60)
def test_watching_shows_a_change_and_ends_with_ctrl_c(results):
    process = watch(results, stdout=subprocess.PIPE, text=True)
    try:
        assert any("4 runs: 4 queued" in line for line in process.stdout)
        finish(results, ZO)
        assert any("4 runs: 1 done, 3 queued" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    finally:
        process.kill()


@pytest.mark.timeout(60)
def test_on_a_small_terminal_what_runs_comes_first_and_the_rest_is_counted(results, trainer):
    process = trainer(ZO2)
    terminal, inside = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 120, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    watcher = watch(results, stdin=inside, stdout=inside, stderr=inside, env=env | {"TERM": "xterm"})
    shown = b""
    try:
        while b"CPU cores" not in shown:
            shown += os.read(terminal, 4096)
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(timeout=30) == 130
    finally:
        watcher.kill()
        process.kill()
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    assert "... and 2 more" in text
    assert ZO2 in text
    assert ZO not in text


def test_the_status_needs_no_heavy_library(results):
    code = "import sys; from zo.cli import main; main(['status']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "transformers", "scipy", "matplotlib"} & set(done.stderr.split())


def test_use_of_gpus_is_read_from_nvidia_smi(tmp_path, monkeypatch):
    """A stand-in that prints what `nvidia-smi --query-gpu` prints; this machine has no GPU."""
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\necho '0, NVIDIA H100 80GB HBM3, 45, 1024, 81559'\necho '1, T4, [N/A], 0, 15360'\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = read_machine()["gpus"]
    assert (first["name"], first["percent"], first["memory_total_mb"]) == ("NVIDIA H100 80GB HBM3", 45, 81559)
    assert (second["index"], second["percent"]) == (1, None)
