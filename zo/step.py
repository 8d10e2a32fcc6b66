"""What every method's step is made of: its state, its report, its phase; backprop, the estimate, the descent.

torch is imported by the functions that compute: the workflow reads the methods for their names alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from zo.distributed.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from zo.engine.directions import Directions
    from zo.engine.estimate import Estimate
    from zo.engine.objective import Objective
    from zo.engine.plan import Plan
    from zo.engine.replica import Replica
    from zo.spec import RunSpec


@dataclass(frozen=True)
class Phase:
    """Steps of a run that train one scope, with optimizers and a learning rate schedule of their own."""

    scope: str
    first: int
    last: int
    fresh: bool = False
    """Whether its block starts from new random weights."""


@dataclass
class State:
    """What a step works on. ``parameters`` are the trainable tensors, in the order that keys their noise."""

    model: torch.nn.Module
    parameters: list[torch.Tensor]
    optimizers: list[torch.optim.Optimizer]
    spec: RunSpec
    plan: Plan
    objective: Callable[[torch.Tensor], Objective]
    """Makes the loss of one batch of token blocks, [B, T + 1]."""
    phase: Phase
    """Whose parameters and optimizers these are."""
    ranks: Ranks = ALONE
    """The processes that share the work of a step."""
    replica: Replica | None = None
    """Of the model, where they share backprop."""
    learning_rate: float = 0.0
    """Of this step, after the schedule."""
    step: int = 0
    """Of this step, from 1."""


@dataclass(frozen=True)
class StepReport:
    """What one step found and spent. One forward pass is the run's whole batch through the model."""

    loss: float
    forward_passes: int
    backward_passes: int = 0
    norm: Callable[[], float] | None = None
    """Of the direction that was descended along: what ``grad_norm`` calls, which few steps' logs read."""
    cosine: float | None = None
    """Of the estimate with the backprop gradient that guided it (Instruct)."""
    scalars: dict = field(default_factory=dict)
    """What the scalar log keeps of the step: a ZO step can be replayed from it."""

    @property
    def grad_norm(self) -> float | None:
        """Norm of the direction that was descended along; waits for the device."""
        return self.norm and self.norm()


class Method:
    """Base of all methods. Subclasses name their settings and write ``step``."""

    uses: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()
    """Settings without a default that a run of this method must give."""
    only_scope: ClassVar[str | None] = None
    """The one scope that a run of this method may have; None: any."""

    @staticmethod
    def forward_passes(spec: RunSpec, step: int, total: int) -> int:
        """Forward passes that step ``step`` of ``total`` will take, known before the run."""
        raise NotImplementedError

    @staticmethod
    def backward_passes(spec: RunSpec, step: int, total: int) -> int:
        """Backward passes that step ``step`` of ``total`` will take."""
        return 0

    @staticmethod
    def phase(spec: RunSpec, step: int, total: int) -> Phase:
        """What step ``step`` of ``total`` trains: the run's scope, from its first step to its last."""
        return Phase(spec.scope, 1, total)

    @staticmethod
    def cycle(spec: RunSpec) -> int:
        """Steps after which a run's costs repeat: so many more of them cost what a run of so many costs."""
        return spec.bp_interval or 1

    @staticmethod
    def least_steps(spec: RunSpec) -> int:
        """Steps that a run has at least."""
        return 1

    def step(self, state: State, batch: torch.Tensor, guide: torch.Tensor) -> StepReport:
        """Make one step in place on ``batch``, [B, T + 1] tokens; backprop that guides reads ``guide``."""
        raise NotImplementedError


def make_directions(state: State):
    """The step's directions, by the run's family."""
    from zo.engine.noise import make_noise

    spec = state.spec
    return make_noise(spec.direction_family, spec.seed, state.step, state.parameters, spec.rank)


def backpropagate_batch(state: State, blocks: torch.Tensor) -> tuple[float, list[torch.Tensor], int]:
    """Loss of the blocks, [B, T + 1], its gradient in the state's parameters, and the passes this took."""
    from zo.engine.objective import backpropagate, sum_gradients

    shared = state.replica.sum_gradients if state.replica else sum_gradients
    parts = state.spec.gradient_accumulation
    return backpropagate(state.objective, blocks, state.parameters, parts, shared)


def make_estimate(state: State, batch: torch.Tensor, directions: Directions | None = None) -> Estimate:
    """The run's estimate on ``batch``, [B, T + 1], along its family's directions if none are given."""
    from zo.engine.estimate import estimate_gradient

    spec = state.spec
    return estimate_gradient(
        state.objective(batch),
        state.parameters,
        directions or make_directions(state),
        q=spec.query_budget_q,
        epsilon=spec.epsilon,
        sides=spec.sides,
        sharded=spec.shard_batch,
        plan=state.plan,
        ranks=state.ranks,
    )


def report_estimate(
    estimate: Estimate, norm: Callable, backward: int = 0, cosine: float | None = None, scalars=None
) -> StepReport:
    """The report of a step that made an estimate, and so many backward passes beside it."""
    return StepReport(
        loss=estimate.loss,
        forward_passes=estimate.forward_passes + backward,  # each backward pass came with its forward pass
        backward_passes=backward,
        norm=norm,
        cosine=cosine,
        scalars={"coefficients": estimate.coefficients.tolist()} | (scalars or {}),
    )


def plain_sgd(spec: RunSpec) -> bool:
    """Whether an update reads nothing but the direction."""
    return spec.optimizer == "sgd" and not spec.momentum and not spec.weight_decay


def descend(state: State, direction: Estimate | list[torch.Tensor]) -> Callable[[], float]:
    """Step along ``direction`` with the run's optimizers; a function for the direction's norm.

    Plain SGD applies an estimate in its compact form, one parameter's noise at a time; every other
    optimizer is torch's own and reads a dense gradient. Weights in bf16 are updated here in any case.
    """
    from zo.engine.estimate import Estimate
    from zo.engine.objective import dense_norm
    from zo.engine.rounding import add_, make_rounding
    from zo.optimizers import set_learning_rate

    store_ = make_rounding(state.spec.weights, state.spec.seed, state.step)
    if isinstance(direction, Estimate) and plain_sgd(state.spec):
        direction.add_to_(state.parameters, -state.learning_rate, store_)
        return lambda: direction.norm(state.parameters)
    dense = direction.gradients(state.parameters) if isinstance(direction, Estimate) else direction
    if state.spec.weights != "fp32":
        norm = dense_norm(dense)
        add_(state.parameters, dense, -state.learning_rate, store_)
        return norm.item
    set_learning_rate(state.optimizers, state.learning_rate)
    for parameter, gradient in zip(state.parameters, dense, strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    norm = dense_norm(dense)  # now: a report must not keep the gradient; waited for only where it is read
    return norm.item
