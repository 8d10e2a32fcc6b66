"""Flags that several commands share: settings of a run, where the results are."""

import argparse
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin


def add_setting(parser, key: str, info, required: bool = False) -> None:
    """Add one field of a pydantic model as a flag; values stay text, the model reads and checks them."""
    flag = "--" + key.replace("_", "-")
    default = "" if info.is_required() or info.default is None else f" (default {info.default})"
    text = f"{info.description}{default}".replace("%", "%%")
    if info.annotation is bool:
        parser.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    parser.add_argument(flag, dest=key, metavar=_metavar(info.annotation), required=required, help=text)


def _metavar(annotation) -> str:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    kind = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return {int: "N", float: "X"}.get(kind, "TEXT")


def results_flag(parser) -> None:
    """Add --results, the study's folder."""
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="(default results)"
    )
