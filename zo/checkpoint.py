"""Checkpoints: one safetensors file each, whole, checksummed, enough to go on to the same bytes.

What is stored: the trained parameters, the optimizers' state, the ledger and the lengths of the logs.
Batches and noise are functions of (seed, step), and frozen weights of the seed, so nothing else is needed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from zo.files import make_folder, write_aside

KEPT = 2
"""The newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors on the CPU, and a JSON-able state beside them."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:09d}.safetensors"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``step-<n>.safetensors`` and drop all but the newest KEPT."""
    path = checkpoint_path(make_folder(folder), checkpoint.step)
    write_checkpoint(path, checkpoint)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    header = json.dumps({"step": checkpoint.step, "state": checkpoint.state}, sort_keys=True)
    metadata = {"zo": header, "sha256": _checksum(header, tensors)}
    write_aside(path, save(tensors, metadata=metadata))


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, if any, and a line for each damaged one that was passed over."""
    complaints = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return read_checkpoint(path), complaints
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            complaints.append(f"{path} is damaged ({error!r}): using the one before it")
    return None, complaints


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one file. Raises SafetensorError, OSError, ValueError or KeyError."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if _checksum(metadata["zo"], tensors) != metadata["sha256"]:
        raise ValueError("checksum does not match")
    return Checkpoint(tensors=tensors, **json.loads(metadata["zo"]))


def _checksum(header: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256((header + digest(tensors)).encode()).hexdigest()


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of names, types, shapes and values, wherever the tensors are."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
