"""Where torchrun or srun says that a process stands among those of its run, read before torch is imported."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from zo.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started with it."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    port: int
    """Of the rendezvous: rank 0, or torchrun's agent, listens there."""


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where torchrun or srun says that this process stands; None if it was started alone.

    A batch script has most of srun's variables too: only a step of several tasks counts.
    """
    try:
        if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            place = _place_by_torchrun(environment)
        elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
            place = _place_by_srun(environment)
        else:
            return None
    except ValueError as error:
        raise UserError(f"the launcher's variables can't be read ({error}): start it with torchrun") from None
    return place if place.count > 1 else None


def _place_by_torchrun(environment: Mapping[str, str]) -> Place:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, count, local_rank, local_count = (int(environment.get(name, -1)) for name in names)
    local_rank, local_count = (rank, count) if local_rank < 0 else (local_rank, max(local_count, 1))
    return Place(
        rank, count, local_rank, local_count, environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    )


def _place_by_srun(environment: Mapping[str, str]) -> Place:
    """The first of the step's machines hosts the rendezvous, on a port that the step's number chooses."""
    rank, count = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
    here = environment.get("SLURM_STEP_TASKS_PER_NODE", str(count)).split("(")[0].split(",")[0]
    step = int(environment.get("SLURM_JOB_ID", 0)) * 31 + int(environment.get("SLURM_STEP_ID", 0))
    address = "127.0.0.1"
    if int(environment.get("SLURM_STEP_NUM_NODES", 1)) > 1:
        command = ["scontrol", "show", "hostnames", environment["SLURM_STEP_NODELIST"]]
        try:
            address = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            nodes = command[-1]
            raise UserError(
                f"scontrol cannot name the first of the nodes {nodes} ({error}): start it with torchrun"
            ) from None
    local_rank = int(environment.get("SLURM_LOCALID", rank))
    return Place(rank, count, local_rank, int(here), address, 20000 + step % 20000)
