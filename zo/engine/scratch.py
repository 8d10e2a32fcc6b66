"""Memory that is made once for an estimate and reused: a block of perturbed rows, large activations."""

import torch

LARGE = 8 * 2**20
"""Elements from which on an activation is kept for the next forward pass: malloc gives memory this large
back to the system, and touching it anew costs a CPU more than writing it."""


class Scratch:
    """A flat tensor that grows to the largest that was asked for, and the large activations."""

    def __init__(self):
        self._flat: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def take(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """A tensor to write into, typed as ``like``; valid until the next call."""
        size = torch.Size(shape).numel()
        flat = self._flat
        if flat is None or flat.numel() < size or flat.dtype != like.dtype or flat.device != like.device:
            self._flat = flat = None  # never old and new at once
            self._flat = flat = like.new_empty(size)
        return flat[:size].view(shape)

    def output(self, key: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor | None:
        """A tensor to write into, kept for the next forward pass; None where that is not worth it."""
        size = torch.Size(shape).numel()
        if size < LARGE or like.device.type != "cpu":
            return None
        kept = self._outputs.get(key)
        if kept is None or kept.numel() < size or kept.dtype != like.dtype:
            self._outputs.pop(key, None)
            kept = self._outputs[key] = like.new_empty(size)
        return kept[:size].view(shape)
