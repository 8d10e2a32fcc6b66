"""The sweep on a real Slurm: what its jobs ask for, what becomes of them, and the same results as locally."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from processes import killed_at_end
from real_sweep import STUDY, Sweep
from small_runs import everything

from zo.files import read_json
from zo.planning.footprint import job_memory_mb, job_minutes
from zo.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CRASHES, LONG, DIVERGES, QUICK = (
    f"{name}_block16"
    for name in (
        "FO_full_bs2_q0_lr1e-01",
        "ZO_full_bs2_q2_lr1e-03",
        "ZO_full_bs2_q2_lr1e+10",
        "Frozen_full_bs2_q0_lr1e-03",
    )
)
GRID = STUDY | {
    "learning_rates": {"FO": "1e-1", "ZO": ["1e-3", "1e10"], "Frozen": 1e-3},
    "max_steps": 3000,  # LONG still trains after a status, a scontrol and a scancel
    "checkpoint_interval": 10**6,  # but for a signal's, there are none
    "log_interval": 50,
    "validation_interval": 1000,
    "threads": 2,
}
ENDLESS = STUDY | {"modes": "ZO", "learning_rates": 1e-3, "max_steps": 10**7}
ENDLESS |= {"checkpoint_interval": 10**6, "log_interval": 20, "validation_interval": 10**4}
SOON = ("--slurm-init-seconds-before-status-checks", "5")
ZO = LONG
PATIENCE_S = 300


class ClusterSweep(Sweep):
    """A sweep on the cluster, and what the cluster says of its jobs."""

    def begin(self, *arguments: str) -> None:
        """Start snakemake, its output in a file."""
        self.said = self.folder / "snakemake.log"  # a pipe that nobody reads would fill
        with open(self.said, "w") as log:
            self.process = self.start(*SOON, *arguments, output=log, ZO_GPU_LOCKS=str(self.folder))

    def finish(self) -> None:
        self.process.wait(PATIENCE_S)
        self.output = self.said.read_text()

    def jobs(self) -> dict[str, dict[str, str]]:
        """Slurm's records of this study's jobs, ended ones too, by id."""
        listed = subprocess.run(
            ["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True
        )
        records = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in listed.stdout.splitlines()]
        return {r["JobId"]: r for r in records if r.get("WorkDir") == str(self.folder)}

    def job_of(self, run: str) -> dict[str, str]:
        """The newest job of a run; empty where none was submitted yet."""
        own = [job for job in self.jobs().values() if job["Comment"].endswith(run)]
        return max(own, key=lambda job: int(job["JobId"]), default={})

    def log(self, run: str) -> str:
        path = self.results / "job_logs" / f"{run}.log"
        return path.read_text() if path.exists() else ""

    def status(self) -> dict[str, dict]:
        command = [sys.executable, "-m", "zo", "status", "results/tiny", "--format", "json"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True)
        return {run["run"]: run for run in json.loads(done.stdout)["runs"]}

    def wait_until(self, holds) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.2)

    def wait_for_words(self, run: str, words: str, times: int = 1) -> None:
        self.wait_until(lambda: self.log(run).count(words) >= times)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.finish()


@pytest.fixture(scope="module")
def swept(lab, tmp_path_factory) -> ClusterSweep:
    """A sweep in which one run crashes, one diverges, and one is cancelled while it trains.

    ``told``: what zo status said meanwhile; ``records``: Slurm's of all jobs, at the end.
    """
    sweep = ClusterSweep(tmp_path_factory.mktemp("swept"), GRID, profile="slurm")
    (sweep.results / "runs" / CRASHES / "spec.json").mkdir(parents=True)
    sweep.begin()
    with killed_at_end(sweep.process):
        sweep.wait_for_words(LONG, "step 100/")
        sweep.told = sweep.status()
        sweep.cancelled = sweep.job_of(LONG)["JobId"]
        subprocess.run(["scancel", sweep.cancelled], check=True)
        sweep.finish()
    sweep.records = sweep.jobs()
    return sweep


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Sweep:
    """The same sweep on this machine, with nothing done to it."""
    sweep = Sweep(tmp_path_factory.mktemp("local"), GRID)
    (sweep.results / "runs" / CRASHES / "spec.json").mkdir(parents=True)
    assert sweep.run().returncode == 1
    return sweep


def test_the_sweep_ends_as_it_does_locally(swept):
    assert swept.process.returncode == 1, swept.output  # for the crash
    ends = {run: swept.outcome(run)["status"] for run in (CRASHES, LONG, DIVERGES, QUICK)}
    assert ends == {CRASHES: "crashed", LONG: "done", DIVERGES: "diverged", QUICK: "done"}
    assert (swept.results / "summary.txt").read_text().count("\ncrashed ") == 1


@pytest.mark.parametrize("run", [LONG, DIVERGES, QUICK])
def test_results_equal_the_local_ones_to_the_byte(swept, local, run):
    assert everything(swept.results, run) == everything(local.results, run)


def test_a_cancelled_run_stops_at_a_checkpoint_and_goes_on_from_it(swept):
    log = swept.log(LONG)
    stopped, resumed = (
        re.findall(rf"{words} (\d+)", log) for words in ("stopped at step", "resumed at step")
    )
    assert len(stopped) == 1, log
    assert stopped == resumed
    assert 100 <= int(stopped[0]) < GRID["max_steps"]
    assert swept.records[swept.cancelled]["JobState"] == "CANCELLED"


def test_each_job_asks_for_what_its_run_takes(swept):
    spec = load_study(GRID | {"dataset": "shakespeare"}).runs[LONG]  # of any corpus that is found from here
    job = swept.records[swept.cancelled]
    tokens = read_json(next(swept.results.glob("cache/*/meta.json")))["tokens"]["train"]
    assert job["MinMemoryNode"] == f"{job_memory_mb(spec, gpus=1)}M"
    assert job["TimeLimit"] == spell(job_minutes(spec, gpus=1, threads=2, corpus_tokens=tokens))
    assert job["CPUs/Task"] == "2"
    assert job["TresPerJob"] == "gres:gpu:1"
    [cache] = [job for job in swept.records.values() if "rule_cache" in job["Comment"]]
    assert "TresPerJob" not in cache
    assert cache["NumCPUs"] == "8"


def spell(minutes: int) -> str:
    """As Slurm does."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def test_the_comment_names_the_run_and_the_jobs_name_begins_with_the_study(swept):
    comments = {job["Comment"].removeprefix("rule_train_wildcards_") for job in swept.records.values()}
    assert {CRASHES, LONG, DIVERGES, QUICK} < comments
    assert all(job["JobName"].startswith("tiny_") for job in swept.records.values())


