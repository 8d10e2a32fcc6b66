"""Whether a forward pass of a model can be shared by members: found out once for each model, by trying.

A pass is shared in the belief that each member's rows of every activation lie together, members outermost,
and that no row of one member reaches those of another. A position table that goes through a trained layer
on its own, tokens ordered before sequences, statistics over the batch, or tokens that are sent to experts
break it, and shapes alone do not always tell. So two members pass together and one by one.
"""

import weakref
from collections.abc import Sequence

import torch

from zo.directions import Directions
from zo.members import members_of
from zo.noise import LowRankNoise, make_noise
from zo.objective import Objective
from zo.perturbed import Perturbed
from zo.scratch import Scratch

SCALE = 1e-2
"""Of the noise in the trial: as large as most weights, so that a member with another's weights is far off."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of the logits, in units of their standard deviation; half precision gets 0.1."""

_seen_to: weakref.WeakKeyDictionary[torch.nn.Module, frozenset[int]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def can_share(objective: Objective, parameters: Sequence[torch.Tensor], directions: Directions) -> bool:
    """Whether two members have the same logits in a shared pass as on their own; tried once.

    Costs four sequences' forward passes, and the memory of a step with directions of this kind. A model in
    training mode is believed: dropout would make any two passes differ.
    Raises UnsupportedOperation where a parameter is used in a way that can't be split at all.
    """
    model, ids = objective.model, frozenset(map(id, parameters))
    if model.training or _seen_to.get(model) == ids:
        return True
    if same := _try(objective, parameters, directions):
        _seen_to[model] = ids
    return same


def _try(objective: Objective, parameters: Sequence[torch.Tensor], directions: Directions) -> bool:
    family = "lowrank" if isinstance(directions, LowRankNoise) else "gaussian"
    noise = make_noise(family, 0, 0, parameters)
    rows = torch.tensor([0, objective.batch_size - 1], device=objective.targets.device)

    def logits(queries: list[int]) -> torch.Tensor:
        members = members_of(noise)(noise, Scratch(), queries, [SCALE], parameters)
        with Perturbed(parameters, members, batch_size=1):
            return objective.logits(rows[queries])

    together, alone = logits([0, 1]), torch.cat([logits([0]), logits([1])])
    tolerance = TOLERANCE.get(together.dtype, 0.1)
    return not (together - alone).abs().max() > tolerance * alone.std()  # a NaN tells nothing
