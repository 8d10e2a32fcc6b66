"""The methods, one class each: what a step does, what it spends, and which settings it reads.

A method turns a batch into a descent direction; everything else of a run is shared by all of them, so
a difference between two runs cannot come from a difference between two loops. To add one, write a
class here and list it in METHODS (docs/add-a-method.md); the sweep, the names, the checks, the ledger
and the tests follow from its attributes.

torch is imported by the functions that compute: the workflow reads this module for the names alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from zo.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from zo.estimate import Estimate
    from zo.objective import Objective
    from zo.plan import Plan
    from zo.replica import Replica
    from zo.spec import RunSpec

# Settings beyond scope, batch size and seed that a family of methods reads. An axis that a method does
# not use never multiplies its runs and never appears in its names.
UPDATE = frozenset({"optimizer", "momentum", "weight_decay", "cautious", "schedule", "warmup_steps"})
QUERIES = frozenset({"query_budget_q", "epsilon", "direction_family", "rank", "sides", "shard_batch"})
BACKPROP = frozenset({"gradient_checkpointing"})


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

    @staticmethod
    def forward_passes(spec: RunSpec, step: int) -> int:
        """Forward passes that step ``step`` will take, known before the run."""
        raise NotImplementedError

    @staticmethod
    def backward_passes(spec: RunSpec, step: int) -> int:
        """Backward passes that step ``step`` will take."""
        return 0

    def step(self, state: State, batch: torch.Tensor, guide: torch.Tensor) -> StepReport:
        """Make one step in place on ``batch``, [B, T + 1] tokens; backprop that guides reads ``guide``."""
        raise NotImplementedError


class FO(Method):
    """First order: the gradient of the batch's loss by backprop."""

    uses = UPDATE | BACKPROP | {"gradient_accumulation"}

    @staticmethod
    def forward_passes(spec, step):
        return 1

    @staticmethod
    def backward_passes(spec, step):
        return 1

    def step(self, state, batch, guide):
        loss, gradient, passes = _backpropagate(state, batch)
        return StepReport(loss, passes, passes, descend(state, gradient))


class ZO(Method):
    """Zeroth order: finite differences along q random directions, g_hat = (1/q) sum_i c_i z_i."""

    uses = UPDATE | QUERIES

    @staticmethod
    def forward_passes(spec, step):
        if spec.shard_batch:  # each direction reads its own 1/q of the batch
            return 2
        return spec.query_budget_q * 2 if spec.sides == "two" else spec.query_budget_q + 1

    def step(self, state, batch, guide):
        estimate = _estimate(state, batch)
        norm = descend(state, self.direction(state, estimate))
        return _report(estimate, norm)

    def direction(self, state, estimate) -> Estimate:
        """What the optimizer descends along: the estimate itself."""
        return estimate


class Random(ZO):
    """Control: makes the ZO estimate, then descends along independent noise of the same norm."""

    def direction(self, state, estimate):
        return estimate.replaced_by_noise(state.parameters)


class Calibrate(ZO):
    """ZO, with the backprop gradient in place of the estimate on every ``bp_interval``-th step."""

    uses = ZO.uses | BACKPROP | {"bp_interval", "bp_learning_rate"}
    requires = frozenset({"bp_interval"})

    @staticmethod
    def forward_passes(spec, step):
        return 1 if step % spec.bp_interval == 0 else ZO.forward_passes(spec, step)

    @staticmethod
    def backward_passes(spec, step):
        return int(step % spec.bp_interval == 0)

    def step(self, state, batch, guide):
        if state.step % state.spec.bp_interval:
            return super().step(state, batch, guide)
        loss, gradient, passes = _backpropagate(state, guide)
        if state.spec.bp_learning_rate is not None:  # the schedule's factor applies to both rates
            state.learning_rate *= state.spec.bp_learning_rate / state.spec.learning_rate
        norm = descend(state, gradient)
        scalars = {"backprop": True, "learning_rate": state.learning_rate}
        return StepReport(loss, passes, passes, norm, scalars=scalars)


