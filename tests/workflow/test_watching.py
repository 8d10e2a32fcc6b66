"""A sweep as others see it: status from another process, the sweep's log, preflight, pack and prune."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from processes import killed_at_end
from real_sweep import ROOT, STUDY, Sweep

BROKEN, ZO, WILD = (
    f"{name}_block16"
    for name in ("FO_full_bs2_q0_lr1e-01", "ZO_full_bs2_q2_lr1e-03", "ZO_full_bs2_q2_lr1e+10")
)
ENDS = {BROKEN: "crashed", ZO: "done", WILD: "diverged"}
STEPS = 600
"""So that a run trains for some seconds: a look from another process takes one or two."""
WATCHED = {
    "modes": ["FO", "ZO"],
    "learning_rates": {"FO": "1e-1", "ZO": ["1e-3", "1e10"]},
    "max_steps": STEPS,
    "log_interval": 1,
    "retries": 0,
}


def zo(sweep: Sweep, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zo", *arguments]
    return subprocess.run(command, cwd=sweep.folder, env=env, capture_output=True, text=True, timeout=120)


def look(sweep: Sweep) -> dict:
    """What `zo status` of another process says."""
    done = zo(sweep, "status", "results/tiny", "--format", "json")
    return json.loads(done.stdout) if done.returncode == 0 else {"runs": [], "counts": {}}


def start(sweep: Sweep) -> subprocess.Popen:
    """Start snakemake, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", "study.yaml"]
    log = open(sweep.folder / "snakemake.log", "w")  # noqa: SIM115 - the process's own
    return subprocess.Popen(
        command, cwd=sweep.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def events(sweep: Sweep) -> list[str]:
    return [line.split(" ", 1)[1] for line in (sweep.results / "sweep.log").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Sweep:
    """A sweep with a crash, by a folder that stands where a spec must be written, and a divergence.

    ``seen`` is what others saw of it meanwhile.
    """
    sweep = Sweep(tmp_path_factory.mktemp("watched"))
    sweep.write(STUDY | WATCHED)
    (sweep.results / "runs" / BROKEN / "spec.json").mkdir(parents=True)
    sweep.seen = []
    with killed_at_end(start(sweep)) as process:
        while process.poll() is None:
            sweep.seen.append(look(sweep))
            time.sleep(0.5)
    sweep.returncode = process.returncode
    return sweep


def test_every_run_is_seen_to_wait_run_and_end(watched):
    assert watched.returncode == 1
    seen = {run: [] for run in ENDS}
    for status in watched.seen:
        for run in status["runs"]:
            seen[run["run"]].append(run["state"])
    for run, states in seen.items():
        assert states[0] == "queued", run
        assert states[-1] == ENDS[run]
        assert {"queued", ENDS[run]} <= set(states) <= {"queued", "running", "stopped", ENDS[run]}
    assert any("running" in states for states in seen.values())
    assert look(watched)["counts"] == {"crashed": 1, "done": 1, "diverged": 1}


def test_a_running_run_is_seen_with_its_numbers_and_the_sweep_at_work(watched):
    running = [run for status in watched.seen for run in status["runs"] if run["state"] == "running"]
    told = [run for run in running if run["step"]]
    assert told
    assert {run["total"] for run in told} == {STEPS}
    assert all(run["loss"] > 0 and run["peak_memory_mb"] > 100 for run in told if run["run"] != WILD)
    assert {status["at_work"] for status in watched.seen if status["counts"].get("running")} == {True}
    assert look(watched)["at_work"] is False


def test_the_sweeps_log_tells_its_whole_story(watched):
    said = events(watched)
    assert re.match(r"sweep started: 3 runs, 0 of them ended before, at most 2 at once \(", said[0])
    assert re.match(r"sweep failed after \d+ s: 3 runs: 1 crashed, 1 diverged, 1 done$", said[-1])
    for run, end in ENDS.items():
        own = [line.split(":")[0] for line in said if f": {run} " in line]
        failed = ["run failed"] if end == "crashed" else []
        assert own == ["run started", *failed, f"run {end}"]
    [wild] = [line for line in said if line.startswith("run diverged")]
    assert re.search(r"at step \d+ after \d+ s: .*loss", wild)


def test_the_preflight_was_said_before_the_first_job(watched):
    text = (watched.folder / "snakemake.log").read_text()
    for what in ("packages", "disk", "memory", "GPUs", "corpus text.txt"):
        assert 0 < text.index(f"preflight  ok       {what}: ") < text.index("rule cache:")


def test_packed_and_unpacked_elsewhere_it_gives_the_same_summary(watched, tmp_path):
    assert zo(watched, "pack", "results/tiny", "--out", str(tmp_path / "a.tar.gz")).returncode == 0
    shutil.unpack_archive(tmp_path / "a.tar.gz", tmp_path)
    command = [sys.executable, "-m", "zo", "analyze", "results/tiny/csv_logs", "--out", "again"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "again/summary.csv").read_bytes() == (watched.results / "summary.csv").read_bytes()
    plotted = subprocess.run(
        [sys.executable, "-m", "zo", "plot", "results/tiny/csv_logs", "--out", "again/plots"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert plotted.returncode == 0
    figures = {path.name for path in (watched.results / "plots").iterdir()}
    assert {path.name for path in (tmp_path / "again/plots").iterdir()} == figures


def test_pruning_reruns_nothing_and_the_crashed_run_goes_on(watched):
    """Run last: it changes the sweep."""
    (watched.results / "runs" / BROKEN / "spec.json").rmdir()
    before = watched.planned()
    assert zo(watched, "prune", "results/tiny", "--weights").returncode == 0
    assert not list(watched.results.glob("runs/*/final.safetensors"))
    assert watched.planned() == before
    assert watched.run().returncode == 0
    done = zo(watched, "prune", "results/tiny", "--weights", "--caches")
    assert done.returncode == 0, done.stderr
    assert not list(watched.results.glob("cache/*/train.bin"))
    assert watched.planned() == []
    assert events(watched)[-1].endswith("3 runs: 1 diverged, 2 done")
    metas = {path: path.stat().st_mtime_ns for path in watched.results.glob("cache/*/meta.json")}
    rates = WATCHED["learning_rates"]
    watched.write(STUDY | WATCHED | {"learning_rates": rates | {"ZO": ["1e-3", "2e-3", "1e10"]}})
    new = ZO.replace("1e-03", "2e-03")
    planned = watched.planned()
    assert [job for job in planned if "_" in job] == [new]
    assert "cache" not in planned
    done = watched.run()
    assert done.returncode == 0, done.stdout
    assert watched.outcome(new)["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in watched.results.glob("cache/*/meta.json")} == metas
    assert watched.planned() == []


def test_ctrl_c_on_a_sweep_by_flags_leaves_no_trainer_and_says_that_it_ended(tmp_path):
    """To the whole process group, as a terminal sends it."""
    sweep = Sweep(tmp_path)
    flags = ["--modes", "ZO", "--learning-rates", "1e-3,2e-3", "--max-steps", str(10**6), "--study", "tiny"]
    flags += ["--dataset", "text.txt", "--vocab-size", "300", "--parallel", "2", "--log-interval", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zo", "sweep", *flags],
        cwd=sweep.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with killed_at_end(process):
        while not [run for run in look(sweep)["runs"] if run["state"] == "running" and run["step"]]:
            assert process.poll() is None
            time.sleep(0.2)
        assert "snakemake" in psutil.Process(process.pid).cmdline()  # a signal to `zo sweep` is Snakemake's
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
        _, left = psutil.wait_procs(children, timeout=60)
        for child in left:  # the processes of a sweep that has ended: below no one
            child.kill()
    assert left == []
    record = json.loads((sweep.results / "sweep.json").read_text())
    assert record["ended"]
    assert re.match(r"sweep failed after \d+ s: 2 runs: 2 without an outcome", events(sweep)[-1])
    assert sum("run stopped" in line or "run failed" in line for line in events(sweep)) >= 1


@pytest.mark.slow
def test_a_sweep_that_is_killed_with_its_runs_is_seen_as_gone_and_its_runs_as_stopped(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.write(STUDY | {"modes": "ZO", "learning_rates": ["1e-3", "2e-3", "3e-3"], "max_steps": 10**6})
    with killed_at_end(start(sweep)) as process:
        while not [run for run in look(sweep)["runs"] if run["state"] == "running" and run["step"]]:
            assert process.poll() is None, (sweep.folder / "snakemake.log").read_text()
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        for victim in (process, *children):
            victim.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(children, timeout=60)
    seen = look(sweep)
    assert seen["at_work"] is False
    assert seen["counts"]["stopped"] >= 1
    assert set(seen["counts"]) <= {"stopped", "queued"}
    assert "gone: `snakemake` goes on" in zo(sweep, "status", "results/tiny").stdout


def test_a_study_that_cannot_fit_is_stopped_with_one_line_before_any_job(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.write(STUDY | {"modes": "FO", "learning_rates": 1, "batch_sizes": 10**8})
    assert sweep.planned()  # a dry run does not look
    refused = sweep.run()
    assert refused.returncode != 0
    [line] = [line for line in refused.stdout.splitlines() if line.startswith("Error")]
    assert re.search(r"memory: .* the largest takes", line)
    assert "Traceback" not in refused.stdout
    assert "rule cache:" not in refused.stdout.split("preflight")[-1]
