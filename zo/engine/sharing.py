"""Whether a forward pass of a model can be shared by members: found out once for each model, by trying.

A pass is shared in the belief that each member's rows of every activation lie together, members outermost,
and that no row of one member reaches those of another. A position table that goes through a trained layer
on its own, tokens ordered before sequences, statistics over the batch, or tokens that are sent to experts
break it, and shapes alone do not always tell. So two members pass together and one by one.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.modules.dropout import _DropoutNd

from zo.engine.directions import Directions
from zo.engine.members import members_of
from zo.engine.noise import LowRankNoise, make_noise
from zo.engine.objective import Objective
from zo.engine.perturbed import Perturbed
from zo.engine.scratch import Scratch

SCALE = 1e-2
"""Of the noise in the trial: as large as most weights, so that a member with another's weights is far off."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of the logits, in units of their standard deviation; half precision gets 0.1."""

_seen_to: weakref.WeakKeyDictionary[torch.nn.Module, frozenset[int]] = weakref.WeakKeyDictionary()

_trusted: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def trust(model: torch.nn.Module) -> None:
    """Take it as known that a model's passes can be shared: our own, which tests compare member by member."""
    _trusted.add(model)


@torch.no_grad()
def can_share(objective: Objective, parameters: Sequence[torch.Tensor], directions: Directions) -> bool:
    """Whether two members have the same logits in a shared pass as on their own; tried once.

    Costs four sequences' forward passes, and the memory of a step with directions of this kind.
    Raises UnsupportedOperation where a parameter is used in a way that can't be split at all.
    """
    model, ids = objective.model, frozenset(map(id, parameters))
    if model in _trusted or _seen_to.get(model) == ids:
        return True
    with _without_dropout(model):
        same = _try(objective, parameters, directions)
    if same:
        _seen_to[model] = ids
    return same is not False


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """A model that drops out is in eval mode inside: any two of its passes differ. Others stay as is."""
    training = [module for module in model.modules() if module.training]
    drops = any(isinstance(module, _DropoutNd) and module.p > 0 for module in training)
    try:
        for module in training if drops else ():
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _try(objective: Objective, parameters: Sequence[torch.Tensor], directions: Directions) -> bool | None:
    """Whether the logits agree; None where there are no finite ones that could tell."""
    family = "lowrank" if isinstance(directions, LowRankNoise) else "gaussian"
    noise = make_noise(family, 0, 0, parameters)
    rows = torch.tensor([0, objective.batch_size - 1], device=objective.targets.device)

    def logits(queries: list[int]) -> torch.Tensor:
        members = members_of(noise)(noise, Scratch(), queries, [SCALE], parameters)
        with Perturbed(parameters, members, batch_size=1):
            return objective.logits(rows[queries])

    together, alone = logits([0, 1]), torch.cat([logits([0]), logits([1])])
    finite = alone.isfinite()
    if finite.sum() < 2:
        return None
    together, alone, tolerance = together[finite], alone[finite], TOLERANCE.get(alone.dtype, 0.1)
    return bool((together - alone).abs().max() <= tolerance * alone.std())  # a NaN that spreads is none