class Instruct(ZO):
    """ZO, with directions drawn around a backprop gradient on every ``bp_interval``-th step."""

    uses = ZO.uses | BACKPROP | {"bp_interval", "cosine_target", "blend_bp_gradient"}
    requires = frozenset({"bp_interval"})

    @staticmethod
    def forward_passes(spec, step):
        return ZO.forward_passes(spec, step) + Instruct.backward_passes(spec, step)

    @staticmethod
    def backward_passes(spec, step):
        guided = int(step % spec.bp_interval == 0)
        # A guide from another dataset costs a second gradient: the cosine is logged against both.
        return guided * (2 if spec.bp_dataset else 1)

    def step(self, state, batch, guide):
        if state.step % state.spec.bp_interval:
            return super().step(state, batch, guide)
        return self.guided_step(state, batch, guide)

    def guided_step(self, state, batch, guide):
        from zo.guidance import GuidedDirections
        from zo.objective import cosine

        spec = state.spec
        _, gradient, passes = _backpropagate(state, guide)
        around = GuidedDirections(make_directions(state), gradient, spec.cosine_target, spec.query_budget_q)
        estimate = _estimate(state, batch, around)
        dense = estimate.gradients(state.parameters)
        scalars = {
            "backprop": True,
            "cosine_directions": around.cosines(),
            "cosine_estimate": cosine(dense, gradient),
        }
        if guide is not batch:
            _, own_gradient, more = _backpropagate(state, batch)
            scalars["cosine_estimate_own_data"] = cosine(dense, own_gradient)
            passes += more
        if spec.blend_bp_gradient:
            dense = [(ours + exact) / 2 for ours, exact in zip(dense, gradient, strict=True)]
        norm = descend(state, dense)
        return _report(estimate, norm, passes, scalars["cosine_estimate"], scalars)


class Frozen(Method):
    """Control: reads the same batches, measures their loss, changes nothing."""

    @staticmethod
    def forward_passes(spec, step):
        return 1

    def step(self, state, batch, guide):
        from zo.objective import evaluate

        return StepReport(evaluate(state.objective(batch), state.ranks), forward_passes=1)


METHODS: dict[str, type[Method]] = {
    method.__name__: method for method in (FO, ZO, Calibrate, Instruct, Random, Frozen)
}


def make_directions(state: State):
    """The step's directions, by the run's family."""
    from zo.noise import make_noise

    spec = state.spec
    return make_noise(spec.direction_family, spec.seed, state.step, state.parameters, spec.rank)


def _backpropagate(state: State, blocks: torch.Tensor):
    from zo.objective import backpropagate, sum_gradients

    shared = state.replica.sum_gradients if state.replica else sum_gradients
    parts = state.spec.gradient_accumulation
    return backpropagate(state.objective, blocks, state.parameters, parts, shared)


def _estimate(state: State, batch, directions=None) -> Estimate:
    from zo.estimate import estimate_gradient

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


def _report(estimate: Estimate, norm, backward: int = 0, cosine=None, scalars=None) -> StepReport:
    return StepReport(
        loss=estimate.loss,
        forward_passes=estimate.forward_passes + backward,  # each backward pass came with its forward pass
        backward_passes=backward,
        norm=norm,
        cosine=cosine,
        scalars={"coefficients": estimate.coefficients.tolist()} | (scalars or {}),
    )


def needs_dense_gradient(spec: RunSpec) -> bool:
    """Whether a run holds gradients as large as its parameters: all do but ZO under plain SGD."""
    return uses_backprop(spec.mode) or (bool(METHODS[spec.mode].uses) and not plain_sgd(spec))


def uses_backprop(mode: str) -> bool:
    """Whether a method's steps, or some of them, are backprop's."""
    return bool(METHODS[mode].uses & BACKPROP)


def plain_sgd(spec: RunSpec) -> bool:
    """Whether an update reads nothing but the direction."""
    return spec.optimizer == "sgd" and not spec.momentum and not spec.weight_decay


def descend(state: State, direction: Estimate | list[torch.Tensor]) -> Callable[[], float]:
    """Step along ``direction`` with the run's optimizers; a function for the direction's norm.

    Plain SGD applies an estimate in its compact form, one parameter's noise at a time; every other
    optimizer is torch's own and reads a dense gradient. Weights in bf16 are updated here in any case.
    """
    from zo.estimate import Estimate
    from zo.objective import dense_norm
    from zo.optimizers import set_learning_rate
    from zo.rounding import add_, make_rounding

    store_ = make_rounding(state.spec.weights, state.spec.seed, state.step)
    if isinstance(direction, Estimate) and plain_sgd(state.spec):
        direction.add_to_(state.parameters, -state.learning_rate, store_)
        return lambda: direction.norm(state.parameters)
    dense = direction.gradients(state.parameters) if isinstance(direction, Estimate) else direction
    if state.spec.weights != "fp32":
        norm = dense_norm(dense)
        add_(state.parameters, dense, -state.learning_rate, store_)
        return lambda: norm
    set_learning_rate(state.optimizers, state.learning_rate)
    for parameter, gradient in zip(state.parameters, dense, strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    norm = dense_norm(dense)  # now: a report must not keep the gradient
    return lambda: norm
