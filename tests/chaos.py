"""A sweep of 31 runs through everything that can happen to it in a night: ``make chaos``, minutes.

Kills jobs and Snakemake at random moments, fills the disk, damages checkpoints, takes memory away, starts
Snakemake again whenever it has ended, and then compares all results with those of a calm sweep: byte for
byte but for timings, to rounding where memory ran out. Prints what was survived; exit status 1 otherwise.
"""

import argparse
import contextlib
import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import yaml
from small_runs import everything, read_rows, write_corpus

from zo.files import read_json
from zo.spec import RunSpec
from zo.study import load_study
from zo.training.record import RunFiles

ROOT = Path(__file__).resolve().parents[1]
STUDY = {
    "study": "night",
    "modes": ["FO", "ZO", "Calibrate", "Instruct", "Random", "Frozen"],
    "scopes": "full",
    "batch_sizes": 4,
    "query_budgets": {"ZO": [1, 4], "default": 4},
    "learning_rates": {
        "FO": ["1e-3", "1e-2", "1e10"],  # the last one diverges
        "ZO": ["1e-4", "3e-4", "1e-3"],
        "Frozen": 1e-3,
        "default": ["1e-4", "1e-3"],
    },
    "optimizer": ["sgd", "adamw"],
    "bp_interval": 3,
    "schedule": "cosine",
    "max_steps": 400,  # most of a job's time is training, not its start
    "checkpoint_interval": 10,
    "log_interval": 2,
    "validation_interval": 50,
    "validation_blocks": 4,
    "block_size": 16,
    "validation_block_size": 16,
    "dataset": "corpus.txt",
    "tokenizer": "bytes",
    "retries": 2,
}
DISK = "192m"
PATIENCE = 120
"""Seconds to wait for a job in training."""
TIMED = ["seconds", "tokens_per_second", "peak_memory_mb"]


