"""Flags that several commands share: settings of a run, where the results are."""

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

from zo.errors import UserError

SECTIONS = {
    "mode": "the cell",
    "optimizer": "further axes",
    "dataset": "data",
    "max_steps": "length: one of these, 1 epoch if none is given",
    "log_interval": "watching",
    "plan": "plan of a ZO step's evaluations; the result is the same to rounding",
}
"""Where RunSpec's sections begin, and what --help calls them."""


def setting_groups(parser) -> Iterator[tuple]:
    """Yield a group of the parser's flags for each section of a run's settings, and the names of these."""
    from zo.spec import RunSpec

    keys = list(RunSpec.model_fields)
    starts = [keys.index(key) for key in SECTIONS]
    for first, end in pairwise([*starts, len(keys)]):
        yield parser.add_argument_group(SECTIONS[keys[first]]), keys[first:end]


def add_setting(parser, key: str, info) -> None:
    """Add one field of a pydantic model as a flag; values stay text, the model reads and checks them."""
    flag = "--" + key.replace("_", "-")
    text = describe_setting(info)
    if info.annotation is bool:
        parser.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    parser.add_argument(flag, dest=key, metavar=_metavar(info.annotation), help=text)


def describe_setting(info, many: bool = False, default: str | None = None) -> str:
    """What --help says of a field: its meaning, the words it may be, its default (or ``default`` for it)."""
    words = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    missing = not words or (str(words[0]) in info.description and str(words[-1]) in info.description)
    parts = [info.description] + ([] if missing else [f"one of {', '.join(words)}"])
    parts += ["several with commas"] * many
    if default is None and info.default not in (None, ()):
        default = "required" if info.is_required() else f"default {info.default}"
    return f"{'; '.join(parts)}{f' ({default})' if default else ''}".replace("%", "%%")


def _metavar(annotation) -> str:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    kind = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return {int: "N", float: "X"}.get(kind, "TEXT")


def split_words(text: str) -> list[str]:
    """The words of a list with commas; spaces around them, and nothing between two commas, do not count."""
    return [word.strip() for word in text.split(",") if word.strip()]


def read_wholes(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers from 1, with commas between them. Raises UserError that names the flag."""
    words = split_words(text)
    for word in words:
        if not (word.isascii() and word.isdecimal() and int(word)):
            raise UserError(f"--{flag}: {word!r} is not allowed: whole numbers from 1")
    return tuple(map(int, words))


def results_flag(parser) -> None:
    """Add --results, the study's folder."""
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="the study's folder (default results)",
    )
