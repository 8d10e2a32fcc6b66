"""Before the first run of a study: whether this machine can carry it, a line for each thing looked at.

What must fail in the night fails now; what is doubtful warns. Nothing here imports torch or builds a model.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.filesize import decimal

from zo.data.token_cache import is_built
from zo.errors import UserError
from zo.planning.footprint import count_parameters, memory_bytes
from zo.planning.progress import unfinished
from zo.planning.storage import checkpoints_at_work, weights_kept
from zo.spec import RunSpec
from zo.study import Study
from zo.sweep.gpus import choose_gpus, lack_of_gpus, unlisted_gpus
from zo.sweep.machine import read_gpus
from zo.training.job import append_event
from zo.training.record import installed_version

SLOW_PARAMETERS = 50e6
"""Above so many, a sweep on CPUs alone is hardly meant."""
TIGHT = 0.8
"""Of the free disk or memory, above which a plan is doubtful."""


@dataclass(frozen=True)
class Finding:
    """What one check found: ``ok``, ``warning`` or ``failure``."""

    level: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"preflight  {self.level:<8} {self.what}: {self.text}"


@dataclass(frozen=True)
class Means:
    """What a sweep may use."""

    jobs: int
    """Runs at once, of one process each: one of several ranks takes the place of as many."""
    gpus: int
    """Different GPUs that a run may have; several runs may share one."""
    local: bool = True
    """False on a cluster: its jobs run on machines that can't be looked at from here."""


def check_study(study: Study, means: Means) -> list[Finding]:
    """Look at everything; one finding each."""
    specs = unfinished(study)
    checks = [_check_packages(), *_check_corpora(study), _check_disk(study, specs, means)]
    if means.local:
        checks += [_check_gpus(study, specs, means), _check_memory(specs, means, study.workflow.jobs_per_gpu)]
    return checks


def preflight(study: Study, means: Means) -> None:
    """Print every finding and log the doubtful ones. Raises UserError with the failures, in one line."""
    findings = check_study(study, means)
    for finding in findings:
        print(finding, file=sys.stderr)
        if finding.level != "ok":
            append_event(Path(study.results), str(finding))
    failures = [f"{finding.what}: {finding.text}" for finding in findings if finding.level == "failure"]
    if failures:
        raise UserError("; ".join(failures))


def required_packages(extra: str | None = None) -> list[str]:
    """Names that pyproject.toml asks for, and of one extra. Raises PackageNotFoundError if not installed."""
    found = (Requirement(line) for line in requires("zo") or [])
    return [r.name for r in found if not r.marker or r.marker.evaluate({"extra": extra or ""})]


def _check_packages() -> Finding:
    try:
        names = required_packages()
    except PackageNotFoundError:
        return Finding("warning", "packages", "zo runs from a checkout and is not installed: not checked")
    missing = [name for name in names if not installed_version(name)]
    if missing:
        remedy = "run: pip install -c envs/pins.txt -e '.[dev]'"
        return Finding("failure", "packages", f"{', '.join(missing)} not installed: {remedy}")
    return Finding("ok", "packages", f"{len(names)} installed")


def _check_gpus(study: Study, specs: Sequence[RunSpec], means: Means) -> Finding:
    ranks = max((spec.ranks for spec in specs), default=1)
    each, largest = study.workflow.gpus_per_run, _largest(specs)
    if each and means.gpus:
        if lack := lack_of_gpus(each, ranks, means.gpus):
            return Finding("failure", "GPUs", lack)
        if lost := unlisted_gpus(choose_gpus(study.workflow.gpus)):
            text = f"nvidia-smi -L does not list {', '.join(lost)}: a run that is given it takes the CPU"
            return Finding("warning", "GPUs", text)
        most = "up to " if ranks > 1 else ""
        return Finding("ok", "GPUs", f"{means.gpus} for runs that take {most}{each * ranks} each")
    if largest > SLOW_PARAMETERS:
        text = f"none used, and the largest model has {largest / 1e6:.0f} M parameters: this will take long"
        return Finding("warning", "GPUs", text)
    return Finding("ok", "GPUs", "none used: runs use the CPU")


def _largest(specs: Sequence[RunSpec]) -> int:
    return max((count_parameters(spec)[0] for spec in specs), default=0)


