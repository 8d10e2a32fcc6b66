"""An open token cache: memory maps, and batches as a pure function of (seed, step).

Nothing here imports torch, datasets or transformers until a tensor is asked for: opening takes a millisecond.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zo.causes import lies_with_machine
from zo.data.tokenizer import Tokenizer
from zo.errors import UserError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "validation")


class TokenCache:
    """An open cache: `train` and `validation` are memory maps of token ids, [tokens of the split]."""

    def __init__(self, folder: Path, meta: dict):
        self.folder, self.meta = folder, meta
        self.vocab_size, self.end_of_text = meta["vocab_size"], meta["end_of_text"]
        self.train, self.validation = (
            np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r") for split in SPLITS
        )
        self._order: tuple[tuple[int, int, int], int, np.ndarray] | None = None

    def tokenizer(self) -> Tokenizer:
        """Return the cache's own tokenizer, read once."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    def steps_per_epoch(self, batch_size: int, block_size: int) -> int:
        """Return how many whole batches one epoch holds; the remainder is dropped."""
        if batch_size < 1 or block_size < 1:
            raise UserError(f"batch_size {batch_size}, block_size {block_size}: allowed: 1 or more")
        steps = (len(self.train) - 1) // block_size // batch_size
        if steps == 0:
            raise UserError(
                f"batch_size {batch_size} x block_size {block_size}: longer than the training text, which "
                f"has {len(self.train)} tokens; allowed: a product of {max(len(self.train) - 1, 0)} or less"
            )
        return steps

    def batch(self, seed: int, step: int, batch_size: int, block_size: int) -> "torch.LongTensor":
        """Return step's batch, [batch_size, block_size + 1]; step counts from 1. A pure function.

        The training text is a ring, cut into blocks of `block_size` tokens from a random start on; each block
        carries the next one's first token as its last label. An epoch visits all blocks once, in random
        order; (seed, epoch) decides start and order, so half the batch size sees the same blocks in order.
        """
        import torch

        if step < 1:
            raise ValueError(f"step {step}: steps count from 1")
        epoch, within = divmod(step - 1, self.steps_per_epoch(batch_size, block_size))
        offset, order = self._epoch_order(seed, epoch, block_size)
        blocks = order[within * batch_size : (within + 1) * batch_size].astype(np.int64)
        starts = offset + blocks * block_size
        places = (starts[:, None] + np.arange(block_size + 1)) % len(self.train)
        return torch.from_numpy(self.train[places].astype(np.int64))

    def _epoch_order(self, seed: int, epoch: int, block_size: int) -> tuple[int, np.ndarray]:
        """Return where the epoch's first block starts and its blocks in order; the last epoch's is kept."""
        key = (seed, epoch, block_size)
        if self._order is None or self._order[0] != key:
            # Hashed, since SeedSequence([1, 2**32]) and SeedSequence([1, 0, 1]) are one and the same.
            words = np.frombuffer(hashlib.sha256(f"epoch order:{seed}:{epoch}".encode()).digest(), "<u4")
            rng = np.random.default_rng(np.random.SeedSequence(words.tolist()))
            offset, count = int(rng.integers(len(self.train))), (len(self.train) - 1) // block_size
            order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)  # a corpus has many
            rng.shuffle(order)
            self._order = (key, offset, order)
        return self._order[1:]

    def validation_blocks(self, block_size: int, count: int | None = None) -> "torch.LongTensor":
        """Return [n, block_size + 1] held-out blocks, n = count or all there are if those are fewer.

        Evenly spread over the validation text and the same for every run: no seed.
        """
        import torch

        if block_size < 1 or (count is not None and count < 1):
            raise UserError(f"block_size {block_size}, {count} validation blocks: allowed: 1 or more")
        blocks = (len(self.validation) - 1) // block_size
        if blocks == 0:
            raise UserError(
                f"block_size {block_size}: longer than the validation text, which has {len(self.validation)} "
                f"tokens; allowed: 1 to {len(self.validation) - 1}"
            )
        n = blocks if count is None else min(count, blocks)
        starts = np.arange(n) * blocks // n * block_size
        return torch.from_numpy(self.validation[starts[:, None] + np.arange(block_size + 1)].astype(np.int64))


def is_built(folder: Path) -> bool:
    """Whether a cache's tokens are there: `zo prune --caches` leaves its meta.json alone."""
    return all((folder / name).exists() for name in ("meta.json", *(f"{split}.bin" for split in SPLITS)))


def open_cache(folder: Path | str) -> TokenCache:
    """Open a built cache in about a millisecond; UserError where it is missing or its sizes are wrong."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"dataset cache {str(folder)!r}: no such folder; build it first")
    try:
        meta = json.loads((folder / "meta.json").read_text())
        width = np.dtype(meta["dtype"]).itemsize
        sizes = {split: meta["tokens"][split] * width for split in SPLITS}
        wrong = [split for split in SPLITS if (folder / f"{split}.bin").stat().st_size != sizes[split]]
        if wrong:
            raise ValueError(f"{wrong[0]}.bin does not hold {sizes[wrong[0]]} bytes")
        return TokenCache(folder, meta)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if lies_with_machine(error):  # the cache is whole
            raise
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"dataset cache {str(folder)!r} is damaged ({reason}); delete the folder and build it again"
        ) from error
