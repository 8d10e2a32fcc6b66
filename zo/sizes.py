"""The model presets and scopes by name: what can be asked for, checked without building anything.

A size's name is its parameter count, within 5 %, at the size's default vocabulary with the head tied
to the embedding; another vocabulary changes the count by (vocabulary difference) x width. This module
imports no torch: the workflow checks thousands of cells with it.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from zo.errors import UserError, unknown

ARCHITECTURES = ("gpt2", "llama")
SCOPES = ("full", "reduced", "head", "norms", "block<i>", "embedding")

BYTES_VOCABULARY = 257
"""A token for each byte and the end of a text: what any byte-level tokenizer has at least."""
GPT2_VOCABULARY = 50257
DEFAULT_VOCABULARY = {"100k": 512, "1M": 2048, "20M-32k": 32000}
DEFAULT_VOCABULARY |= dict.fromkeys(("20M", "200M", "500M", "1B"), GPT2_VOCABULARY)
SIZES = tuple(DEFAULT_VOCABULARY)


@dataclass(frozen=True)
class Shape:
    """The dimensions of one (size, architecture); ``inner`` is the width inside the MLP."""

    width: int
    layers: int
    heads: int
    inner: int
    positions: int = 1024


# The large ones: heads of 64, GPT-2's inner = 4 width, Llama's = 8/3 width (its MLP has three matrices).
# The small ones are wide and shallow, which is what is quick on a CPU: at 1M, 128 x 4 layers takes less
# than half the time of 64 x 17. Their inner width is what brings the count to the name.
_SHAPES = {
    ("100k", "gpt2"): Shape(width=48, layers=2, heads=3, inner=224, positions=256),
    ("100k", "llama"): Shape(width=48, layers=2, heads=3, inner=192, positions=256),
    ("1M", "gpt2"): Shape(width=128, layers=4, heads=4, inner=448, positions=256),
    ("1M", "llama"): Shape(width=128, layers=4, heads=4, inner=320, positions=256),
    # The paper's Llama2-20M has 10M parameters in its embedding: at 32,000 tokens that is a width of 320.
    ("20M-32k", "gpt2"): Shape(width=320, layers=8, heads=5, inner=1280),
    ("20M-32k", "llama"): Shape(width=320, layers=8, heads=5, inner=864),
    ("20M", "gpt2"): Shape(width=256, layers=9, heads=4, inner=1024),
    ("20M", "llama"): Shape(width=256, layers=9, heads=4, inner=704),
    ("200M", "gpt2"): Shape(width=896, layers=16, heads=14, inner=3584),
    ("200M", "llama"): Shape(width=896, layers=16, heads=14, inner=2368),
    ("500M", "gpt2"): Shape(width=1280, layers=22, heads=20, inner=5120),
    ("500M", "llama"): Shape(width=1280, layers=22, heads=20, inner=3392),
    ("1B", "gpt2"): Shape(width=1792, layers=24, heads=28, inner=7168),
    ("1B", "llama"): Shape(width=1792, layers=24, heads=28, inner=4800),
}


def model_shape(size: str, architecture: str) -> Shape:
    """Look up the dimensions; UserError for a size or an architecture that does not exist."""
    if size not in SIZES:
        raise unknown("model size", size, SIZES)
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    return _SHAPES[size, architecture]


def max_positions(size: str, architecture: str) -> int:
    """The longest context, in tokens, that the model accepts; a block may not be longer."""
    return model_shape(size, architecture).positions


class Scope(NamedTuple):
    """A parsed scope: its kind (``block`` for block<i>) and, for a block, its index from 0."""

    kind: str
    block: int | None = None


def parse_scope(text: str) -> Scope:
    """Parse ``full|reduced|head|norms|block<i>|embedding``; UserError for anything else (``block03`` too)."""
    if match := re.fullmatch(r"block(0|[1-9][0-9]*)", text):
        return Scope("block", int(match[1]))
    if text not in SCOPES or text == "block<i>":
        raise unknown("scope", text, SCOPES)
    return Scope(text)


def validate_scope(scope: str, size: str, architecture: str) -> None:
    """Raise UserError unless ``scope`` exists in this model; cheap, no model is built."""
    check_block(parse_scope(scope), model_shape(size, architecture).layers)


def check_block(scope: Scope, layers: int) -> None:
    if scope.block is not None and scope.block >= layers:
        raise UserError(
            f"scope: 'block{scope.block}' is not allowed: there is no block{scope.block} among the model's "
            f"{layers}: block0 to block{layers - 1}"
        )
