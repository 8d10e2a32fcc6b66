"""What the test files share, and the environment that all of them run in, whoever starts them."""

import os
import random
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

# A shell ignores Ctrl-C for what it starts in the background, and all its children do.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is imported, here or in a subprocess. One thread: the models are tiny, and cores are for other
# tests. No GPU but those that a test pretends; no proxy between a test and its own server.
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
for name in [*os.environ]:  # of a job or a torchrun that the tests are started from
    if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith("SLURM_"):
        del os.environ[name]
# The same examples on every machine, however slow it is.
settings.register_profile("zo", deadline=None, derandomize=True)
settings.load_profile("zo")

REQUIRED = "ZO_TESTS_REQUIRE"
"""Environment variable that CI sets: words; a test that is skipped with one of them in its reason fails."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail what is skipped for want of something that must be there."""
    report = yield
    reason = str(call.excinfo.value) if report.skipped and call.excinfo else ""
    if any(word in reason for word in os.environ.get(REQUIRED, "").split()):
        report.outcome, report.longrepr = "failed", f"{reason} (skipped, but {REQUIRED} is set)"
    return report


@pytest.fixture
def global_rng():
    """A function: the state of every global generator, to compare before and after."""
    import torch

    def fingerprint():
        name, words, *rest = np.random.get_state()  # noqa: NPY002 - the global one is meant
        return (torch.get_rng_state().numpy().tobytes(), random.getstate(), name, words.tobytes(), *rest)

    return fingerprint


@pytest.fixture
def make_linear():
    """A function: a model whose loss is linear, L = v.(W x + b), so that its gradient is (v x^T, v)."""
    import torch
    import torch.nn.functional as F

    class Linear(torch.nn.Module):
        def __init__(self, rows: int, columns: int):
            super().__init__()
            draw = torch.Generator().manual_seed(rows * 1000 + columns)
            w, b, x, self.v = (
                torch.randn(*size, generator=draw, dtype=torch.float64)
                for size in ((rows, columns), (rows,), (1, 1, columns), (rows,))
            )
            self.weight, self.bias = torch.nn.Parameter(w), torch.nn.Parameter(b)
            self.inputs = {"x": x}
            self.gradient = [torch.outer(self.v, x.flatten()), self.v]

        def forward(self, x):
            return SimpleNamespace(logits=F.linear(x, self.weight, self.bias))

        def objective(self):
            from zo.engine.objective import Objective

            return Objective(self, lambda logits, _: (logits @ self.v).sum(), self.inputs, torch.zeros(1, 1))

    return Linear
