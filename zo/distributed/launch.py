"""Starting the ranks of one run on this machine, with torchrun's own launcher, and what their ends mean."""

import logging
import uuid
from collections.abc import Mapping, Sequence

from zo.causes import TRY_AGAIN

log = logging.getLogger("zo")

GRACE_S = 300
"""For ranks that were told to stop: a checkpoint of a large model takes its time."""


def launch(count: int, command: Sequence[str]) -> int:
    """Run ``command`` as ``count`` ranks, to their end; the exit status of the whole.

    Signals are passed on to all ranks. When one fails, the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [*logging.root.manager.loggerDict]:  # each has a level of its own; we say what happened
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=GRACE_S,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        return judge({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def judge(exit_codes: Mapping[int, int]) -> int:
    """The exit status that says why ranks failed; negative codes are signals.

    Ranks that only miss another one end with TRY_AGAIN, so any other status is nearer to the cause.
    """
    text = "rank %d was killed by signal %d: another attempt goes on from the last checkpoint"
    for rank, code in sorted(exit_codes.items()):
        if code < 0:
            log.error(text, rank, -code)
    causes = [code for code in exit_codes.values() if code > 0 and code != TRY_AGAIN]
    return min(causes) if causes else TRY_AGAIN
