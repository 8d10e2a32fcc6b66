"""Everything a run writes but its checkpoints: the CSV log, the scalar log, spec, manifest, outcome.

The log grows in runs/<run>/, which Snakemake does not know of, and is published to csv_logs/ when the
run ends; Snakemake deletes a declared output before every rerun, and with it a crashed run's curve.
"""

import csv
import io
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zo.errors import UserError
from zo.files import make_folder, remove_asides, write_aside, write_json
from zo.training.job import note_outcome, now

TAIL_BYTES = 16384
"""Of a log's end: some 60 rows, enough for the last values and the pace."""
FINISHED = ("done", "diverged")
"""Outcomes after which nothing goes on; a crashed run goes on from its checkpoint."""

COLUMNS = {
    "timestamp": "when the row was written, UTC",
    "epoch": "passes over the training tokens so far",
    "step": "updates so far; row 0 is the untrained model",
    "mode": "method",
    "scope": "what is trained",
    "q": "directions of a ZO step; 0 where the method makes none",
    "lr": "peak learning rate",
    "current_lr": "learning rate of this step",
    "batch_size": "sequences a step",
    "block_size": "tokens a sequence",
    "optimizer": "update rule",
    "bp_interval": "steps from one backprop step to the next (Calibrate, Instruct)",
    "epsilon": "length of the finite difference",
    "loss": "training loss of this step, nats a token; of ZO the mean over its evaluations",
    "val_loss": "mean loss over the study's held-out blocks, nats a token; where it was measured",
    "grad_norm": "norm of the direction that the optimizer was given",
    "cosine": "of the estimate with the gradient that guided it (Instruct)",
    "tokens": "training tokens read",
    "tokens_evaluated": "tokens that went through forward passes",
    "forward_passes": "of the run's whole batch; validation is not counted",
    "backward_passes": "of the run's whole batch",
    "seconds": "in steps alone: no validation, logging or checkpoints",
    "tokens_per_second": "tokens / seconds",
    "peak_memory_mb": "MiB: allocated on the GPU, else resident in the process",
    "seed": "of initial weights, batches and noise",
}
"""Every column of the CSV log and what it holds; empty where it does not apply (docs/results-format.md)."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
"""Of a run: it names a folder, and must not lead out of the one it is in."""


def list_runs(results: Path) -> list[str]:
    """Names of the runs that have a folder, sorted; others' folders (.ipynb_checkpoints) are none."""
    folders = (path for path in (results / "runs").glob("*") if path.is_dir() and not path.is_symlink())
    return sorted(path.name for path in folders if NAME.fullmatch(path.name))


