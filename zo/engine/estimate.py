"""The zeroth-order gradient estimate: finite differences along random directions, in compact form.

    g_hat = (1/q) sum_i [L(theta + eps z_i) - L(theta - eps z_i)] / (2 eps) * z_i         (two sides)
    g_hat = (1/q) sum_i [L(theta + eps z_i) - L(theta)] / eps * z_i                       (one side)

(Spall 1992; Nesterov and Spokoiny 2017; MeZO, arXiv 2305.17333.) What an estimate stores is the key of
its noise and q coefficients; a dense gradient exists only where an optimizer asks for one. Losses are
reduced and coefficients taken in fp64 on the host, sums over noise in fp32 or better.
"""

import operator
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from zo.distributed.ranks import ALONE, Ranks
from zo.engine.directions import Directions, Store, at_least_fp32, round_to_nearest_
from zo.engine.members import members_of
from zo.engine.noise import Noise
from zo.engine.objective import LossFunction, Objective
from zo.engine.perturbed import Perturbed, UnsupportedOperation
from zo.engine.plan import Plan
from zo.engine.scratch import Scratch
from zo.engine.sharing import can_share


@dataclass(frozen=True)
class Estimate:
    """A gradient estimate: g_hat = (scale/q) sum_i coefficients[i] * u_i, with u_i made from its key."""

    directions: Directions
    coefficients: torch.Tensor
    """[q] fp64 on the host: each direction's finite difference."""
    loss: float
    """Mean of the evaluated losses."""
    forward_passes: int
    scale: float = 1.0

    def gradient(self, parameter: torch.Tensor, index: int) -> torch.Tensor:
        """g_hat's part at one parameter, [shape of it], fp32 or better."""
        theta = torch.atleast_1d(parameter)
        total = theta.new_empty(theta.shape, dtype=at_least_fp32(theta))  # contiguous, whatever theta is
        return self.directions.sum_(total, self.weights(), index).view(parameter.shape)

    def weights(self) -> list[float]:
        """Of each direction in g_hat; summed in an order that depends on q alone, whatever the plan."""
        return (self.coefficients * (self.scale / len(self.coefficients))).tolist()

    def gradients(self, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Dense: one tensor a parameter, for optimizers that need it."""
        return [self.gradient(parameter, index) for index, parameter in enumerate(parameters)]

    @torch.no_grad()
    def add_to_(
        self, parameters: Sequence[torch.Tensor], alpha: float, store_: Store = round_to_nearest_
    ) -> None:
        """Parameters += alpha * g_hat; no dense gradient is made. ``store_`` rounds half precision."""
        self.directions.update_(parameters, alpha, self.weights(), store_)

    @torch.no_grad()
    def norm(self, parameters: Sequence[torch.Tensor]) -> float:
        """|g_hat| over all parameters."""
        return max(self.directions.square_norm(parameters, self.weights()), 0.0) ** 0.5

    def replaced_by_noise(self, parameters: Sequence[torch.Tensor]) -> "Estimate":
        """Independent noise of the same norm (the Random control)."""
        one = torch.ones(1, dtype=torch.float64)
        noise = replace(self, directions=self.directions.control(), coefficients=one, scale=1.0)
        return replace(noise, coefficients=one * (self.norm(parameters) / noise.norm(parameters)))


@torch.no_grad()
def estimate_gradient(
    objective: Objective,
    parameters: Sequence[torch.Tensor],
    directions: Directions,
    *,
    q: int,
    epsilon: float,
    sides: str = "two",
    sharded: bool = False,
    plan: Plan = Plan(),  # noqa: B008 - frozen
    ranks: Ranks = ALONE,
) -> Estimate:
    """Estimate the gradient of ``objective`` in ``parameters`` from q directions; nothing is modified.

    Parameters
    ----------
    q:
        Number of directions. Costs 2q forward passes with two sides, q + 1 with one; two if ``sharded``.
    epsilon:
        Length of the finite difference, in units of the direction.
    sides:
        ``two`` (central difference) or ``one`` (forward difference from one shared base loss).
    sharded:
        Evaluate each direction on its own 1/q of the batch's sequences instead of on all of them.
    ranks:
        The processes that share the directions, each with the same arguments; all get the same estimate.
    """
    rows = _rows_of_queries(objective, q, sharded)
    scales = [epsilon, -epsilon] if sides == "two" else [epsilon]

    def evaluate(queries: range) -> torch.Tensor:  # [queries * signs]
        return _evaluate(objective, parameters, directions, queries, rows, scales, plan)

    if sides == "two":
        losses = ranks.share_out(q, 2, lambda own: _read(evaluate(own)).view(-1, 2))
        coefficients = (losses[:, 0] - losses[:, 1]) / (2 * epsilon)
    else:
        losses = _share_out_one_sided(objective, evaluate, rows, sharded, ranks)
        coefficients = (losses[:q] - losses[q:]) / epsilon
    cost = losses.numel() // q if sharded else losses.numel()  # a shard is 1/q of a forward pass
    return Estimate(directions, coefficients, losses.mean().item(), cost, directions.scale)


def _share_out_one_sided(objective, evaluate, rows, sharded: bool, ranks: Ranks) -> torch.Tensor:
    """The q losses of the directions, then the base loss: [q + 1]; each shard has a base of its own: [2q]."""
    q = len(rows)
    if sharded:  # to rounding: a rank's bases are one forward pass of its own shards

        def pairs(own: range) -> torch.Tensor:
            perturbed = evaluate(own)
            base = objective.losses(rows[own.start : own.stop])
            return _read(torch.cat([perturbed, base])).view(2, -1).T

        return ranks.share_out(q, 2, pairs).T.flatten()

    def singles(own: range) -> torch.Tensor:  # the base is one more item, after the directions
        queries = range(own.start, min(own.stop, q))
        parts = [evaluate(queries)] if queries else []
        parts += [objective.losses()] if q in own else []
        return _read(torch.cat(parts)).view(-1, 1)

    return ranks.share_out(q + 1, 1, singles).flatten()


def _rows_of_queries(objective: Objective, q: int, sharded: bool) -> torch.Tensor:
    """[q, b]: which of the batch's sequences each direction is evaluated on."""
    rows = torch.arange(objective.batch_size, device=objective.targets.device)
    if not sharded:
        return rows.expand(q, -1)
    if objective.batch_size % q:
        raise ValueError(f"a batch of {objective.batch_size} sequences cannot be split among {q} directions")
    return rows.view(q, -1)


def _evaluate(
    objective, parameters, directions, queries: range, rows, scales: list[float], plan: Plan
) -> torch.Tensor:
    """[queries * signs] losses on the device, signs innermost; rows [q, b] are those of all directions."""
    if plan.kind == "parallel" and objective.model not in _unsupported:
        chunks = torch.tensor(queries).split(plan.directions_in_flight)
        passes = [(chunk.tolist(), scales) for chunk in chunks]
        try:
            if can_share(objective, parameters, directions):
                return _losses(objective, parameters, directions, rows, passes)
            reason = "does not keep the sequences of a batch apart, or in their order"
        except UnsupportedOperation as unsupported:
            reason = f"uses a trained parameter in {unsupported.operation!r}"
        _unsupported.add(objective.model)
        warnings.warn(
            f"{type(objective.model).__name__} {reason}, which the parallel plan cannot split by direction: "
            "using the sequential plan",
            stacklevel=2,
        )
    passes = [([query], [scale]) for query in queries for scale in scales]
    return _losses(objective, parameters, directions, rows, passes)


_unsupported: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""Models that were seen to need the sequential plan: warned of once, not tried again."""


def _losses(objective, parameters, directions, rows, passes: list[tuple[list[int], list[float]]]):
    """The members' losses, in order; a forward pass for each (queries, scales)."""
    kind = members_of(directions)
    scratch, losses = Scratch(), []
    for queries, scales in passes:
        members = kind(directions, scratch, queries, scales, parameters)
        own = rows[queries[0] : queries[-1] + 1].repeat_interleave(len(scales), dim=0)
        with Perturbed(parameters, members, rows.shape[1]) as perturbed:
            losses.append(objective.losses(own))
        _check_used(objective.model, perturbed.used, len(parameters))
    return torch.cat(losses)


def _check_used(model: torch.nn.Module, used: set[int], count: int) -> None:
    """No direction of a parameter that the pass did not use has any effect: what its part would be is noise.

    Seen are the calls of functions on the parameters themselves: not those of a traced module, nor of a copy
    that the model made of a parameter before.
    """
    if len(used) == count:
        return
    if not used:
        raise ValueError(
            f"{type(model).__name__} uses none of the parameters in its forward pass, as far as can be seen: "
            "give the module itself, not one traced by torch.jit, and parameters of its own"
        )
    if model not in _partly_used:
        _partly_used.add(model)
        unused = ", ".join(map(str, sorted(set(range(count)) - used)))
        warnings.warn(
            f"{type(model).__name__} does not use the parameters at places {unused} in its forward pass: "
            "their part of the estimate is noise",
            stacklevel=2,
        )


_partly_used: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""Models that were warned of."""


def _read(losses: torch.Tensor) -> torch.Tensor:
    """In fp64 on the host: the only time that a step waits for the device."""
    return losses.double().cpu()


def zo_gradient_estimator(
    model: torch.nn.Module,
    trainable_params: Sequence[torch.Tensor],
    loss_fn: LossFunction,
    inputs: torch.Tensor | Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    q: int,
    epsilon: float,
    device: torch.device | str,
    parallel_q_computation: bool = False,
    parallel_batch_size: int = 4,
    seed: int | None = None,
) -> tuple[list[torch.Tensor], float]:
    """Two-sided Gaussian estimate of a causal language model's gradient, forward passes only.

    Parameters
    ----------
    model:
        Called with ``inputs``; returns an object with ``logits`` [B, T, V] (any causal LM of transformers).
        It runs in the mode it is in: call ``model.eval()`` first if it has dropout.
    trainable_params:
        The parameters to estimate for; they are never modified. The order keys their noise.
    loss_fn:
        ``loss_fn(logits [N, V], labels [N]) -> scalar``, e.g. ``nn.CrossEntropyLoss()``.
    inputs:
        Token ids [B, T], or a dict of batch-first tensors (``input_ids``, ``attention_mask`` ...).
    labels:
        Token ids [B, T], aligned with the inputs: they are shifted here. -100 marks what has no loss.
    q, epsilon:
        Number of directions and length of the finite difference.
    device:
        Where inputs and labels are moved; the model's device.
    parallel_q_computation, parallel_batch_size:
        Evaluate ``parallel_batch_size`` directions in one forward pass; the same result to rounding.
    seed:
        Makes the noise repeatable. Without it one number is drawn from torch's global generator.

    Returns
    -------
    ``grads``, shaped and typed as the parameters, and the mean of the evaluated losses.
    """
    parameters = list(trainable_params)
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "model is one of torch.compile, whose parameters cannot be seen: give model._orig_mod"
        )
    _check_estimator_arguments(parameters, q, epsilon, parallel_batch_size)
    seed = torch.randint(2**62, ()).item() if seed is None else operator.index(seed)
    if not isinstance(inputs, Mapping):
        inputs = {"input_ids": inputs}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    objective = Objective(model, loss_fn, inputs, labels[:, 1:].to(device))
    plan = Plan("parallel" if parallel_q_computation else "sequential", parallel_batch_size)
    directions = Noise("gaussian", seed, step=0)
    estimate = estimate_gradient(objective, parameters, directions, q=q, epsilon=epsilon, plan=plan)
    grads = estimate.gradients(parameters)
    return [grad.to(p.dtype) for grad, p in zip(grads, parameters, strict=True)], estimate.loss


def _check_estimator_arguments(parameters, q: int, epsilon: float, parallel_batch_size: int) -> None:
    if not parameters:
        raise ValueError("trainable_params is empty: give at least one parameter")
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ValueError("trainable_params lists a parameter twice (a tied head?): list each tensor once")
    for name, value in (("q", q), ("parallel_batch_size", parallel_batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} is not allowed: it must be 1 or more")
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon={epsilon} is not allowed: it must be greater than 0 and finite")
