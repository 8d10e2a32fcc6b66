"""``zo prune``: delete what a finished run no longer needs; unfinished runs and published results stay."""

import csv
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from zo.errors import UserError, suggest
from zo.files import read_json, try_hold
from zo.sweep.sweep_record import is_at_work
from zo.training.record import FINISHED, RunFiles, list_runs

KINDS = {
    "checkpoints": ("checkpoints",),
    "leftovers": ("attempt.log", ".*.[0-9]*"),
    "compiled": ("compiled",),
    "kept": ("kept/step-*.safetensors",),
    "weights": ("final.safetensors",),
}
"""What may go of a finished run: checkpoints, attempts' files and half-written ones, compiled kernels,
weights that were kept for a probe which has been made, the final weights."""
ON_REQUEST = ("weights", "caches")
"""Weights are a result, which only training brings back; a cache's tokens are made again for a run."""
CACHE_KEPT = "meta.json"
"""Of a cache. Every finished run names it as its input: without it the next new run would repeat them all."""


@dataclass(frozen=True)
class Doomed:
    """A file or folder to delete."""

    path: Path
    kind: str
    size: int


def prune(
    results: Path, keep: Sequence[str] = (), also: Sequence[str] = (), dry_run: bool = False
) -> list[Doomed]:
    """Delete (or with ``dry_run`` only list) what finished runs no longer need; what that is.

    ``keep`` names kinds or runs, with shell wildcards; ``also`` kinds of ON_REQUEST. Raises UserError for a
    word of ``keep`` that names neither, and where there are no runs.
    """
    runs = list_runs(results)
    if not runs:
        raise UserError(f"{results}: no runs here: give the results folder of a study")
    _check_kept(keep, runs)
    kinds = [kind for kind in KINDS if kind not in keep and (kind not in ON_REQUEST or kind in also)]
    doomed = _list_caches(results, runs) if "caches" in also else []
    for run in runs:
        if any(fnmatchcase(run, word) for word in keep):
            continue
        with _finished(RunFiles(results, run)) as finished:
            found = _list_run(RunFiles(results, run), kinds) if finished else []
            doomed += found if dry_run else _delete(found)
    if not dry_run:
        _delete([each for each in doomed if each.kind == "caches"])
    return doomed


def _check_kept(keep: Sequence[str], runs: Sequence[str]) -> None:
    for word in keep:
        if word not in KINDS and not any(fnmatchcase(run, word) for run in runs):
            raise UserError(f"keep: {word!r} is no kind and no run of this folder: {suggest(word, KINDS)}")


@contextmanager
def _finished(files: RunFiles) -> Iterator[bool]:
    """Whether a run is finished; while inside, no process can start to train it."""
    with ExitStack() as stack:
        if files.lock.exists():
            lock = stack.enter_context(open(files.lock, "r+"))  # NFS locks only what may be written
            try:
                free = try_hold(lock)
            except OSError:  # a file system without locks cannot tell
                free = False
            if not free:  # it is being trained
                yield False
                return
        yield read_json(files.outcome).get("status") in FINISHED


def _list_run(files: RunFiles, kinds: Sequence[str]) -> list[Doomed]:
    found = []
    for kind in kinds:
        paths = sorted(path for pattern in KINDS[kind] for path in files.folder.glob(pattern))
        if kind == "kept":
            probed = _probed_steps(files)
            paths = [path for path in paths if int(path.stem.removeprefix("step-")) in probed]
        found += [Doomed(path, kind, _size(path)) for path in paths if not path.is_symlink()]
    return found


def _probed_steps(files: RunFiles) -> set[int]:
    """The steps that the run's probe has measured."""
    try:
        with open(files.probe, newline="") as file:
            return {int(row["step"]) for row in csv.DictReader(file)}
    except OSError:
        return set()


def _list_caches(results: Path, runs: Sequence[str]) -> list[Doomed]:
    if is_at_work(read_json(results / "sweep.json")) is not False:
        raise UserError(f"caches: a sweep is at work in {results}: wait for it")
    for run in runs:
        with _finished(RunFiles(results, run)) as finished:
            if not finished:
                raise UserError(f"caches: {run} is not finished and reads them: run `snakemake` first")
    folders = sorted(path for path in (results / "cache").glob("*") if _is_folder(path))
    paths = [path for folder in folders for path in _list_cache(folder)]
    return [Doomed(path, "caches", _size(path)) for path in paths]


def _list_cache(folder: Path) -> list[Path]:
    """All of a cache but what says of it which it is; a folder without that is none."""
    if not (folder / CACHE_KEPT).exists():
        return [folder]
    return sorted(path for path in folder.iterdir() if path.name != CACHE_KEPT)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.lstat().st_size for file in files)


def _delete(doomed: list[Doomed]) -> list[Doomed]:
    for each in doomed:
        if each.path.is_dir():
            shutil.rmtree(each.path)
        else:
            each.path.unlink()
    return doomed
