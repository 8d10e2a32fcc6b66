"""Checkpoints: one safetensors file each, whole, checksummed, enough to go on to the same bytes.

What is stored: the trained parameters, the optimizers' state, the ledger and the lengths of the logs.
Batches and noise are functions of (seed, step), and frozen weights of the seed, so nothing else is needed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from zo.files import make_folder, open_aside

Tensors = dict[str, torch.Tensor]
KEPT = 2
"""The newest, and the one before it in case the newest is damaged."""

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}
"""Names in the format of what weights and optimizers' state may be."""


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors, and a JSON-able state beside them."""

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
    header = json.dumps({"step": checkpoint.step, "state": checkpoint.state}, sort_keys=True)
    metadata = {"zo": header, "sha256": _checksum(header, checkpoint.tensors)}
    write_tensors(path, checkpoint.tensors, metadata)


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, one tensor after the other.

    The library's ``save`` makes two copies of all of them in memory; its ``save_file`` leaves files of its
    own behind when it is killed, and makes ones that nobody but their owner may read. The format:
    https://huggingface.co/docs/safetensors.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # numbers stay aligned
    header, end = {"__metadata__": metadata or {}}, 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        kind, shape = TYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open_aside(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes_of(tensors[name]))


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, if any, and a line for each damaged one that was passed over.

    Raises OSError where one cannot be read at all: a file server's bad moment must not cost a run its steps.
    """
    complaints = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return read_checkpoint(path), complaints
        except (SafetensorError, ValueError, KeyError) as error:
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
        hasher.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        hasher.update(_bytes_of(tensors[name]))
    return hasher.hexdigest()
