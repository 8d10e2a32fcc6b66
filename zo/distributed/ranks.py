"""One run over several processes: which directions are whose, and the one message of a step.

Each rank evaluates its share of a step's directions, and one all-gather brings everyone the others' losses.
Noise is a function of its key, so every rank then makes the same update: weights and gradients never travel.
What else the ranks must agree on rides on that message: a signal to stop, a step that failed.

torch is imported where ranks meet: the workflow reads the methods, which name ALONE.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zo.causes import RankLost, is_out_of_memory
from zo.distributed.heartbeat import Heartbeat
from zo.distributed.place import Place
from zo.errors import UserError

if TYPE_CHECKING:
    import torch

LOST = (
    *("onnection closed", "onnection reset", "Broken pipe", "imed out"),
    *("ncclRemoteError", "remote process exit", "NCCL communicator was aborted"),
)
"""How gloo and NCCL spell that the other end is gone; NCCL's other errors are this rank's own."""
LONGEST_WAIT = timedelta(days=1)
"""For another rank: it may wait for the run's lock. That it is alive is for the heartbeat to see."""
WENT_WELL, FAILED, OUT_OF_MEMORY = 0.0, 1.0, 2.0
"""Of one rank's share of an exchange."""


class Ranks:
    """The processes of a run as one of them sees them. This class is a process alone: nothing to exchange."""

    rank, count = 0, 1
    local_rank, local_count = 0, 1
    """Among the processes of this machine."""
    bytes_sent = 0
    """In exchanges so far, to all other ranks together."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def share(self, n: int, rank: int | None = None) -> range:
        """Which of ``n`` items are a rank's: contiguous, sizes differ by one at most; empty past n ranks."""
        rank = self.rank if rank is None else rank
        size, larger = divmod(n, self.count)
        start = rank * size + min(rank, larger)
        return range(start, start + size + (rank < larger))

    def share_out(self, n: int, width: int, compute: Callable[[range], torch.Tensor]) -> torch.Tensor:
        """[n, width] fp64 on the host: ``compute``'s values of all items, each computed by one rank.

        ``compute`` gets the items that are this rank's, never none, and returns [their number, width], fp64
        on the host. One message. Where it fails on one rank all raise; RankLost if a rank is gone.
        """
        return self._compute(compute, range(n), width)

    @staticmethod
    def _compute(compute, own: range, width: int) -> torch.Tensor:
        values = compute(own)
        if tuple(values.shape) != (len(own), width):
            raise ValueError(f"values of shape {list(values.shape)}, not {[len(own), width]}, to be shared")
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's ``value``, anything that can be pickled, on all."""
        return value

    def agree(self, signal: int) -> int:
        """Tell the others of a signal (0: none) with the next exchange; what all had told in the last one."""
        return signal

    def agreed(self, error: BaseException) -> bool:
        """Whether every rank met this error at the same place, so that all can go on from there together."""
        return True

    def compare(self, digest: Callable[[], str]) -> list[int]:
        """A number for each rank, the same on all: equal where their digests are."""
        return [0]

    def require_same(self, what: str, digest: Callable[[], str]) -> None:
        """Raise UserError on every rank unless their digests are equal."""


ALONE = Ranks()


class AgreedOutOfMemory(MemoryError):
    """A rank ran out of memory in its share, and all know."""