def _check_disk(study: Study, specs: Sequence[RunSpec], means: Means) -> Finding:
    """What every run keeps of its weights, and the checkpoints of those at work."""
    results = Path(study.results)
    needed = weights_kept(study, specs) + checkpoints_at_work(specs, means.jobs)
    # Those that are there already, of a sweep that goes on, take no more room.
    there = (path for spec in specs for path in (results / "runs" / spec.name).glob("checkpoints/step-*"))
    needed = max(0, needed - sum(path.stat().st_size for path in there))
    folder = next(folder for folder in (results, *results.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    text = f"checkpoints of {len(specs)} runs take {decimal(int(needed))}, {decimal(free)} free in {results}"
    return _weigh("disk", needed, free, text)


def _check_memory(specs: Sequence[RunSpec], means: Means, jobs_per_gpu: int = 1) -> Finding:
    """Of GPUs where runs use them, else of this machine; an estimate, so only the hopeless is a failure."""
    device = "cuda" if means.gpus else "cpu"
    each = [(memory_bytes(spec, device), spec.ranks) for spec in specs]
    sizes = sorted((size for size, ranks in each for _ in range(ranks)), reverse=True)  # of processes
    largest = max((size * ranks for size, ranks in each), default=0)
    together = max(largest, sum(sizes[: means.jobs]))
    if means.gpus:
        totals = [gpu["memory_total_mb"] * 2**20 for gpu in read_gpus() if gpu["memory_total_mb"]]
        if not totals:
            return Finding("warning", "memory", "nvidia-smi does not say how much the GPUs have")
        sharing = sum(sizes[:jobs_per_gpu])
        which = "the largest run takes" if jobs_per_gpu == 1 else f"the {jobs_per_gpu} largest runs take"
        text = f"{which} about {decimal(sharing)}, a GPU has {decimal(min(totals))}"
        return _weigh("memory", sharing, min(totals), text, certain=False)
    memory = psutil.virtual_memory()
    text = f"{min(means.jobs, len(specs))} runs at once take about {decimal(together)}, "
    text += f"{decimal(memory.available)} of {decimal(memory.total)} are free"
    if largest > memory.total:
        return Finding("failure", "memory", f"{text}: the largest takes {decimal(largest)}")
    return _weigh("memory", together, memory.available, text, certain=False)


def _weigh(what: str, needed: float, free: float, text: str, certain: bool = True) -> Finding:
    if needed > free and certain:
        return Finding("failure", what, text)
    return Finding("warning" if needed > TIGHT * free else "ok", what, text)


def _check_corpora(study: Study) -> Iterator[Finding]:
    for folder, wanted in study.caches().items():
        what = f"corpus {wanted.dataset}"
        if is_built(Path(study.results) / "cache" / folder):
            yield Finding("ok", what, "its cache is built")
            continue
        source = wanted.source()  # a path that is gone or a package that is missing is a UserError here
        if source.corpus is None or source.corpus.embedded:
            yield Finding("ok", what, f"{'embedded' if source.corpus else f'local: {source.path}'}")
        else:
            yield _check_hub(what, source.corpus.repo, source.revision)


def _check_hub(what: str, repo: str, revision: str | None) -> Finding:
    """Ask the hub for the repository; downloaded files are good enough without it, maybe."""
    if root := os.environ.get("ZO_HUB_ROOT"):
        there = (Path(root) / repo).is_dir()
        text = f"{Path(root) / repo} " + ("is there" if there else "is missing: ZO_HUB_ROOT names its parent")
        return Finding("ok" if there else "failure", what, text)
    from huggingface_hub import HfApi, constants

    try:
        HfApi().dataset_info(repo, revision=revision, timeout=10)
        return Finding("ok", what, f"{repo} is on {constants.ENDPOINT}")
    except Exception as error:  # offline mode, no network, no such repository: the hub's many kinds
        reason = " ".join(str(error).split())[:120] or type(error).__name__
    if (Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}").is_dir():
        return Finding("warning", what, f"{repo} can't be reached ({reason}), but files of it are on disk")
    remedy = "connect, or take shakespeare, kjv, a local path or ZO_HUB_ROOT"
    return Finding("failure", what, f"{repo} can't be reached ({reason}) and is not on disk: {remedy}")
