"""Peak memory, each contender in a fresh process: what one leaves behind would hide the next one's peak."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from zo.bench.contenders import LEARNING_RATE, Contender, Setting, Workbench
from zo.engine.plan import Plan
from zo.files import write_json
from zo.models import checkpoint_activations
from zo.sizes import SIZES
from zo.training.ledger import peak_memory_mb

MEMORY_Q = 2
MEASURED = ("loaded", "extra", "peak", "seconds")
STEPS = 2
"""Before a peak is read: what is made once exists, what is freed has been freed."""


def extra_memory(setting: Setting, contender: Contender) -> float | None:
    """MiB that a contender takes above inference with as many tokens in flight; None if it failed."""
    task = {"name": contender.name, "q": contender.q, "members": contender.members}
    return _measure_in_child(setting, task)["extra"]


def run_memory_bench(setting: Setting, sizes: list[str], out: Path | None) -> None:
    """Peaks and times of FO and ZO steps for models of several sizes: print a table, save the records."""
    records = []
    for size in sizes:
        for name in MEMORY_STEPS:
            found = _measure_in_child(replace(setting, model_size=size), {"memory": name})
            records.append({"model_size": size, "name": name} | found)
            Console(stderr=True).print(size, name, found, highlight=False)
    _print_peaks(setting, records)
    if out:
        write_json(out, records)


def _step_of(name: str, bench: Workbench) -> Callable[[], object]:
    """One of MEMORY_STEPS on a model."""
    if name == "fo-sgd-checkpointing":
        checkpoint_activations(bench.model)
    if name.startswith("fo-sgd"):
        return bench.step_fo
    if name == "fo-adam":
        return _adam_step(bench)
    family, kind = name.split("-")
    plan = Plan("sequential") if kind == "sequential" else bench.plan(MEMORY_Q)
    return bench.zo(name, MEMORY_Q, family, plan).step


MEMORY_STEPS = (
    "fo-sgd",
    "fo-sgd-checkpointing",
    "fo-adam",
    "gaussian-sequential",
    "gaussian-parallel",
    "lowrank-parallel",
)


def _adam_step(bench: Workbench) -> Callable[[], None]:
    optimizer = torch.optim.Adam(bench.parameters, lr=LEARNING_RATE)

    def step():
        for parameter in bench.parameters:
            parameter.requires_grad_()
        bench.objective().losses().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _print_peaks(setting: Setting, records: list[dict]) -> None:
    s = setting
    title = f"{s.architecture}, vocabulary {s.vocab_size}, {s.batch_size} x {s.block_size} tokens, {s.dtype}"
    table = Table(title=f"{title}, {s.device}, ZO with q = {MEMORY_Q}; MiB", title_justify="left")
    heads = ("model loaded", "peak above it", "whole peak", "FO SGD over it", "s a step", "over FO SGD")
    for head in ("size", "step", *heads):
        table.add_column(head, justify="right")
    for r in records:
        cells = ["not measured" if r[key] is None else f"{r[key]:.0f}" for key in ("loaded", "extra", "peak")]
        fo = next(o for o in records if (o["model_size"], o["name"]) == (r["model_size"], "fo-sgd"))
        less = f"{fo['extra'] / r['extra']:.1f}" if fo["extra"] and r["extra"] else ""
        seconds = "" if r["seconds"] is None else f"{r['seconds']:.2f}"
        longer = f"{r['seconds'] / fo['seconds']:.2f}" if fo["seconds"] and r["seconds"] else ""
        table.add_row(r["model_size"], r["name"], *cells, less, seconds, longer)
    Console(width=120).print(table)


# -- in the child -----------------------------------------------------------------------------------


def _measure_in_child(setting: Setting, task: dict) -> dict[str, float | None]:
    """What a fresh process finds; all None, and a line on stderr that says why, where it fails."""
    command = [sys.executable, "-m", "zo.bench.memory", json.dumps(task | {"setting": asdict(setting)})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    reason = words[-1] if done.returncode > 0 else f"killed by signal {-done.returncode}"
    step = task.get("memory") or f"{task['name']} at q = {task['q']}"
    print(f"{setting.model_size} {step}: memory not measured: {reason}", file=sys.stderr)
    return dict.fromkeys(MEASURED)


def _measure(task: dict) -> dict[str, float]:
    """MiB: the process with its model loaded, the peak of its steps above that or above inference, in all.

    And the seconds of its fastest step.
    """
    setting = Setting(**task["setting"])
    _warm_up(setting)
    bench = Workbench(setting)
    if "memory" in task:
        step = _step_of(task["memory"], bench)
        loaded = _now_mb(bench.device)
    else:
        step = next(c.step for c in bench.contenders([task["q"]]) if c.name == task["name"])
        _reset_peak(bench.device)
        for _ in range(STEPS):
            bench.infer(task["members"])
        loaded = _peak_mb(bench.device)
    _reset_peak(bench.device)
    seconds = min(bench.time(step) for _ in range(STEPS))
    peak = _peak_mb(bench.device)
    return {"loaded": loaded, "extra": peak - loaded, "peak": peak, "seconds": seconds}


def _warm_up(setting: Setting) -> None:
    """Load what every process loads once, code above all, on a model that weighs nothing."""
    tiny = Workbench(replace(setting, model_size=SIZES[0]))
    for family in ("gaussian", "rademacher", "lowrank"):
        tiny.zo("", 2, family, Plan("parallel", 1)).step()
    tiny.step_fo()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # proc(5): resets the peak resident set size


def _peak_mb(device: torch.device) -> float:
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return peak_memory_mb(device)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _now_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
