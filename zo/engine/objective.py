"""The loss of one batch as a function of the parameters, and its exact gradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from zo.distributed.ranks import ALONE, Ranks
from zo.engine.directions import at_least_fp32, row_blocks

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""loss_fn(logits [N, V], labels [N]) -> scalar."""


@dataclass(frozen=True)
class Objective:
    """The loss of one batch: ``loss_fn`` on the model's logits, [B, T, V], and targets [B, S], S <= T.

    ``inputs`` are batch-first tensors, the model's keyword arguments. Logits past S have no target.
    """

    model: torch.nn.Module
    loss_fn: LossFunction
    inputs: Mapping[str, torch.Tensor]
    targets: torch.Tensor
    precision: torch.dtype = torch.float32
    """Of the model's arithmetic (autocast); the loss is computed in fp32 or better from its logits."""

    def losses(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[M] losses of one forward pass: of member i on the sequences ``rows[i]``, rows [M, b].

        None: one member, on the whole batch.
        """
        targets = self.targets[None] if rows is None else self.targets[rows]
        logits = self.logits(None if rows is None else rows.flatten())[:, : self.targets.shape[1]]
        logits = logits.to(at_least_fp32(logits))
        parts = zip(logits.chunk(len(targets)), targets, strict=True)
        losses = torch.stack([self.loss_fn(part.flatten(0, 1), labels.flatten()) for part, labels in parts])
        if losses.numel() != len(targets):
            shape = list(losses.shape[1:])
            raise ValueError(f"loss_fn returns shape {shape}, not one number: take its reduction 'mean'")
        return losses.view(-1)

    def logits(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[R, T, V]: the model's output on the sequences ``rows`` [R], all of the batch if None."""
        inputs = self.inputs
        if rows is not None:
            inputs = {name: value.index_select(0, rows) for name, value in inputs.items()}
        half = self.precision != torch.float32
        with torch.autocast(self.targets.device.type, self.precision, enabled=half):
            return self.model(**inputs).logits

    @property
    def batch_size(self) -> int:
        return len(self.targets)


@torch.no_grad()
def evaluate(objective: Objective, ranks: Ranks = ALONE) -> float:
    """The batch's loss at the parameters as they are; one rank finds it for all."""
    return ranks.share_out(1, 1, lambda _: objective.losses().double().cpu().view(1, 1)).item()


def sum_gradients(
    objective: Callable[[torch.Tensor], Objective],
    batch: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    accumulation: int,
    scale: float,
) -> tuple[float, list[torch.Tensor]]:
    """The batch's loss and ``scale`` times its gradient, in so many parts of the batch.

    The others are added to the first part's gradient, so that one part takes what backprop itself takes.
    """
    loss, gradients = 0.0, []
    for part in batch.chunk(accumulation):
        value = objective(part).losses().sum()
        pieces = list(torch.autograd.grad(value * (scale / accumulation), parameters))
        if not gradients:
            gradients = [pieces.pop(0).to(at_least_fp32(p)).contiguous() for p in parameters]
        for index in range(len(pieces)):  # not in place: torch may have given two parameters one tensor
            gradients[index] = gradients[index] + pieces.pop(0)
        loss += value.item() / accumulation
    return loss, gradients


def backpropagate(
    objective: Callable[[torch.Tensor], Objective],
    batch: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    accumulation: int = 1,
    sum_gradients: Callable[..., tuple[float, list[torch.Tensor]]] = sum_gradients,
) -> tuple[float, list[torch.Tensor], int]:
    """The batch's loss, its exact gradient (fp32 or better) and the passes this took.

    ``accumulation`` splits the batch, [B, T + 1], into as many parts of B/accumulation rows: less memory,
    the same result to rounding. In fp16 the loss is scaled so that small gradients survive, and scaled
    less for as long as any gradient overflows: without state, so a resumed run does the same.
    ``sum_gradients`` does the work, over several ranks that of zo/engine/replica.py.
    """
    in_fp16 = objective(batch).precision == torch.float16
    scales = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0) if in_fp16 else (1.0,)
    for passes, scale in enumerate(scales, start=1):  # noqa: B007 - returned below
        loss, gradients = sum_gradients(objective, batch, parameters, accumulation, scale)
        if scale == 1.0 or dense_norm(gradients).isfinite():  # one wait for the device
            break
    if scale != 1.0:
        for index, total in enumerate(gradients):
            gradients[index] = total / scale
    return loss, gradients, passes


def dot(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner product over all tensors: [] fp64, on their device, so that nothing waits for it."""
    return sum(
        torch.sum(a[rows].double() * b[rows].double())
        for a, b in zip(map(torch.atleast_1d, left), map(torch.atleast_1d, right), strict=True)
        for rows in row_blocks(a)
    )


def dense_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm over all tensors: [] fp64, on their device, so that nothing waits for it."""
    norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float64)
    return torch.linalg.vector_norm(torch.stack(norms))


def cosine(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """Cosine of the angle between two gradients given as lists of tensors; 0 where one of them is 0."""
    along, norms = torch.stack([dot(left, right), dense_norm(left) * dense_norm(right)]).tolist()
    return along / norms if norms else 0.0