class Group(Ranks):
    """Several processes, joined. ``bytes_sent`` counts what exchanges sent, 8 bytes a number and rank."""

    def __init__(self, place: Place):
        """Meet the others. Raises RankLost where they do not come."""
        import torch
        import torch.distributed as dist

        # Its functions keep the group that is there at their import as a default argument: a model's import
        # of it, later, would keep ours alive past `leave`, and gloo's threads with it, into Python's own end,
        # where one that still drops a tensor aborts the process (pytorch/pytorch#190489).
        import torch.distributed.nn.functional
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.count = place.rank, place.count
        self.local_rank, self.local_count = place.local_rank, place.local_count
        self.bytes_sent, self._signal, self._heard = 0, 0, 0
        os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
        with self.exchanging():
            store, *_ = next(rendezvous("env://", place.rank, place.count, timeout=timedelta(minutes=10)))
            self._notes = dist.PrefixStore("zo", store)
            Heartbeat.sign(self._notes, self.rank)
            # Scalars are on the host and travel by gloo; NCCL is for backprop's gradients.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, timeout=LONGEST_WAIT, store=store, rank=self.rank, world_size=self.count
            )
        self._heartbeat = Heartbeat(self._notes, self.rank, self.count)
        self._heartbeat.start()

    def share_out(self, n, width, compute):
        import torch

        own = self.share(n)
        longest = len(self.share(n, 0)) * width
        values, failure = torch.zeros(0, dtype=torch.float64), None
        try:
            values = self._compute(compute, own, width).reshape(-1) if own else values
        except Exception as error:
            failure = error
        verdict = WENT_WELL if failure is None else FAILED
        verdict = OUT_OF_MEMORY if failure and is_out_of_memory(failure) else verdict
        message = torch.zeros(2 + longest, dtype=torch.float64)
        message[0], message[1] = self._signal, verdict
        message[2 : 2 + len(values)] = values
        received = self._all_gather(message)  # [count, 2 + longest]
        self._heard = int(received[:, 0].max())
        self._raise_together(received[:, 1], failure)
        shares = [len(self.share(n, rank)) * width for rank in range(self.count)]
        return torch.cat([row[2 : 2 + k] for row, k in zip(received, shares, strict=True)]).view(n, width)

    def _all_gather(self, message: torch.Tensor) -> torch.Tensor:
        import torch.distributed as dist

        received = message.new_empty(self.count, len(message))
        with self.exchanging():
            dist.all_gather(list(received), message)
        self.bytes_sent += message.nbytes * (self.count - 1)
        return received

    def _raise_together(self, verdicts: torch.Tensor, own: Exception | None) -> None:
        failed = verdicts.nonzero().flatten().tolist()
        if not failed:
            return
        if (verdicts == OUT_OF_MEMORY).any():
            raise AgreedOutOfMemory(f"rank {failed[0]}: out of memory{f': {own}' if own else ''}") from own
        if own:
            raise own
        raise RuntimeError(f"rank {failed[0]} failed: its own message says how")

    def broadcast(self, value):
        import torch.distributed as dist

        box = [value]
        with self.exchanging():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, signal):
        self._signal = signal
        return self._heard

    def agreed(self, error):
        return isinstance(error, AgreedOutOfMemory)

    def compare(self, digest):
        import torch

        number = int(hashlib.sha256(digest().encode()).hexdigest()[:12], 16)  # 48 bits: exact in fp64
        found = self.share_out(self.count, 1, lambda _: torch.tensor([[number]], dtype=torch.float64))
        return [int(number) for number in found]

    def require_same(self, what, digest):
        found = self.compare(digest)
        others = [rank for rank in range(self.count) if found[rank] != found[0]]
        if others:
            raise UserError(
                f"{what} of rank {others[0]} differ from rank 0's: run all ranks on machines of one kind, "
                "with the same versions, or take ranks 1; the last checkpoint is still good"
            )

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Inside, an error of the connection becomes RankLost, with the reason that the lost rank left."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, UserError) or not any(words in str(error) for words in LOST):
                raise
            raise RankLost(self._last_words() or _shorten(f"another rank is gone: {error}")) from error

    def tell(self, error: BaseException) -> None:
        """Leave word of what ends this rank, for those that will miss it."""
        text = (
            str(error)
            if isinstance(error, RankLost)
            else f"rank {self.rank}: {type(error).__name__}: {error}"
        )
        try:
            self._notes.compare_set("last words", "", json.dumps(_shorten(text)))
        except RuntimeError:  # the one that keeps the notes is gone too
            return

    def _last_words(self) -> str | None:
        try:
            return json.loads(self._notes.get("last words")) if self._notes.check(["last words"]) else None
        except RuntimeError:
            return None

    def leave(self) -> None:
        """Wait until all are done: the first rank may still be writing."""
        import torch
        import torch.distributed as dist

        self._all_gather(torch.zeros(1, dtype=torch.float64))
        self._heartbeat.stop()
        dist.destroy_process_group()


def _shorten(text: str) -> str:
    """To one line of a log."""
    return " ".join(text.split())[:300]


@contextmanager
def join(place: Place | None) -> Iterator[Ranks]:
    """Join the other processes of the run for the time inside; ALONE where there are none."""
    if place is None:
        yield ALONE
        return
    group = Group(place)
    try:
        yield group
    except SystemExit:  # a signal that all heard of: the first rank writes its checkpoint
        group.leave()
        raise
    except BaseException as error:
        group.tell(error)
        raise
    group.leave()
