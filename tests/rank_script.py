"""What the processes of tests/contract/test_ranks.py run: many cases in one launch, as a start takes seconds.

    python tests/rank_script.py <case> <folder> [JSON]

Each rank writes what it found to <folder>/<rank>.json.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tcp_bytes import tcp_bytes_sent

from zo.causes import is_out_of_memory
from zo.distributed.place import find_place
from zo.distributed.ranks import ALONE, Ranks, join
from zo.engine.estimate import estimate_gradient
from zo.engine.noise import make_noise
from zo.engine.objective import Objective
from zo.engine.plan import Plan
from zo.errors import UserError
from zo.models import build_model
from zo.spec import RunSpec
from zo.training.run import Run
from zo.training.train import train

BATCH, TOKENS, VOCABULARY = 40, 6, 60
FAMILIES = ("gaussian", "rademacher", "lowrank")


def make_objective(size: str, batch: int = BATCH) -> tuple[Objective, list[torch.Tensor]]:
    """A model's loss on one batch, the same in every process."""
    model = build_model(size, "gpt2", VOCABULARY, seed=0)
    blocks = torch.randint(VOCABULARY, (batch, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    objective = Objective(model, F.cross_entropy, {"input_ids": blocks[:, :-1]}, blocks[:, 1:])
    return objective, list(model.parameters())


def estimates(ranks: Ranks) -> dict[str, Any]:
    """Every layout, shared out and alone: coefficients, loss and cost of both."""
    objective, parameters = make_objective("100k")
    found = {}
    for q in (8, 4, 2, 1):
        for family in FAMILIES:
            for kind in ("sequential", "parallel"):
                for sides, sharded in (("two", False), ("one", False), ("two", True), ("one", True)):
                    noise = make_noise(family, 3, 1, parameters)
                    settings = {"q": q, "epsilon": 1e-3, "sides": sides, "sharded": sharded}
                    settings |= {"plan": Plan(kind, 2)}
                    found[f"{q} {family} {kind} {sides} {'sharded' if sharded else 'whole'}"] = [
                        [*estimate.coefficients.tolist(), estimate.loss, estimate.forward_passes]
                        for estimate in (
                            estimate_gradient(objective, parameters, noise, **settings, ranks=who)
                            for who in (ranks, ALONE)
                        )
                    ]
    return found


def failures(ranks: Ranks) -> dict[str, Any]:
    """What every rank meets when one of them fails in its share; and that all go on afterwards."""

    def fail(error: Exception):
        def compute(own: range) -> torch.Tensor:
            if ranks.rank == 1:
                raise error
            return torch.zeros(len(own), 1, dtype=torch.float64)

        try:
            ranks.share_out(ranks.count, 1, compute)
        except Exception as met:
            return {"met": str(met), "memory": is_out_of_memory(met), "agreed": ranks.agreed(met)}

    def same(digest: str) -> str | None:
        try:
            return ranks.require_same("the weights", lambda: digest)
        except UserError as error:
            return str(error)

    found = {"bug": fail(KeyError("a bug")), "memory": fail(torch.OutOfMemoryError("no room"))}
    found |= {"same": same("a"), "differ": same("b" if ranks.rank == 2 else "a")}
    found["compare"] = ranks.compare(lambda: "ab"[ranks.rank % 2])
    told = [ranks.agree(15 if ranks.rank == 1 else 0)]
    ranks.share_out(1, 1, lambda _: torch.ones(1, 1, dtype=torch.float64))
    found["told"] = [*told, ranks.agree(0)]
    found["broadcast"] = ranks.broadcast({"from": ranks.rank})
    return found


def wire(ranks: Ranks) -> dict[str, Any]:
    """Bytes that this process's sockets sent in ten steps, update and all, and those that Ranks counted."""
    found = {}
    for size in ("100k", "1M"):
        objective, parameters = make_objective(size, batch=2)
        for q in (4, 400):
            directions = make_noise("rademacher", 0, 1, parameters)
            before = tcp_bytes_sent(), ranks.bytes_sent
            for _ in range(10 if q == 4 else 1):
                estimate = estimate_gradient(
                    objective,
                    parameters,
                    directions,
                    q=q,
                    epsilon=1e-3,
                    plan=Plan("parallel", 8),
                    ranks=ranks,
                )
                estimate.add_to_(parameters, -1e-6)
            steps = 10 if q == 4 else 1
            found[f"{size} {q}"] = [
                (now - then) / steps
                for now, then in zip((tcp_bytes_sent(), ranks.bytes_sent), before, strict=True)
            ]
    return found


def engine(ranks: Ranks) -> dict[str, Any]:
    """All of the above."""
    return {task.__name__: task(ranks) for task in (estimates, failures, wire)}


def runs(ranks: Ranks) -> dict[str, Any]:
    """Train the specs given, one after another; ``signal`` is (rank, step) of a SIGTERM to that process."""
    task = json.loads(sys.argv[3])
    if "signal" in task:
        _signal_at(ranks, *task["signal"])
    if "fail" in task:
        _fail_at(ranks, *task["fail"])
    return {
        text: train(
            RunSpec.from_json(text), Path(task["results"]), device="cpu", threads=1, ranks=ranks
        ).status
        for text in task["specs"]
    }


def _signal_at(ranks: Ranks, rank: int, step: int) -> None:
    take = Run.take_step

    def take_step(run: Run):
        if ranks.rank == rank and run.ledger.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(run)

    Run.take_step = take_step


def _fail_at(ranks: Ranks, rank: int, sequences: int) -> None:
    """On one rank a forward pass of so many sequences, or more, is out of memory."""
    losses = Objective.losses

    def short(objective: Objective, rows=None):
        if ranks.rank == rank and (objective.batch_size if rows is None else rows.numel()) >= sequences:
            raise torch.OutOfMemoryError("no room for so many sequences")
        return losses(objective, rows)

    Objective.losses = short


def gloo_threads() -> list[str]:
    """Of this process, by name."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = find_place()
    with join(place) as joined:
        result = {"engine": engine, "runs": runs}[sys.argv[1]](joined)
        assert gloo_threads()
    assert not gloo_threads(), "the group outlives its end: its threads may abort Python's own"
    (Path(sys.argv[2]) / f"{place.rank}.json").write_text(json.dumps(result))
