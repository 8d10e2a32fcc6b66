"""Memory that is made once for an estimate and then reused: one layer's noise, the largest activations."""

from collections.abc import Sequence

import torch

LARGE = 8 * 2**20
"""Elements from which on an activation is kept for the next forward pass: malloc gives memory this large
back to the system, and touching it anew costs a CPU more than writing it."""


class Scratch:
    """A flat tensor for noise, made at its full size when first used, and the large activations.

    ``parameters`` and ``copies`` say that size: so many times the largest, and the largest vector beside it
    (a weight and its bias are perturbed together). Growing step by step would hold old and new at once.
    """

    def __init__(self, parameters: Sequence[torch.Tensor] = (), copies: int = 1):
        vector = max((parameter.numel() for parameter in parameters if parameter.ndim < 2), default=0)
        largest = max((parameter.numel() for parameter in parameters), default=0)
        self._capacity = copies * largest + vector
        self._flat: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def take(self, *likes: torch.Tensor) -> list[torch.Tensor]:
        """A part for each of ``likes``, of its shape, at least fp32; all valid until the next call."""
        if not likes:
            return []
        dtype = torch.promote_types(likes[0].dtype, torch.float32)
        sizes = [like.numel() for like in likes]
        flat = self._flat
        if flat is None or flat.numel() < sum(sizes) or flat.dtype != dtype or flat.device != likes[0].device:
            size = max(self._capacity, sum(sizes))
            self._flat = flat = torch.empty(size, dtype=dtype, device=likes[0].device)
        parts = flat[: sum(sizes)].split(sizes)
        return [part.view(like.shape) for part, like in zip(parts, likes, strict=True)]

    def output(self, key: int, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor | None:
        """[rows, columns] to write into, kept for the next forward pass; None where that is not worth it."""
        if rows * columns < LARGE or like.device.type != "cpu":
            return None
        kept = self._outputs.get(key)
        if kept is None or kept.numel() < rows * columns or kept.dtype != like.dtype:
            self._outputs.pop(key, None)
            kept = self._outputs[key] = torch.empty(rows * columns, dtype=like.dtype)
        return kept[: rows * columns].view(rows, columns)
