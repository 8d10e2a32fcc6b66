"""How the evaluations of one ZO estimate are laid out (the setting `plan`), and how ``auto`` chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_IN_FLIGHT = 8
"""Directions, unless the user asks for more."""
CPU_TOKENS = 2048
"""Of all members of a forward pass together: from here on a CPU's matrix products gain nothing."""
CPU_LOGITS_BYTES = 256 * 2**20
"""Of all members together: past this a CPU spends its time on page faults."""
PAIR_LOGITS_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Of both signs of a single direction: past this each keeps the device busy by itself, and a pass of both
only holds more. At 100k parameters it nearly halves a CPU's step. The GPU's number is an estimate."""
FREE_SHARE = 0.25
"""Of the free memory, for the logits of all members: activations and copies in fp32 need the rest."""


@dataclass(frozen=True)
class Plan:
    """The result of an estimate is the same to rounding under every plan."""

    kind: str = "sequential"
    """``sequential``: one member at a time, the memory floor. ``parallel``: members share a batch."""
    directions_in_flight: int = 4
    """Directions (all their signs) in one forward pass of the parallel plan."""


def decide_plan(
    kind: str,
    in_flight: int | None,
    *,
    q: int,
    signs: int,
    tokens: int,
    vocab_size: int,
    device: str = "cpu",
    free_bytes: int | None = None,
) -> tuple[Plan, str]:
    """Choose the plan of a run, and say why in words for the log.

    ``kind`` and ``in_flight`` are what the user asked for (``auto`` and None: choose); ``tokens`` is those of
    one batch, B x T, whose logits are fp32 [tokens, vocab_size] for each member in flight. ``device`` is its
    type, ``free_bytes`` what is free on it (None: not known, no limit).
    """
    logits = signs * tokens * vocab_size * 4
    limits = {f"at most {MOST_IN_FLIGHT} directions": MOST_IN_FLIGHT}
    if device == "cpu":
        limits[f"at most {CPU_TOKENS} tokens on a CPU"] = CPU_TOKENS // (signs * tokens)
        limits[f"at most {CPU_LOGITS_BYTES >> 20} MiB of logits on a CPU"] = CPU_LOGITS_BYTES // logits
    if free_bytes is not None:
        most = int(FREE_SHARE * free_bytes)
        limits[f"at most {most >> 20} MiB of logits, {FREE_SHARE:.0%} of the free memory"] = most // logits
    reason = min(limits, key=limits.get)
    pays = q > 1 or (limits[reason] >= 1 and logits <= PAIR_LOGITS_BYTES[device])
    chosen = min(q, in_flight or max(1, limits[reason]))
    if in_flight:
        reason = "asked for"
    elif chosen == q:
        reason = "all of them at once"
    if kind == "auto":
        kind = "parallel" if pays or in_flight else "sequential"
    return Plan(kind, chosen), f"q = {q}: {reason}"


def free_memory(device: torch.device) -> int:
    """Bytes that a device could still give."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