def test_a_retry_asks_for_twice_the_memory_and_time(swept):
    """The rest, a bug that was recorded and a divergence, is not tried again."""
    asked = {}
    for job in sorted(swept.records.values(), key=lambda job: int(job["JobId"])):
        asked.setdefault(job["Comment"].split("_", 3)[-1], []).append(job)
    first, second = asked.pop(LONG)
    memory = [int(job["MinMemoryNode"].removesuffix("M")) for job in (first, second)]
    minutes = [60 * int(h) + int(m) for h, m, _ in (job["TimeLimit"].split(":") for job in (first, second))]
    assert memory[1] == 2 * memory[0]
    assert minutes[1] == 2 * minutes[0]
    assert {len(jobs) for jobs in asked.values()} == {1}


def test_the_status_maps_a_run_to_its_job_and_its_log(swept):
    told = swept.told[LONG]
    assert told["state"] == "running"
    assert told["slurm_job_id"] == swept.cancelled
    assert (swept.folder / told["log"]).read_text() == swept.log(LONG)
    assert swept.status()[LONG]["slurm_job_id"] == max(swept.records, key=int)


def test_nothing_runs_again_when_all_is_done_whichever_profile_asks(swept):
    """Run after the others: the crash is mended here. Resources are no reason to repeat a run."""
    (swept.results / "runs" / CRASHES / "spec.json").rmdir()
    swept.begin()
    swept.finish()
    assert swept.process.returncode == 0, swept.output
    assert re.findall(r"wildcards: run=(\S+)", swept.output) == [CRASHES]
    assert swept.planned(*SOON) == []
    swept.profile = "default"
    assert swept.planned() == []


CLOCKS = {
    "late": ("--set-resources", "train:runtime=1 if attempt == 1 else 60", "train:slurm_extra=''"),
    "warned": ("--set-resources", "train:runtime=3 if attempt == 1 else 60"),
}
"""A run that the cluster ends when its time is up, and one with the rule's signal two minutes before."""


@pytest.fixture(scope="module")
def endless(lab, tmp_path_factory) -> Iterator[dict[str, ClusterSweep]]:
    """Sweeps of one run that never ends, one for each of CLOCKS, side by side: Slurm counts in minutes.

    Snakemake is interrupted at the end, which must cancel its jobs.
    """
    sweeps = {name: ClusterSweep(tmp_path_factory.mktemp(name), ENDLESS, profile="slurm") for name in CLOCKS}
    with ExitStack() as stack:
        for name, sweep in sweeps.items():
            sweep.begin(*CLOCKS[name])
            stack.enter_context(killed_at_end(sweep.process))
        yield sweeps
        for sweep in sweeps.values():
            sweep.process.send_signal(signal.SIGINT)
        for sweep in sweeps.values():
            sweep.finish()


@pytest.mark.parametrize(("name", "end"), [("late", "TIMEOUT"), ("warned", "FAILED")])
def test_a_run_whose_time_is_up_stops_at_a_checkpoint_and_goes_on_with_more(endless, name, end):
    sweep = endless[name]
    sweep.wait_for_words(ZO, "resumed at step")
    _, first, second = sorted(sweep.jobs().values(), key=lambda job: int(job["JobId"]))
    assert (first["JobState"], second["TimeLimit"]) == (end, "01:00:00")
    assert_went_on(sweep)


def test_a_preempted_run_waits_and_goes_on_and_ctrl_c_cancels_it(lab, tmp_path):
    sweep = ClusterSweep(tmp_path, ENDLESS, profile="slurm")
    sweep.begin()
    with killed_at_end(sweep.process):
        sweep.wait_for_words(ZO, "step 20/")
        first = sweep.job_of(ZO)["JobId"]
        urgent = ["sbatch", "--partition=urgent", "--gpus=4", "--output=/dev/null", "--wait", "--wrap"]
        subprocess.run([*urgent, "sleep 1"], check=True, capture_output=True)
        sweep.wait_for_words(ZO, "resumed at step")
        job = sweep.job_of(ZO)
        assert (job["JobId"], job["Restarts"]) == (first, "1")
        assert_went_on(sweep)
        sweep.interrupt()
    assert sweep.process.returncode != 0
    assert sweep.job_of(ZO)["JobState"] == "CANCELLED"


def assert_went_on(sweep: ClusterSweep) -> None:
    log = sweep.log(ZO)
    assert re.findall(r"signal 15: stopped at step (\d+)", log) == re.findall(r"resumed at step (\d+)", log)
    assert sweep.process.poll() is None
