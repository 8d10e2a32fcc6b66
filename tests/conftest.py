"""What the test files share. One torch thread: the models are tiny, and cores are for other tests."""

import os
import random
import signal
from types import SimpleNamespace

import numpy as np
import pytest

# A shell ignores Ctrl-C for what it starts in the background, and all its children do.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here or in a subprocess


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
