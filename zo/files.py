"""Files that are whole or absent, and folders that one process at a time works in."""

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from zo.causes import MACHINE_ERRORS
from zo.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks says, e.g. Lustre where it is not mounted with flock."""


@contextmanager
def open_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write so that its name never shows half of it: aside, synced, then renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a write's own error names no file
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # it was renamed, or never made
            aside.unlink()


def write_aside(path: Path, content: bytes | str) -> None:
    """Write a whole file through ``open_aside``."""
    with open_aside(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_asides(folder: Path, name: str = "*") -> None:
    """Delete what a killed ``write_aside`` left of files named so; only where no one else writes."""
    for aside in folder.glob(f".{name}.[0-9]*"):
        if aside.suffix[1:].isdigit():
            aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and programs alike: sorted keys, indented."""
    write_aside(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object; empty where there is none to read."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def make_folder(path: Path, what: str = "results folder") -> Path:
    """Make a folder that can be written to; ``what`` it is called if not.

    Raises UserError where it can't be, OSError where the disk is full or failed, which may pass.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise UserError(f"{what} {path} cannot be made: {error.strerror}: choose another") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{what} {path} is not writable: choose another or change its permissions")
    return path


def check_out(path: Path | None) -> None:
    """Make the folder of a file that a command will write: at its start, not after the work.

    None: nothing will be written. Raises UserError where it could not be.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder: name a file in it")
    make_folder(path.parent, "--out: folder")


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Wait for an exclusive lock on ``path`` and hold it; the kernel frees it when the process ends.

    Raises UserError where the file system has no locks.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(f"{path} cannot be held: {error.strerror}: {_remedy(error)}") from None
        yield


def try_hold(file: int | IO, shared: bool = False) -> bool:
    """Lock an open file without waiting; the kernel frees it when the file is closed or the process ends.

    ``shared`` holders exclude only those that want it alone.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether a process holds ``path``'s lock now: tried with a shared lock, given back at once."""
    try:
        with open(path) as file:
            return not try_hold(file, shared=True)
    except OSError:  # never made, or a file system without locks
        return False


_held: list[int] = []  # open files: a lock lives as long as its file does


def hold_or_exit(folder: str) -> None:
    """Hold ``folder``'s lock until this process ends, or exit with one line if another process does."""
    path = make_folder(Path(folder)) / ".lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not try_hold(file):
            holder = os.read(file, 20).decode() or "?"
            sys.exit(f"Error: process {holder} is working on {folder}/: wait for it or stop it")
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
    except OSError as error:  # a full disk, a file system without locks
        sys.exit(f"Error: {path} cannot be held: {error.strerror}: {_remedy(error)}")
    _held.append(file)


def _remedy(error: OSError) -> str:
    """What one can do about a lock that cannot be taken."""
    room = "mount its file system with flock" if error.errno in NO_LOCKS else "make room"
    return f"{room}, or take another folder"
