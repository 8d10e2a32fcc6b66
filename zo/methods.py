"""The methods, one class each: what a step does, what it spends, and which settings it reads.

A method turns a batch into a descent direction; everything else of a run is shared by all of them, so
a difference between two runs cannot come from a difference between two loops. To add one, write a
class here and list it in METHODS (docs/add-a-method.md); the sweep, the names, the checks, the ledger
and the tests follow from its attributes.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, ClassVar

from zo.step import (
    Method,
    Phase,
    StepReport,
    backpropagate_batch,
    descend,
    make_directions,
    make_estimate,
    plain_sgd,
    report_estimate,
)

if TYPE_CHECKING:
    from zo.engine.estimate import Estimate
    from zo.spec import RunSpec
    from zo.step import State

# Settings beyond scope, batch size and seed that a family of methods reads. An axis that a method does
# not use never multiplies its runs and never appears in its names.
UPDATE = frozenset({"optimizer", "momentum", "weight_decay", "cautious", "schedule", "warmup_steps"})
QUERIES = frozenset({"query_budget_q", "epsilon", "direction_family", "rank", "sides", "shard_batch"})
BACKPROP = frozenset({"gradient_checkpointing"})
SCHEDULE = frozenset({"embedding_parts", "bp_learning_rate"})


class FO(Method):
    """First order: the gradient of the batch's loss by backprop."""

    uses = UPDATE | BACKPROP | {"gradient_accumulation"}

    @staticmethod
    def forward_passes(spec, step, total):
        return 1

    @staticmethod
    def backward_passes(spec, step, total):
        return 1

    def step(self, state, batch, guide):
        loss, gradient, passes = backpropagate_batch(state, batch)
        return StepReport(loss, passes, passes, descend(state, gradient))


class ZO(Method):
    """Zeroth order: finite differences along q random directions, g_hat = (1/q) sum_i c_i z_i."""

    uses = UPDATE | QUERIES

    @staticmethod
    def forward_passes(spec, step, total):
        if spec.shard_batch:  # each direction reads its own 1/q of the batch
            return 2
        return spec.query_budget_q * 2 if spec.sides == "two" else spec.query_budget_q + 1

    def step(self, state, batch, guide):
        estimate = make_estimate(state, batch)
        norm = descend(state, self.direction(state, estimate))
        return report_estimate(estimate, norm)

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
    def forward_passes(spec, step, total):
        if step % spec.bp_interval:
            return ZO.forward_passes(spec, step, total)
        return 2 if spec.bp_dataset else 1  # the loss that is logged is always that of the run's own batch

    @staticmethod
    def backward_passes(spec, step, total):
        return int(step % spec.bp_interval == 0)

    def step(self, state, batch, guide):
        from zo.engine.objective import evaluate

        if state.step % state.spec.bp_interval:
            return super().step(state, batch, guide)
        loss, gradient, passes = backpropagate_batch(state, guide)
        forwards = passes
        if guide is not batch:
            loss, forwards = evaluate(state.objective(batch), state.ranks), passes + 1
        take_backprop_rate(state)
        norm = descend(state, gradient)
        scalars = {"backprop": True, "learning_rate": state.learning_rate}
        return StepReport(loss, forwards, passes, norm, scalars=scalars)


def take_backprop_rate(state: State) -> None:
    """Descend at ``bp_learning_rate`` in this step, if given; the schedule's factor applies to both rates."""
    if state.spec.bp_learning_rate is not None:
        state.learning_rate *= state.spec.bp_learning_rate / state.spec.learning_rate


