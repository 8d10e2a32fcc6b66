"""``zo pack``: a study as one archive, the same bytes for the same files wherever and whenever it is made."""

import gzip
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from zo.errors import UserError
from zo.files import open_aside

TOP = ("study.yaml", "sweep.json", "sweep.log", "summary.*", "claims.csv", "report.html")
FOLDERS = {
    "csv_logs": ("*.csv",),
    "job_logs": ("*.log",),
    "plots": ("**/*.png",),
    "probes": ("*.csv", "*.log"),
    "cache": ("*/meta.json", "*.log"),
}
RUN_FILES = ("*.json", "scalars.jsonl", "log.csv", "benchmark.tsv")
CHECKPOINTS = ("final.safetensors", "checkpoints/step-*.safetensors", "kept/step-*.safetensors")
EPOCH = 315532800
"""1980-01-01, the time of every member: when a file was written is no part of a result."""


def pack(results: Path, out: Path, checkpoints: bool = False) -> tuple[int, int]:
    """Write a study's files to ``out`` (.tar.gz); how many they are and how many bytes the archive has.

    What is no regular file (a link, a socket) is left out: an archive holds nothing from elsewhere. It is
    written aside and renamed. Raises UserError where there is nothing to pack.
    """
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise UserError(f"out: {str(out)!r} is not allowed: the archive's name must end in .tar.gz")
    members = list_members(results, checkpoints)
    if not any(path.parts[0] in ("csv_logs", "runs") for path in members):
        raise UserError(f"{results}: no runs to pack: give the results folder of a study")
    try:
        with open_aside(out) as file:
            _write(file, results, members)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return len(members), out.stat().st_size


def list_members(results: Path, checkpoints: bool) -> list[Path]:
    """The files of a study, relative to its folder, sorted; not those of studies in folders inside it."""
    found = set(_matching(results, TOP))
    for folder, patterns in FOLDERS.items():
        found |= set(_matching(results / folder, patterns))
    patterns = [f"*/{name}" for name in (*RUN_FILES, *(CHECKPOINTS if checkpoints else ()))]
    found |= set(_matching(results / "runs", patterns))
    return sorted((path.relative_to(results) for path in found), key=lambda path: path.as_posix())


def _matching(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        for path in folder.glob(pattern):
            parts = path.relative_to(folder).parts
            on_the_way = [path, *path.parents][: len(parts)]
            hidden = any(part.startswith(".") for part in parts)
            if path.is_file() and not hidden and not any(part.is_symlink() for part in on_the_way):
                yield path


def _write(file, results: Path, members: list[Path]) -> None:
    prefix = _inside_name(results)
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=EPOCH) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member in members:
            with open(results / member, "rb") as content:
                info = tarfile.TarInfo((prefix / member).as_posix())
                info.size, info.mtime, info.mode = os.fstat(content.fileno()).st_size, EPOCH, 0o644
                archive.addfile(info, content)  # owner 0, no name; a file that grows is cut at this size


def _inside_name(results: Path) -> Path:
    """The folder inside the archive: as the runs' records spell it (results/quick), else its own name."""
    if results.is_absolute() or ".." in results.parts or not results.parts:
        return Path(results.resolve().name)
    return results
