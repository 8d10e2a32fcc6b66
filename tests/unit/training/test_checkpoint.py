"""A checkpoint comes back bit for bit or not at all; a damaged one is passed over, never read."""

import errno
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zo.training.checkpoint import (
    KEPT,
    Checkpoint,
    digest,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_tensors,
)


def make(step=1):
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(5, 3, generator=draw),
        "model.half": torch.randn(7, generator=draw).to(torch.bfloat16),
        "optimizer.0.0.step": torch.tensor(float(step)),
        "optimizer.0.0.odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6.0).view(2, 3).T,
    }
    return Checkpoint(step, tensors, {"ledger": {"seconds": 0.1 + 0.2, "step": step}, "names": ["ä", None]})


def assert_same(one, other):
    assert (one.step, one.state) == (other.step, other.state)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        back = other.tensors[name]
        assert (tensor.dtype, tensor.shape) == (back.dtype, back.shape)
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, back)]
        assert torch.equal(*bits)


def newest(folder):
    return sorted(folder.glob("step-*"))[-1]


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path / "deep" / "er", make())
    loaded, complaints = load_checkpoint(tmp_path / "deep" / "er")
    assert_same(make(), loaded)
    assert complaints == []


def test_the_newest_is_loaded_and_only_the_last_ones_are_kept(tmp_path):
    for step in (1, 2, 10, 9_999_999, 10_000_000):  # names sort as numbers do
        save_checkpoint(tmp_path, make(step))
    assert load_checkpoint(tmp_path)[0].step == 10_000_000
    assert len(list(tmp_path.iterdir())) == KEPT == 2


def test_no_checkpoint_is_nothing_to_complain_of(tmp_path):
    assert load_checkpoint(tmp_path) == (None, [])
    assert load_checkpoint(tmp_path / "absent") == (None, [])


def truncate(path):
    os.truncate(path, path.stat().st_size - 3)


def truncate_to_nothing(path):
    os.truncate(path, 0)


def flip_a_bit_of_a_weight(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def fill_with_noise(path):
    path.write_bytes(bytes(range(256)) * 20)


def swap_two_tensors(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    tensors["model.weight"], tensors["empty"] = tensors["empty"], tensors["model.weight"]
    save_file(tensors, path, metadata)


def replace_by_a_plain_safetensors_file(path):
    save_file({"model.weight": torch.zeros(2)}, path)


def lose_the_header(path):
    save_file({"model.weight": torch.zeros(2)}, path, {"other": "x"})


DAMAGES = [
    truncate,
    truncate_to_nothing,
    flip_a_bit_of_a_weight,
    fill_with_noise,
    swap_two_tensors,
    lose_the_header,
    replace_by_a_plain_safetensors_file,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before_with_a_line_that_names_it(
    tmp_path, damage
):
    for step in (1, 2):
        save_checkpoint(tmp_path, make(step))
    path = newest(tmp_path)
    damage(path)
    loaded, (complaint,) = load_checkpoint(tmp_path)
    assert_same(make(1), loaded)
    assert str(path) in complaint
    assert "damaged" in complaint


def test_no_byte_of_a_file_can_change_unnoticed(tmp_path):
    """Length, header, names, types, shapes, metadata, tensors: every byte, in three ways each."""
    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(step, {"w": torch.ones(2, 3)}, {"a": 1}))
    path = newest(tmp_path)
    content = path.read_bytes()
    for place, change in itertools.product(range(len(content)), (0x01, 0x0F, 0x80)):
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        loaded, complaints = load_checkpoint(tmp_path)
        assert (loaded.step, len(complaints)) == (1, 1), (place, content[place])
    path.write_bytes(content)
    assert load_checkpoint(tmp_path)[0].step == 2


def test_no_length_of_a_truncated_file_passes(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(step, {"w": torch.ones(2, 3)}, {"a": 1}))
    path = newest(tmp_path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert load_checkpoint(tmp_path)[0].step == 1, length


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(6)])
def test_the_same_bytes_in_another_shape_or_type_are_another_tensor(other):
    assert digest({"w": torch.zeros(2, 3)}) != digest({"w": other})


def test_where_all_are_damaged_none_is_used(tmp_path):
    for step in (1, 2):
        truncate(save_checkpoint(tmp_path, make(step)))
    loaded, complaints = load_checkpoint(tmp_path)
    assert loaded is None
    assert len(complaints) == 2


def test_a_changed_digit_of_the_state_is_noticed_too(tmp_path):
    path = save_checkpoint(tmp_path, make())
    content = path.read_bytes()
    assert content.count(b"0.30000000000000004") == 1
    path.write_bytes(content.replace(b"0.30000000000000004", b"0.70000000000000004"))
    with pytest.raises(ValueError, match="checksum"):
        read_checkpoint(path)


def test_a_write_that_dies_halfway_leaves_the_old_checkpoint_and_nothing_that_is_read(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(1))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, make(2))
    (tmp_path / ".step-000000002.safetensors.123").write_bytes(b"half")  # as SIGKILL would leave it
    loaded, complaints = load_checkpoint(tmp_path)
    assert_same(make(1), loaded)
    assert complaints == []


def test_the_header_is_json_that_people_can_read(tmp_path):
    with safe_open(save_checkpoint(tmp_path, make(7)), framework="pt") as file:
        header = json.loads(file.metadata()["zo"])
    assert header["step"] == 7
    assert header["state"] == make(7).state


def test_a_checkpoint_costs_no_copy_of_itself_in_memory(tmp_path):
    """Else it would be the largest thing in a ZO run's memory, and in what its CSV says of it."""
    measure = """
import pathlib, sys, torch
from zo.training.checkpoint import Checkpoint, write_checkpoint
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
tensors = {f"a{i}": torch.ones(2**22) for i in range(12)}
path, before = pathlib.Path(sys.argv[1]), peak()
write_checkpoint(path, Checkpoint(1, tensors, {}))
print(path.stat().st_size / 2**20, peak() - before)
"""
    command = [sys.executable, "-c", measure, str(tmp_path / "c.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, more = map(float, done.stdout.split())
    assert size > 190
    assert more < size / 10


def test_any_reader_of_the_format_reads_it(tmp_path):
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "matrix": torch.randn(4, 5).T,
        "count": torch.tensor(7.0, dtype=torch.float64),
        "none": torch.empty(0, 3),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"said": "so"})
    read = load_file(tmp_path / "t.safetensors")
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.metadata() == {"said": "so"}


def test_a_checkpoint_that_cannot_be_read_now_is_no_damaged_one(tmp_path, monkeypatch):
    """To take the one before it, or to start over, for a file server's bad moment loses steps."""
    save_checkpoint(tmp_path, Checkpoint(1, {"a": torch.ones(1)}, {}))

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle", "step-1")

    monkeypatch.setattr("zo.training.checkpoint.safe_open", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        load_checkpoint(tmp_path)