@dataclass(frozen=True)
class RunFiles:
    """Where one run's files lie under the results folder."""

    results: Path
    run: str

    def __post_init__(self):
        if not NAME.fullmatch(self.run):
            raise UserError(
                f"run name {self.run!r} is not allowed: it names a folder: letters, digits, . + _ and -"
            )

    @property
    def folder(self) -> Path:
        return self.results / "runs" / self.run

    @property
    def csv(self) -> Path:
        """The published log."""
        return self.results / "csv_logs" / f"{self.run}.csv"

    @property
    def job_log(self) -> Path:
        return self.results / "job_logs" / f"{self.run}.log"

    @property
    def live_csv(self) -> Path:
        return self.folder / "log.csv"

    @property
    def scalars(self) -> Path:
        return self.folder / "scalars.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def kept(self) -> Path:
        """The trained weights as they were at chosen steps, for a probe."""
        return self.folder / "kept"

    @property
    def probe(self) -> Path:
        """Estimates held against the exact gradient."""
        return self.results / "probes" / f"{self.run}.csv"

    @property
    def outcome(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.folder / ".lock"

    @property
    def attempt(self) -> Path:
        """How the last attempt began and ended (zo/training/attempt.py)."""
        return self.folder / "attempt.json"

    @property
    def final(self) -> Path:
        return self.folder / "final.safetensors"

    def make_folders(self) -> None:
        """Make all of them. Raises UserError where the results folder can't be written to."""
        for folder in (self.folder, self.csv.parent, self.job_log.parent):
            make_folder(folder)

    def remove_leftovers(self) -> None:
        """Delete half-written files of an attempt that was killed; only while holding the run's lock."""
        remove_asides(self.folder)
        remove_asides(self.checkpoints)
        remove_asides(self.kept)
        remove_asides(self.csv.parent, self.csv.name)

    def write_outcome(
        self, status: str, reason: str | None, step: int, weights_sha256: str | None = None
    ) -> None:
        """Publish the log and say how the run ended: ``done``, ``diverged`` or ``crashed``."""
        log = self.live_csv.read_bytes() if self.live_csv.exists() else b""
        write_aside(self.csv, log[: log.rfind(b"\n") + 1])  # a full disk may have cut the last row
        outcome = {
            "run": self.run,
            "status": status,
            "reason": reason,
            "step": step,
            "log": str(self.job_log),
            "weights_sha256": weights_sha256,
        }
        write_json(self.outcome, outcome)
        note_outcome(self, status, reason, step)

    def keep_final_weights(self) -> None:
        """Set the last checkpoint aside as the result, so that a run asked for again starts over."""
        *_, last = sorted(self.checkpoints.glob("step-*.safetensors"))
        last.replace(self.final)
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def drop_logs(self) -> None:
        self.live_csv.unlink(missing_ok=True)
        self.scalars.unlink(missing_ok=True)

    def drop_result(self) -> None:
        """Delete the outcome, the final weights, and those of steps between."""
        self.outcome.unlink(missing_ok=True)
        self.final.unlink(missing_ok=True)
        shutil.rmtree(self.kept, ignore_errors=True)


class Logs:
    """The two logs that grow with a run, cut back to a checkpoint's length when it resumes."""

    def __init__(self, files: RunFiles, lengths: dict[str, int] | None = None):
        lengths = lengths or {"csv": 0, "scalars": 0}
        self._csv = _open_at(files.live_csv, lengths["csv"])
        self._scalars = _open_at(files.scalars, lengths["scalars"])
        if not lengths["csv"]:
            self._write_line(dict(zip(COLUMNS, COLUMNS, strict=True)))

    def write_row(self, row: dict[str, Any]) -> None:
        """Append one row of the CSV; a key that is no column is an error, a missing one is empty."""
        self._write_line({"timestamp": now(), **row})

    def _write_line(self, row: dict[str, Any]) -> None:
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS, restval="", lineterminator="\n").writerow(row)
        self._csv.write(line.getvalue().encode())
        self._csv.flush()

    def write_scalars(self, step: int, scalars: dict[str, Any]) -> None:
        """Append what a ZO step can be replayed from; floats are written so that they read back exactly."""
        if scalars:
            self._scalars.write((json.dumps({"step": step, **scalars}) + "\n").encode())

    def lengths(self) -> dict[str, int]:
        """Bytes on disk now, for the checkpoint."""
        for file in (self._csv, self._scalars):
            file.flush()
            os.fsync(file.fileno())
        return {"csv": self._csv.tell(), "scalars": self._scalars.tell()}

    def close(self) -> None:
        self._csv.close()
        self._scalars.close()


def _open_at(path: Path, length: int):
    path.touch()
    file = open(path, "r+b")  # noqa: SIM115 - closed by Logs.close
    file.truncate(length)
    file.seek(length)
    return file


def read_last_rows(log: Path) -> list[dict[str, str]]:
    """The last whole rows of a live CSV; half a line at either end is no row."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")[1:-1]
    except OSError:
        return []
    return [row for row in csv.DictReader(lines, list(COLUMNS)) if (row["step"] or "").isdigit()]


def logs_reach(files: RunFiles, lengths: dict[str, int]) -> bool:
    """Whether both logs are at least as long as a checkpoint says: one that was deleted cannot go on."""
    paths = {"csv": files.live_csv, "scalars": files.scalars}
    return all(path.exists() and path.stat().st_size >= lengths[name] for name, path in paths.items())


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Versions, hardware and commit, for the manifest."""
    packages = ("zo", "torch", "transformers", "tokenizers", "datasets", "numpy", "safetensors")
    return {
        "versions": {name: installed_version(name) for name in packages}
        | {"python": platform.python_version()},
        "commit": _commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "gpu": _describe_gpu(device) if device.startswith("cuda") else None,
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": threads,
    }


DRIVER = Path("/sys/module/nvidia/version")


def _describe_gpu(device: str) -> dict[str, Any]:
    """What its noise depends on: torch deals the numbers of a large tensor out to as many threads as fit.

    A part of a GPU (MIG) has fewer multiprocessors than the whole.
    """
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": DRIVER.read_text().strip() if DRIVER.exists() else None,
    }


def installed_version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The source's git commit, with ``-dirty`` where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
