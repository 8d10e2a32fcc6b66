"""Shares, and what launchers say of a place; tests/contract/test_ranks.py has what ranks do together."""

import re
import subprocess
import threading

import pytest
import torch

from zo.causes import TRY_AGAIN, RankLost
from zo.distributed import launch
from zo.distributed.heartbeat import Heartbeat
from zo.distributed.place import Place, find_place
from zo.distributed.ranks import ALONE, Group, Ranks, join
from zo.errors import UserError
from zo.spec import RunSpec, parse_name
from zo.training.run import check_gpus

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12"}
SRUN |= {"SLURM_STEP_ID": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NUM_NODES": "2"}
SRUN |= {"SLURM_STEP_NODELIST": "node[7-8]"}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 8, 64])
def test_shares_cover_all_items_in_order_and_differ_by_one_at_most(n, count):
    ranks = Ranks()
    ranks.count = count
    shares = [ranks.share(n, rank) for rank in range(count)]
    assert [item for share in shares for item in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(shares[0]) == max(map(len, shares))  # what the length of a message is taken from


def test_a_process_alone_computes_all_and_exchanges_nothing():
    values = torch.arange(6, dtype=torch.float64).view(3, 2)
    assert ALONE.share_out(3, 2, lambda own: values[list(own)]).equal(values)
    assert (ALONE.is_first, ALONE.broadcast("x"), ALONE.agree(15), ALONE.bytes_sent) == (True, "x", 15, 0)
    with join(None) as ranks:
        assert ranks is ALONE
    assert not torch.distributed.is_initialized()


def test_values_of_another_width_are_noticed():
    with pytest.raises(ValueError, match=r"shape \[3\], not \[3, 2\]"):
        ALONE.share_out(3, 2, lambda own: torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (
            "NCCL error: ncclInvalidUsage ... Duplicate GPU detected : rank 1 and rank 0 on 7",
            False,
        ),
        ("NCCL error: ncclRemoteError: A call failed possibly due to ... a remote process exiting", True),
        ("NCCL communicator was aborted on rank 1", True),
        ("[gloo] Connection closed by peer", True),
        ("shapes differ", False),
    ],
)
def test_only_an_error_of_the_connection_means_a_lost_rank_and_it_keeps_its_words(text, lost):
    group = object.__new__(Group)
    group._notes = torch.distributed.HashStore()
    with pytest.raises(RankLost if lost else RuntimeError, match=re.escape(text)), group.exchanging():
        raise RuntimeError(text)


def test_a_heartbeat_that_was_stopped_leaves_no_thread_behind():
    """One that is in the store's C++ as Python exits aborts a process whose run is done."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    before = set(threading.enumerate())
    Heartbeat.sign(store, 0)
    heartbeat = Heartbeat(store, 0, 1)
    heartbeat.start()
    assert len(set(threading.enumerate()) - before) == 2
    heartbeat.stop()
    assert set(threading.enumerate()) == before


class Compared(Ranks):
    """Ranks of which it is known who has the same GPU."""

    def __init__(self, gpus):
        self.count, self.gpus = len(gpus), gpus

    def compare(self, digest):
        return self.gpus


def test_backprops_ranks_need_a_gpu_each():
    fo, zo = (RunSpec.make(mode=mode, max_steps=1, batch_size=4, ranks=3) for mode in ("FO", "ZO"))
    cpu, gpu, shared = torch.device("cpu"), torch.device("cuda"), Compared([7, 9, 7])
    with pytest.raises(UserError, match=r"ranks: 3 .* mode FO needs a GPU for each .* have 2: take ranks 2"):
        check_gpus(fo, gpu, shared)
    for spec, device, ranks in ((zo, gpu, shared), (fo, cpu, shared), (fo, gpu, Compared([7, 8, 9]))):
        check_gpus(spec, device, ranks)


def test_torchruns_variables_are_a_place():
    assert find_place(TORCHRUN) == Place(3, 4, 1, 2, "node7", 29500)


def test_sruns_variables_are_a_place(monkeypatch):
    def scontrol(command, **_):
        assert command == ["scontrol", "show", "hostnames", "node[7-8]"]
        return subprocess.CompletedProcess(command, 0, "node7\nnode8\n")

    monkeypatch.setattr(subprocess, "run", scontrol)
    place = find_place(SRUN)
    assert place == Place(3, 4, 1, 2, "node7", place.port)
    assert place.port == find_place(SRUN | {"SLURM_PROCID": "0"}).port  # the same on every rank
    assert place.port != find_place(SRUN | {"SLURM_STEP_ID": "6"}).port
    assert 1024 < place.port < 65536


@pytest.mark.parametrize("script", [None, "exit 1", "exit 0"])
def test_where_scontrol_names_no_node_the_remedy_is_torchrun(monkeypatch, tmp_path, script):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(UserError, match=r"scontrol .*node\[7-8\].* start it with torchrun"):
        find_place(SRUN)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        {"RANK": "3", "WORLD_SIZE": "4"},  # some schedulers set these for purposes of their own
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # what Snakemake's executor starts
    ],
)
def test_a_process_that_no_launcher_started_as_one_of_several_is_alone(environment):
    assert find_place(environment) is None


def test_a_launchers_variable_that_is_no_number_is_named():
    with pytest.raises(UserError, match=r"invalid literal.*'x'.*torchrun"):
        find_place(TORCHRUN | {"RANK": "x"})


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ({0: TRY_AGAIN, 1: -9}, TRY_AGAIN),
        ({0: TRY_AGAIN, 1: 1}, 1),
        ({0: 2, 1: TRY_AGAIN}, 2),
        ({0: 143, 1: 143}, 143),
    ],
)
def test_the_rank_that_failed_first_hand_gives_the_status(codes, status):
    assert launch.judge(codes) == status


def test_ranks_are_an_axis_that_names_its_runs():
    spec = RunSpec.make(mode="ZO", max_steps=1, ranks=4)
    assert spec.name == "ZO_reduced_bs8_q1_lr1e-05_ranks4"
    assert parse_name(spec.name, max_steps=1) == spec
    assert "ranks" not in RunSpec.make(mode="ZO", max_steps=1).name


@pytest.mark.parametrize("mode", ["FO", "Calibrate"])
def test_backprop_over_more_ranks_than_sequences_is_refused(mode):
    own = {"bp_interval": 2} if mode == "Calibrate" else {}
    RunSpec.make(mode=mode, max_steps=1, batch_size=2, ranks=2, **own)
    with pytest.raises(UserError, match=f"ranks: 3 is not allowed: mode {mode} .* batch_size is 2"):
        RunSpec.make(mode=mode, max_steps=1, batch_size=2, ranks=3, **own)
    RunSpec.make(mode="ZO", max_steps=1, batch_size=2, ranks=3)