class Sweep:
    """A folder with a study, the Snakemake that works there, and all that can be done to it."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results/night"
        self.results.mkdir(parents=True, exist_ok=True)
        write_corpus(folder)
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        self.snakemake, self.exits, self.squeezed = None, [], set()

    def start(self) -> None:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--workflow-profile", str(ROOT / "profiles/default"), "--configfile", "study.yaml"]
        with open(self.folder / "snakemake.log", "ab") as log:
            self.snakemake = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self) -> int:
        """Wait for Snakemake; its exit status."""
        self.exits.append(self.snakemake.wait())
        return self.exits[-1]

    def jobs(self) -> list[psutil.Process]:
        """The training processes of this folder, orphans of killed Snakemakes too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if process.cwd() == str(self.folder) and "train" in words and words[1:3] == ["-m", "zo"]:
                    found.append(process)
        return found

    # Each returns what it did, or None where there was nothing to do it to.

    def kill_job(self, draw) -> str | None:
        return self._signal_job(draw, signal.SIGKILL)

    def stop_job(self, draw) -> str | None:
        return self._signal_job(draw, signal.SIGTERM)

    def _signal_job(self, draw, number) -> str | None:
        """Mostly one in training, waited for: on a busy machine most of a job's time is its start."""
        deadline = time.monotonic() + (PATIENCE if draw.random() < 0.8 else 0)
        while not (training := [job for job in self.jobs() if self.trains(job)]):
            if time.monotonic() > deadline or self.snakemake.poll() is not None:
                break
            time.sleep(0.2)
        else:
            time.sleep(draw.uniform(0, 3))
        if not (jobs := training or self.jobs()):
            return None
        with contextlib.suppress(psutil.Error):
            draw.choice(jobs).send_signal(number)
            return f"a job {'in training' if training else 'at its start'} got {number.name}"

    def trains(self, job: psutil.Process) -> bool:
        """Whether it has written to its run's log."""
        with contextlib.suppress(psutil.Error, OSError):
            log = RunFiles(self.results, name_of(job.cmdline())).live_csv
            return log.stat().st_mtime > job.create_time()
        return False

    def kill_snakemake(self, draw) -> str:
        number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if number == signal.SIGINT:  # Ctrl-C reaches the jobs too
            os.killpg(self.snakemake.pid, number)
        else:
            self.snakemake.send_signal(number)
        return f"Snakemake got {number.name}"

    def fill_disk(self, draw) -> str | None:
        if not os.path.ismount(self.results):
            return None
        filler = self.folder / "results/night/filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(draw.uniform(1, 4))
        filler.unlink()
        return "the disk was full"

    def damage_checkpoint(self, draw) -> str | None:
        """Of a run that no process works on: a file that is mapped must not shrink."""
        paths = sorted(self.results.glob("runs/*/checkpoints/step-*.safetensors"))
        draw.shuffle(paths)
        for path in paths:
            newest = max(path.parent.iterdir())
            with contextlib.suppress(OSError), open(path.parents[1] / ".lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                content = newest.read_bytes()
                if not content:  # by an earlier call
                    continue
                cut = draw.randrange(len(content))
                if draw.random() < 0.5:
                    os.truncate(newest, draw.choice([0, cut]))
                    return "a checkpoint was truncated"
                newest.write_bytes(content[:cut] + bytes([content[cut] ^ 255]) + content[cut + 1 :])
                return "a byte of a checkpoint was flipped"

    def take_memory(self, draw) -> str | None:
        """Let a job have no more address space than it has now."""
        jobs = [job for job in self.jobs() if time.time() - job.create_time() > 2]
        if not jobs:
            return None
        with contextlib.suppress(psutil.Error):
            job = draw.choice(jobs)
            self.squeezed.add(name_of(job.cmdline()))
            size = job.memory_info().vms
            job.rlimit(psutil.RLIMIT_AS, (size, resource.RLIM_INFINITY))
            return "a job's memory was cut"


def name_of(words: list[str]) -> str:
    """The run's name, from a job's command line."""
    return RunSpec.from_json(words[words.index("--spec") + 1]).name


EVENTS = {
    Sweep.kill_job: 8,
    Sweep.stop_job: 3,
    Sweep.kill_snakemake: 2,
    Sweep.fill_disk: 2,
    Sweep.damage_checkpoint: 5,
    Sweep.take_memory: 1,
}


def disturb(sweep: Sweep, events: int, draw: random.Random) -> Counter:
    """Let so many things happen, starting Snakemake again whenever it has ended, then let it end well."""
    happened: Counter = Counter()
    sweep.start()
    while happened.total() < events:
        time.sleep(draw.uniform(0.5, 4.0))
        if sweep.snakemake.poll() is not None:
            if sweep.finish() == 0:
                break
            sweep.start()
        [event] = draw.choices(list(EVENTS), EVENTS.values())
        what = event(sweep, draw)
        happened.update([what] if what else [])
    while sweep.finish() != 0:
        if len(sweep.exits) > events + 20:
            sys.exit(f"it does not end: see {sweep.folder}/snakemake.log")
        sweep.start()
    return happened


def compare(sweep: Sweep, calm: Sweep, runs) -> list[str]:
    """Names of the runs whose results differ from the calm ones by more than they may."""
    different = []
    for run in runs:
        reductions = read_json(RunFiles(sweep.results, run).folder / "manifest.json")["out_of_memory"]
        if not (reductions or run in sweep.squeezed):
            same = everything(sweep.results, run) == everything(calm.results, run)
        else:
            same = all(map(is_close, *(read_rows(RunFiles(s.results, run).csv) for s in (sweep, calm))))
        different += [] if same else [run]
    rows = [
        pd.read_csv(s.results / "summary.csv", index_col="run").drop(columns=TIMED) for s in (sweep, calm)
    ]
    exact = [run for run in rows[0].index if run not in sweep.squeezed]
    if not rows[0].loc[exact].equals(rows[1].loc[exact]):
        different.append("summary.csv")
    return different


def is_close(row: dict, other: dict) -> bool:
    """Whether two rows of a CSV are equal to rounding."""
    return row["step"] == other["step"] and all(
        row[key] == other[key] or abs(float(row[key]) - float(other[key])) < 1e-3
        for key in ("loss", "val_loss")
    )


def tell(sweep: Sweep, happened: Counter, runs, seconds: float) -> None:
    """Print the counts."""
    logs = "".join(path.read_text(errors="replace") for path in sweep.results.glob("job_logs/*.log"))
    manifests = [read_json(RunFiles(sweep.results, run).folder / "manifest.json") for run in runs]
    for what, count in sorted(happened.items()):
        print(f"{count:5} times {what}")
    failed = sum(code != 0 for code in sweep.exits)
    print(f"{failed:5} of {len(sweep.exits)} calls of Snakemake ended early or with a failed run")
    print(f"{logs.count(': resumed at step'):5} times a run was resumed from a checkpoint")
    print(f"{logs.count('is damaged ('):5} damaged checkpoints were passed over")
    print(f"{logs.count('No space left on device'):5} times a run found the disk full")
    print(f"{logs.count('another process finished it'):5} times a job found its run finished by an orphan")
    for reason, count in Counter(r["reason"] for m in manifests for r in m["out_of_memory"]).items():
        print(f"{count:5} times memory was given up: {reason}")
    print(f"{len(list(sweep.results.glob('runs/*/crash*.json'))):5} crashes were recorded and repeated")
    print(f"{seconds:5.0f} seconds")


def enter_namespace() -> bool:
    """Start again where a small disk can be mounted, if this machine allows it; whether we are there."""
    if "ZO_CHAOS" in os.environ:
        return os.environ["ZO_CHAOS"] == "mount"
    allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    if allowed:
        os.environ["ZO_CHAOS"] = "mount"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    print("no mount namespaces here: the disk is not filled")
    return False


def main() -> int:
    """One calm sweep, one disturbed, one comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=80, help="(default 80)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="(default: the time)")
    parser.add_argument("--calm", type=Path, help="folder of a calm sweep that was kept, to compare with")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    mount, folder = enter_namespace(), Path(tempfile.mkdtemp(prefix="zo-chaos-"))
    runs = load_study(STUDY | {"dataset": str(write_corpus(folder))}).runs
    print(f"{len(runs)} runs, {options.events} events, seed {options.seed}, in {folder}", flush=True)
    calm, sweep = Sweep(options.calm or folder / "calm"), Sweep(folder / "chaos")
    if mount:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", sweep.results], check=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    start = time.monotonic()
    calm.start()
    if calm.finish():
        sys.exit(f"the calm sweep failed: see {calm.folder}/snakemake.log")
    print(f"calm: {time.monotonic() - start:.0f} seconds", flush=True)
    start = time.monotonic()
    happened = disturb(sweep, options.events, random.Random(options.seed))
    tell(sweep, happened, runs, time.monotonic() - start)
    different = compare(sweep, calm, runs)
    print("equal to the calm sweep's" if not different else f"DIFFERENT: {', '.join(different)}")
    if not options.keep and not different:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
