"""What this machine is busy with: CPU, memory, GPUs."""

import csv
import os
import subprocess

import psutil

QUERY = "index,name,utilization.gpu,memory.used,memory.total"


def read_machine(interval: float | None = None) -> dict:
    """Use of CPU and GPUs now; the CPU's over ``interval`` seconds, or since the last call if None."""
    memory = psutil.virtual_memory()
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_percent": psutil.cpu_percent(interval),
        "load": os.getloadavg()[0],
        "memory_used_mb": (memory.total - memory.available) / 2**20,
        "memory_total_mb": memory.total / 2**20,
        "gpus": read_gpus(),
    }


def read_gpus() -> list[dict]:
    """Name, use and memory of every GPU that nvidia-smi shows; none without it."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    keys = ("index", "name", "percent", "memory_used_mb", "memory_total_mb")
    rows = csv.reader(listing.splitlines(), skipinitialspace=True)
    return [dict(zip(keys, map(_read_cell, row), strict=True)) for row in rows if len(row) == len(keys)]


def _read_cell(cell: str) -> float | str | None:
    """A number, a name, or None for what a GPU does not report ([N/A])."""
    if cell.startswith("["):
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def describe_machine_use(machine: dict) -> str:
    """One line for people."""
    parts = [
        f"{machine['cpus']} CPU cores {machine['cpu_percent']:.0f} % used, load {machine['load']:.1f}",
        f"memory {_describe_memory(machine)}",
    ]
    for gpu in machine["gpus"]:
        use = "?" if gpu["percent"] is None else f"{gpu['percent']:.0f}"
        parts.append(f"GPU {gpu['index']:.0f} ({gpu['name']}) {use} % used, {_describe_memory(gpu)}")
    return "; ".join(parts)


def _describe_memory(part: dict) -> str:
    used, total = part["memory_used_mb"], part["memory_total_mb"]
    return "?" if None in (used, total) else f"{used / 1024:.1f} of {total / 1024:.1f} GiB"