class Instruct(ZO):
    """ZO, with directions drawn around a backprop gradient on every ``bp_interval``-th step."""

    uses = ZO.uses | BACKPROP | {"bp_interval", "cosine_target", "blend_bp_gradient"}
    requires = frozenset({"bp_interval"})

    @staticmethod
    def forward_passes(spec, step, total):
        return ZO.forward_passes(spec, step, total) + Instruct.backward_passes(spec, step, total)

    @staticmethod
    def backward_passes(spec, step, total):
        guided = int(step % spec.bp_interval == 0)
        # A guide from another dataset costs a second gradient: the cosine is logged against both.
        return guided * (2 if spec.bp_dataset else 1)

    def step(self, state, batch, guide):
        if state.step % state.spec.bp_interval:
            return super().step(state, batch, guide)
        return self.guided_step(state, batch, guide)

    def guided_step(self, state, batch, guide):
        from zo.engine.guidance import GuidedDirections
        from zo.engine.objective import cosine

        spec = state.spec
        _, gradient, passes = backpropagate_batch(state, guide)
        around = GuidedDirections(make_directions(state), gradient, spec.cosine_target, spec.query_budget_q)
        estimate = make_estimate(state, batch, around)
        dense = estimate.gradients(state.parameters)
        scalars = {
            "backprop": True,
            "cosine_directions": around.cosines(),
            "cosine_estimate": cosine(dense, gradient),
        }
        if guide is not batch:
            _, own_gradient, more = backpropagate_batch(state, batch)
            scalars["cosine_estimate_own_data"] = cosine(dense, own_gradient)
            passes += more
        if spec.blend_bp_gradient:
            dense = [(ours + exact) / 2 for ours, exact in zip(dense, gradient, strict=True)]
        norm = descend(state, dense)
        return report_estimate(estimate, norm, passes, scalars["cosine_estimate"], scalars)


class Frozen(Method):
    """Control: reads the same batches, measures their loss, changes nothing."""

    @staticmethod
    def forward_passes(spec, step, total):
        return 1

    def step(self, state, batch, guide):
        from zo.engine.objective import evaluate

        state.learning_rate = 0.0  # what a log should say
        return StepReport(evaluate(state.objective(batch), state.ranks), forward_passes=1)


class Layerwise(Method):
    """Phase by phase: all that is outside the blocks by backprop, then one block after another.

    In its phase a block starts from new random weights and is trained alone, by ``blocks``; the rest is
    frozen. The embedding's phase is ``embedding_parts`` times as long as a block's. After Allaire et al.
    (ICPRAM 2025). Our choice: each phase has its own optimizers and its own schedule, warm-up included.
    """

    only_scope = "full"
    blocks: ClassVar[type[Method]]
    """The method of the blocks' phases."""

    @staticmethod
    def phase(spec, step, total):
        parts = Layerwise.cycle(spec)
        ends = [total * part // parts for part in range(spec.embedding_parts, parts + 1)]
        number = bisect_left(ends, step)  # 0: the embedding's, i: block i - 1's
        if not number:
            return Phase("embedding", 1, ends[0])
        return Phase(f"block{number - 1}", ends[number - 1] + 1, ends[number], fresh=True)

    @staticmethod
    def cycle(spec):
        return spec.embedding_parts + spec.layers

    @staticmethod
    def least_steps(spec):
        return Layerwise.cycle(spec)

    @classmethod
    def at(cls, phase: Phase) -> type[Method]:
        """The method of a phase's steps."""
        return cls.blocks if phase.fresh else FO

    @classmethod
    def forward_passes(cls, spec, step, total):
        return cls.at(cls.phase(spec, step, total)).forward_passes(spec, step, total)

    @classmethod
    def backward_passes(cls, spec, step, total):
        return cls.at(cls.phase(spec, step, total)).backward_passes(spec, step, total)

    def step(self, state, batch, guide):
        method = self.at(state.phase)
        if not state.phase.fresh:
            take_backprop_rate(state)
        return method().step(state, batch, guide)


class LayerwiseFO(Layerwise):
    """Layer by layer, the blocks by backprop."""

    uses = FO.uses | SCHEDULE
    blocks = FO


class LayerwiseZO(Layerwise):
    """Layer by layer, the blocks by zeroth order: a block's phase is ZO on that block."""

    uses = ZO.uses | BACKPROP | SCHEDULE
    blocks = ZO


class LayerwiseFrozen(Layerwise):
    """Control of both: the blocks get the same new weights at the same steps, and are never trained."""

    uses = FO.uses | SCHEDULE
    blocks = Frozen


METHODS: dict[str, type[Method]] = {
    method.__name__: method
    for method in (FO, ZO, Calibrate, Instruct, LayerwiseFO, LayerwiseZO, Random, Frozen, LayerwiseFrozen)
}


def needs_dense_gradient(spec: RunSpec) -> bool:
    """Whether a run holds gradients as large as its parameters: all do but ZO under plain SGD."""
    return uses_backprop(spec.mode) or (bool(METHODS[spec.mode].uses) and not plain_sgd(spec))


def uses_backprop(mode: str) -> bool:
    """Whether a method's steps, or some of them, are backprop's."""
    return bool(METHODS[mode].uses & BACKPROP)
