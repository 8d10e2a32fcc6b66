"""The token cache: built once, memory-mapped by every run, batch = f(seed, step).

A cache is a folder: train.bin and validation.bin (token ids, uint16 or uint32, each document followed by the
end-of-text token), meta.json (the same bytes on every build), timings.json, and the tokenizer. It is written
in a hidden sibling folder and renamed, so a folder of the right name with a meta.json is whole.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

from zo.data.corpus import DATASETS, SPLIT_RULE, Document, Source, find_source
from zo.data.token_cache import SPLITS, TokenCache, is_built, open_cache
from zo.data.tokenizer import Tokenizer, check_vocab_size, make_tokenizer, tokenizer_identity
from zo.errors import UserError
from zo.files import hold, read_json, try_hold

__all__ = ["DatasetSpec", "TokenCache", "build_cache", "is_built", "open_cache"]

FORMAT = 1  # raise it when the cache's files change: every cache gets another key
ENCODED_AT_ONCE = 4 * 2**20  # characters tokenized in one call
NAMES_KEPT = 100  # of held-out documents, in meta.json
HOLD_WITHIN_S = 60  # a builder has locked its new folder by then


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that a user can say about a cache; block size and batch size are not among it."""

    dataset: str = "shakespeare"  # a name of corpus.DATASETS, or a local path
    revision: str | None = None  # of a hub repository
    max_samples: int | None = None  # at most so many documents
    tokenizer: str = "bpe"
    vocab_size: int | None = None  # of bpe; of others None, or their own size
    text_column: str | None = None
    tokenizer_of: "DatasetSpec | None" = None  # cut this corpus with the tokenizer trained on that one

    def __post_init__(self) -> None:
        """Check what can be checked without looking at any file."""
        for key in ("max_samples", "vocab_size"):
            value = getattr(self, key)
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(f"{key} {value!r}: allowed: a whole number from 1, or none")
        check_vocab_size(self.tokenizer, self.vocab_size)

    def to_json(self) -> str:
        """One line with sorted keys: equal specs have equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "DatasetSpec":
        """Read ``to_json``'s text. Raises UserError for anything else."""
        try:
            fields = json.loads(text)
            parent = fields.pop("tokenizer_of", None)
            return cls(**fields, tokenizer_of=cls(**parent) if parent else None)
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            raise UserError(f"spec {text[:60]!r}: not a dataset's settings as JSON: {error}") from None

    def source(self) -> Source:
        """Resolve the dataset; UserError where there is none."""
        return find_source(self.dataset, self.revision, self.max_samples, self.text_column)

    def key(self) -> str:
        """Return 8 hex digits that change with anything that shapes the cache's tokens.

        A local path counts by its files' content (beyond 64 MiB: size and modification time), a package by
        its version, a hub corpus by its revision as given. Two spellings of one default give one key.
        """
        shape = {
            "format": FORMAT,
            "split_rule": SPLIT_RULE,
            "source": self.source().identity(),
            "max_samples": self.max_samples,
            "tokenizer": tokenizer_identity(self.tokenizer),
            "vocab_size": check_vocab_size(self.tokenizer, self.vocab_size),
        }
        if self.tokenizer_of:
            shape["tokenizer_of"] = self.tokenizer_of.key()
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:8]

    def folder_name(self) -> str:
        """Return the cache's folder, e.g. shakespeare-bpe512-1a2b3c4d: letters, digits, dot, dash, _."""
        dataset = self.dataset if self.dataset in DATASETS else Path(self.dataset).resolve().stem
        size = check_vocab_size("bpe", self.vocab_size) if self.tokenizer == "bpe" else ""
        names = (dataset, f"{Path(self.tokenizer).name}{size}", self.key())
        return "-".join(re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:40].lstrip(".") for name in names)


def build_cache(spec: DatasetSpec, root: Path, *, progress: bool = True) -> Path:
    """Build root/<folder name> unless it is there and valid; return it.

    Two builders at once both build; the first to finish wins, the other's copy is deleted. What a pruned
    cache lacks one builder puts back, and the others wait: every run of a study may ask for it at once.
    """
    root, name = Path(root), spec.folder_name()
    folder = root / name
    with hold(root / f".{name}.lock") if _is_pruned(folder) else nullcontext():
        if not _is_valid(folder, spec):
            _build(spec, folder, progress)
    return folder


