"""Runs of a second: a corpus, their settings, what they write, and `python -m zo` as a real process."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from zo.cli import main
from zo.spec import RunSpec
from zo.training.record import RunFiles

TIMINGS = ("timestamp", "seconds", "tokens_per_second", "peak_memory_mb")
OWN = {"Calibrate": {"bp_interval": 3}, "Instruct": {"bp_interval": 3}}
SETTINGS = {
    "scope": "full",
    "batch_size": 2,
    "block_size": 8,
    "learning_rate": 1e-2,
    "query_budget_q": 2,
    "tokenizer": "bytes",
    "max_steps": 7,
    "checkpoint_interval": 2,
    "log_interval": 1,
    "validation_interval": 4,
    "validation_blocks": 3,
    "validation_block_size": 8,
}


def write_corpus(folder: Path) -> Path:
    """A few thousand words."""
    words = "the a quick lazy brown dog fox jumps runs over under river".split()  # noqa: SIM905
    draw = random.Random(0)
    path = folder / "corpus.txt"
    path.write_text("\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(60)))
    return path


def small_spec(corpus: Path, mode: str, **settings) -> RunSpec:
    """A run of ``mode`` on the corpus."""
    return RunSpec.make(mode=mode, dataset=str(corpus), **(SETTINGS | OWN.get(mode, {}) | settings))


def train_command(spec: RunSpec, results: Path, *flags: str) -> list[str]:
    """What the workflow's jobs run."""
    command = [sys.executable, "-m", "zo", "train", "--spec", spec.to_json(), "--results", str(results)]
    return [*command, "--threads", "1", *flags]


def run_zo(*words: str, **options) -> subprocess.CompletedProcess:
    """`python -m zo`, to its end."""
    command = [sys.executable, "-m", "zo", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, **options)


def fail(capsys, *arguments) -> str:
    """The one line that a mistake in a command prints, with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"zo {arguments[0]}: ")
    return line


def read_rows(path: Path) -> list[dict]:
    """A CSV log without its timings."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def read_final(path: Path) -> dict[str, tuple]:
    """Every tensor of a checkpoint, weights and optimizer state: type, shape, bytes."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return {
        name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def everything(results: Path, run: str) -> dict:
    """All that a run's settings decide, to the byte."""
    files = RunFiles(results, run)
    outcome = json.loads(files.outcome.read_text())
    return {
        "csv": read_rows(files.csv),
        "scalars": files.scalars.read_bytes(),
        "final": read_final(files.final) if files.final.exists() else None,
        "outcome": {key: value for key, value in outcome.items() if key != "log"},
        "spec": (files.folder / "spec.json").read_bytes(),
    }
