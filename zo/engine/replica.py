"""Backprop over several ranks: torch's DistributedDataParallel, each rank with its rows of the same batch."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel

from zo.distributed.ranks import Ranks
from zo.engine.directions import at_least_fp32
from zo.engine.objective import Objective


class Replica:
    """One rank's copy of a model whose gradients are sums over all ranks. Costs a second set of gradients."""

    def __init__(self, model: torch.nn.Module, ranks: Ranks):
        """``model`` has its trained parameters on one device; it is the same on every rank.

        Those that require no gradient now will have none. Raises RankLost.
        """
        self._ranks = ranks
        with ranks.exchanging():  # it compares the shapes over all ranks
            self._model = DistributedDataParallel(model, forward_sync_buffers=False)

    def sum_gradients(
        self,
        objective: Callable[[torch.Tensor], Objective],
        batch: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        accumulation: int,
        scale: float,
    ) -> tuple[float, list[torch.Tensor]]:
        """As objective.sum_gradients, the same on all ranks; ``batch`` has a row for each at least."""
        rows = self._ranks.share(len(batch))
        parts = batch[rows.start : rows.stop].chunk(accumulation)
        loss = torch.zeros(1, 1, dtype=torch.float64)
        with self._ranks.exchanging():
            for number, part in enumerate(parts, start=1):
                weight = len(part) / len(batch)
                with nullcontext() if number == len(parts) else self._model.no_sync():
                    value = replace(objective(part), model=self._model).losses().sum()
                    # The mean over ranks must become a sum of their rows, which may be unequally many.
                    (value * (scale * weight * self._ranks.count)).backward()
                loss += value.item() * weight
        gradients = [parameter.grad.to(at_least_fp32(parameter)) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return self._ranks.share_out(self._ranks.count, 1, lambda _: loss).sum().item(), gradients
