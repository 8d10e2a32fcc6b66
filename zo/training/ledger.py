"""What a run has spent, so that methods are always compared at equal something, and it is named."""

import resource
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from zo.step import StepReport


@dataclass
class Ledger:
    """Running totals. One forward pass is the run's whole batch; validation is counted in none of them."""

    step: int = 0
    tokens: int = 0
    """Training tokens read."""
    tokens_evaluated: int = 0
    """Tokens that went through forward passes."""
    forward_passes: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    """In steps alone: no validation, no logging, no checkpoints."""
    high_steps: int = 0
    """Logged steps in a row with a loss above the divergence threshold."""

    @contextmanager
    def timed(self):
        """Add the time inside to ``seconds``."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def add(self, report: StepReport, batch_tokens: int) -> None:
        """Count one step over ``batch_tokens`` tokens."""
        self.step += 1
        self.tokens += batch_tokens
        self.tokens_evaluated += report.forward_passes * batch_tokens
        self.forward_passes += report.forward_passes
        self.backward_passes += report.backward_passes

    def as_dict(self) -> dict:
        """For the checkpoint."""
        return asdict(self)


def settle(device) -> None:
    """Wait for what a GPU still has to do: what is timed, ends here."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def peak_memory_mb(device) -> float:
    """Most memory held so far, MiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