def _build(spec: DatasetSpec, folder: Path, progress: bool) -> None:
    root, prefix = folder.parent, f".{folder.name}.building-{socket.gethostname()}-"
    _remove_leftovers(root, prefix)
    aside = root / f"{prefix}{uuid4().hex[:8]}"
    aside.mkdir(parents=True)
    with _held(aside):
        try:
            _write_cache(spec, aside, progress)
            if _is_pruned(folder):
                _put_back(aside, folder)
            else:
                _publish(aside, folder, spec)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(root: Path, prefix: str) -> None:
    """Delete what killed builders of this host left; another host's locks may not be seen here."""
    for left in root.glob(f"{prefix}*"):
        with suppress(OSError):  # its builder has just renamed it
            young = time.time() - left.stat().st_mtime < HOLD_WITHIN_S
            with _held(left) as free:
                if free and not young:
                    shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder, as long as this process lives; whether it could be."""
    descriptor, free = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):  # a file system that locks no folders cannot tell
            free = try_hold(descriptor)
        yield free
    finally:
        os.close(descriptor)


def _is_valid(folder: Path, spec: DatasetSpec) -> bool:
    try:
        return open_cache(folder).meta["key"] == spec.key()
    except (UserError, KeyError):
        return False


def _is_pruned(folder: Path) -> bool:
    return "sha256" in read_json(folder / "meta.json") and not is_built(folder)


def _write_cache(spec: DatasetSpec, folder: Path, progress: bool) -> None:
    """Write a whole cache into an empty folder, every file synced to disk."""
    start = time.perf_counter()
    source = spec.source()
    trained_on = spec.tokenizer_of.source() if spec.tokenizer_of else source
    train = (document.text for split, document in trained_on.split_documents() if split == "train")
    tokenizer = make_tokenizer(spec.tokenizer, spec.vocab_size, train)
    parts = _write_tokens(source, tokenizer, folder, progress)
    empty = [split for split in SPLITS if parts[split].tokens == 0]
    if empty:
        raise UserError(f"dataset {spec.dataset!r}: too little text: nothing for {' and '.join(empty)}")
    tokenizer.save(folder)
    _write_json(folder / "meta.json", _describe(spec, source, tokenizer, parts))
    seconds = time.perf_counter() - start
    opened = min(_time_open(folder) for _ in range(5))
    timings = {"build_seconds": seconds, "open_seconds": opened, "build_over_open": seconds / opened}
    _write_json(folder / "timings.json", timings)
    for path in [*folder.iterdir(), folder]:
        _sync(path)


class _SplitWriter:
    """Tokenizes one split's documents into an open file, some megabytes at a time; counts and hashes."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self.file, self.tokenizer, self.dtype = file, tokenizer, _dtype(tokenizer)
        self.tokens = self.documents = 0
        self.names: list[str] = []
        self.sha256 = hashlib.sha256()
        self._waiting: list[str] = []
        self._characters = 0

    def add(self, document: Document) -> None:
        """Take one document; its tokens may be written only at the next flush."""
        self.documents += 1
        self.names += [document.name] if len(self.names) < NAMES_KEPT else []
        self._waiting.append(document.text)
        self._characters += len(document.text)
        if self._characters >= ENCODED_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what waits, the end-of-text token after each document."""
        for ids in self.tokenizer.encode_batch(self._waiting):
            raw = np.array([*ids, self.tokenizer.end_of_text]).astype(self.dtype).tobytes()
            self.file.write(raw)
            self.sha256.update(raw)
            self.tokens += len(ids) + 1
        self._waiting, self._characters = [], 0


def _dtype(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def _write_tokens(
    source: Source, tokenizer: Tokenizer, folder: Path, progress: bool
) -> dict[str, _SplitWriter]:
    """Write both .bin files in one pass over the documents; return what was written, by split."""
    from tqdm import tqdm

    with ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.bin", "wb")) for split in SPLITS}
        parts = {split: _SplitWriter(file, tokenizer) for split, file in files.items()}
        bar = stack.enter_context(tqdm(desc=source.name, unit=" documents", disable=not progress))
        for split, document in source.split_documents():
            parts[split].add(document)
            bar.set_postfix(tokens=sum(part.tokens for part in parts.values()), refresh=False)
            bar.update()
        for part in parts.values():
            part.flush()
        bar.set_postfix(tokens=sum(part.tokens for part in parts.values()))
    return parts


def _describe(
    spec: DatasetSpec, source: Source, tokenizer: Tokenizer, parts: dict[str, _SplitWriter]
) -> dict[str, Any]:
    """Return meta.json's content: no times, no host, no path but the user's own."""
    return {
        "format": FORMAT,
        "key": spec.key(),
        # One key, one meta.json: the default written out.
        "spec": asdict(spec) | {"vocab_size": check_vocab_size(spec.tokenizer, spec.vocab_size)},
        "dtype": _dtype(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "tokens": {split: part.tokens for split, part in parts.items()},
        "documents": {split: part.documents for split, part in parts.items()},
        "held_out": {"rule": source.held_out_rule(), "names": parts["validation"].names},
        "sha256": {split: part.sha256.hexdigest() for split, part in parts.items()},
        "versions": {name: version(name) for name in ("datasets", "tokenizers", "transformers", "numpy")},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _time_open(folder: Path) -> float:
    start = time.perf_counter()
    open_cache(folder)
    return time.perf_counter() - start


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _put_back(aside: Path, folder: Path) -> None:
    """Move all but meta.json into a pruned cache, the token files last.

    Its own meta.json stays as it is: it is an input of every finished run, which a younger one would repeat.
    Raises UserError where the tokens are not those that these runs have read.
    """
    then, now = (read_json(each / "meta.json")["sha256"] for each in (folder, aside))
    if now != then:
        raise UserError(
            f"dataset cache {str(folder)!r} was pruned, and its tokens now come out other than those that "
            "runs have read: delete the folder, and every run of the study is repeated"
        )
    for path in sorted(aside.iterdir(), key=lambda path: path.suffix == ".bin"):
        if path.name != "meta.json":
            os.rename(path, folder / path.name)
    _sync(folder)


def _publish(aside: Path, folder: Path, spec: DatasetSpec) -> None:
    """Rename the finished folder into place, unless a valid one has got there first.

    Snakemake makes the folders of its outputs, and a rename replaces an empty one. Anything else there is
    not valid (checked again, since another builder may just have finished) and is moved away first.
    """
    try:
        os.rename(aside, folder)
    except OSError:
        if _is_valid(folder, spec):
            return
        print(f"{folder}: not a whole cache, replaced", file=sys.stderr)
        os.rename(folder, aside.with_name(aside.name + ".replaced"))
        os.rename(aside, folder)
        shutil.rmtree(aside.with_name(aside.name + ".replaced"), ignore_errors=True)
    _sync(folder.parent)
