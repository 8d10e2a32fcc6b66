"""One run in memory: its model, optimizers and data, how it steps, and what a checkpoint keeps of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from zo.data.dataset import DatasetSpec, TokenCache, build_cache, is_built, open_cache
from zo.distributed.ranks import ALONE, Ranks
from zo.engine.noise import mix
from zo.engine.objective import Objective
from zo.engine.plan import Plan, decide_plan, free_memory
from zo.engine.replica import Replica
from zo.engine.sharing import trust
from zo.errors import UserError
from zo.files import read_json
from zo.lengths import total_steps
from zo.methods import METHODS, needs_dense_gradient, uses_backprop
from zo.models import build_model, parameter_roles, redraw_block, select_scope
from zo.optimizers import build_optimizers, pack_state, unpack_state
from zo.sizes import parse_scope
from zo.spec import RunSpec, check_ranks, dataset_spec, guide_dataset_spec
from zo.step import Phase, State, StepReport
from zo.study import caches_of
from zo.training.checkpoint import Checkpoint, digest
from zo.training.ledger import Ledger, settle

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FINAL_RATE = 0.1
"""Of the peak learning rate, at the end of the cosine schedule."""


@dataclass
class Run:
    """One run in memory: what it trains, on what, and how far it is."""

    spec: RunSpec
    state: State
    named: list[tuple[str, torch.Tensor]]
    data: TokenCache
    guide_data: TokenCache
    device: torch.device
    total: int
    ledger: Ledger
    keep_steps: frozenset[int] = frozenset()
    """Steps after which the weights are set aside."""

    @property
    def caches(self) -> list[str]:
        """Folders of the token caches that it reads, its own first."""
        return list(dict.fromkeys([self.data.folder.name, self.guide_data.folder.name]))

    def batch(self, data: TokenCache, step: int) -> torch.Tensor:
        """The token blocks of one step, [B, T + 1]: a function of (seed, step)."""
        spec = self.spec
        blocks = data.batch(spec.seed, step, spec.batch_size, spec.block_size)
        if self.device.type == "cuda":  # from other memory the copy waits for all that the GPU has to do
            blocks = blocks.pin_memory()
        return blocks.to(self.device, non_blocking=True)

    def take_step(self) -> StepReport:
        """Make the next step and count it."""
        step, method = self.ledger.step + 1, METHODS[self.spec.mode]
        with self.ledger.timed():
            batch = self.batch(self.data, step)  # inside: what it waits for is the last step's own work
            another = self.guide_data is not self.data and "bp_interval" in method.uses  # FO has no guide
            guided = another and method.backward_passes(self.spec, step, self.total)
            guide = self.batch(self.guide_data, step) if guided else batch
            self.enter(step)
            self.state.step, self.state.learning_rate = step, learning_rate(self.spec, step, self.state.phase)
            report = method().step(self.state, batch, guide)
            if self._looks_up_after(step):
                settle(self.device)  # the step's own work must not be waited for outside
        self.ledger.add(report, self.spec.batch_size * self.spec.block_size)
        return report

    def enter(self, step: int) -> None:
        """Train what the method trains at ``step``, from 1; a new phase starts here if it is another."""
        phase = METHODS[self.spec.mode].phase(self.spec, step, self.total)
        if phase != self.state.phase:
            start_phase(self.state, phase)

    def _looks_up_after(self, step: int) -> bool:
        """Whether something that is not training follows: a row, a validation, weights that are written."""
        spec = self.spec
        intervals = (spec.log_interval, spec.validation_interval, spec.checkpoint_interval)
        chosen = step == self.total or step in self.keep_steps
        return chosen or any(step % interval == 0 for interval in intervals)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the study's held-out blocks, the same tokens for every run; ranks share them out."""
        spec = self.spec
        blocks = self.data.validation_blocks(spec.validation_block_size, spec.validation_blocks)
        parts = blocks.split(spec.batch_size // self.state.spec.gradient_accumulation)

        def sums(own: range) -> torch.Tensor:
            losses = [self.state.objective(parts[i].to(self.device)).losses().item() for i in own]
            weighted = [[loss * len(parts[i])] for i, loss in zip(own, losses, strict=True)]
            return torch.tensor(weighted, dtype=torch.float64)

        totals = self.state.ranks.share_out(len(parts), 1, sums)
        return sum(totals.flatten().tolist()) / len(blocks)

    def checkpoint(self, lengths: dict[str, int] | None) -> Checkpoint:
        """Everything needed to go on from here; without the logs' lengths, the trained weights alone."""
        tensors, scalars = pack_state(self.state.optimizers) if lengths else ({}, {})
        tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"model.{name}": parameter for name, parameter in self.named}
        state = {
            "spec": self.spec.model_dump(),
            "caches": self.caches,
            "ledger": self.ledger.as_dict(),
            "optimizers": scalars,
            "log_lengths": lengths,
        }
        return Checkpoint(self.ledger.step, tensors, state)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Go back to a checkpoint; the lengths its logs had."""
        self.enter(max(1, checkpoint.step))  # whose optimizers' state it holds
        for name, parameter in self.named:
            parameter.copy_(checkpoint.tensors[f"model.{name}"])
        prefix = "optimizer."
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
        unpack_state(self.state.optimizers, tensors, checkpoint.state["optimizers"])
        self.ledger = Ledger(**checkpoint.state["ledger"])
        return checkpoint.state["log_lengths"]

    def weights_digest(self) -> str:
        """Hash of the trained weights as they are, for ``zo replay`` to compare with."""
        return digest(dict(self.named))


def build_run(
    spec: RunSpec,
    cache_root: Path,
    device: torch.device,
    accumulation: int | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Run, dict[str, Any]]:
    """Build model, optimizers and data of a run at step 0, and the facts its manifest keeps of them.

    ``accumulation`` splits backprop's batch into more parts than the spec says, for lack of memory.
    ``ranks`` build the run together. Raises UserError for settings that they cannot share.
    """
    check_ranks(spec, ranks.count)
    check_gpus(spec, device, ranks)
    data = _open_data(dataset_spec(spec), cache_root)
    guide_data = _open_data(guide_dataset_spec(spec), cache_root) if spec.bp_dataset else data
    plan, reason = _decide_plan(spec, data.vocab_size, device, ranks)
    if METHODS[spec.mode].uses and spec.query_budget_q:
        spec = spec.model_copy(update={"plan": plan.kind, "parallel_batch_size": plan.directions_in_flight})
    total = total_steps(spec, data.steps_per_epoch(spec.batch_size, spec.block_size))
    state, named = build_state(spec, data.vocab_size, device, plan, total, ranks)
    if accumulation:
        state.spec = spec.model_copy(update={"gradient_accumulation": accumulation})
    run = Run(spec, state, named, data, guide_data, device, total, Ledger())
    facts = {
        "run": spec.name,
        "steps": total,
        "vocab_size": data.vocab_size,
        "parameters": state.model.num_parameters(),
        "trainable_parameters": sum(p.numel() for _, p in named),
        "frozen_weights_sha256": frozen_digest(state.model, named),
        "dense_gradient": needs_dense_gradient(spec),
        "ranks": ranks.count,
        "plan": spec.query_budget_q
        and {"kind": plan.kind, "directions_in_flight": plan.directions_in_flight, "reason": reason},
        "cache": {"folder": data.folder.name} | read_json(data.folder / "timings.json"),
        "caches": run.caches,
    }
    return run, facts


def build_state(
    spec: RunSpec, vocab_size: int, device: torch.device, plan: Plan, total: int, ranks: Ranks = ALONE
) -> tuple[State, list[tuple[str, torch.Tensor]]]:
    """Build what the first step of ``total`` works on, and the parameters that the run trains by name.

    No data is read.
    """
    model = build_model(
        spec.model_size,
        spec.architecture,
        vocab_size,
        spec.seed,
        device=device,
        dtype=PRECISIONS[spec.weights.removesuffix("-nearest")],
        matrices_alone=True,  # near 1, where norms' weights lie, bf16 numbers are farther apart than eps z
        gradient_checkpointing=spec.gradient_checkpointing,
    )
    trust(model)
    named = select_scope(model, spec.scope)
    phase = METHODS[spec.mode].phase(spec, 1, total)
    state = State(model, [], [], spec, plan, objective_of(model, spec), phase, ranks)
    start_phase(state, phase)
    return state, named


def start_phase(state: State, phase: Phase) -> None:
    """Let the state train what the phase trains, with optimizers of its own; all else is frozen.

    A fresh block's weights are a function of the run's seed and the block, others than the model's first.
    """
    spec, model = state.spec, state.model
    if phase.fresh:
        block = parse_scope(phase.scope).block
        redraw_block(model, block, mix(spec.seed, block))
    named = select_scope(model, phase.scope)
    state.phase, state.parameters = phase, [parameter for _, parameter in named]
    state.optimizers = build_optimizers(
        spec.optimizer,
        named,
        parameter_roles(model, named),
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        cautious=spec.cautious,
    )
    if state.ranks.count > 1 and uses_backprop(spec.mode):
        state.replica = Replica(model, state.ranks)


def frozen_digest(model: torch.nn.Module, named: list[tuple[str, torch.Tensor]]) -> str:
    """Hash of the weights that a run does not train; ``named`` are those that it does."""
    trained = {id(parameter) for _, parameter in named}
    return digest({name: p for name, p in model.named_parameters() if id(p) not in trained})


def _decide_plan(spec: RunSpec, vocab_size: int, device: torch.device, ranks: Ranks) -> tuple[Plan, str]:
    free = free_memory(device) // _count_sharers(device, ranks)
    own = torch.tensor([[float(free)]], dtype=torch.float64)
    return decide_plan(
        spec.plan,
        spec.parallel_batch_size,
        q=max(1, len(ranks.share(spec.query_budget_q, 0))),
        signs=2 if spec.sides == "two" else 1,
        tokens=spec.batch_size * spec.block_size,
        vocab_size=vocab_size,
        device=device.type,
        free_bytes=int(ranks.share_out(ranks.count, 1, lambda _: own).min()),  # one plan for all
    )


def _count_sharers(device: torch.device, ranks: Ranks) -> int:
    """How many ranks take the device's memory."""
    if device.type == "cpu":
        return ranks.local_count
    gpus = _list_gpus(device, ranks)
    return gpus.count(gpus[ranks.rank])


def _list_gpus(device: torch.device, ranks: Ranks) -> list[int]:
    """A number for each rank's GPU: equal where they share it."""
    return ranks.compare(lambda: str(torch.cuda.get_device_properties(device).uuid))


def reads_other_text(spec: RunSpec, record: Mapping[str, Any]) -> bool:
    """Whether the corpus or the tokenizer has changed since a checkpoint's state or a manifest was written.

    The spec names both by their paths alone. A record that is older than its key ``caches`` does not tell.
    """
    now = list(dict.fromkeys(wanted.folder_name() for wanted in caches_of(spec)))
    return record.get("caches", now) != now


def _open_data(wanted: DatasetSpec, cache_root: Path) -> TokenCache:
    folder = cache_root / wanted.folder_name()
    return open_cache(folder if is_built(folder) else build_cache(wanted, cache_root))


def objective_of(model: torch.nn.Module, spec: RunSpec):
    """Next-token prediction: position t of a block [B, T + 1] predicts token t + 1."""

    def objective(blocks: torch.Tensor) -> Objective:
        inputs = {"input_ids": blocks[:, :-1]}
        return Objective(model, F.cross_entropy, inputs, blocks[:, 1:], PRECISIONS[spec.precision])

    return objective


def prepare_torch(threads: int | None) -> None:
    """Set the CPU threads, by default torch's own choice, and have fp32 products computed in fp32.

    TF32, which NVIDIA's containers or who calls us may have set, keeps 10 bits of each factor: finite
    differences drown in that.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.set_float32_matmul_precision("highest")


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """``auto`` is the GPU that is visible, if any. Raises UserError for one that isn't there.

    Several ranks of a machine take the visible GPUs in turn, each as its current one; where each was given
    its own, that is its only.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.count > 1 and torch.cuda.is_available():
        name = f"cuda:{ranks.local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is not allowed: auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {name!r} is asked for, but torch {torch.__version__} sees no GPU")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"device: {name!r} is asked for, but torch sees {count} GPUs, from cuda:0")
    if device.type == "cuda" and ranks.count > 1:  # else what names no GPU, pinned memory too, holds cuda:0
        torch.cuda.set_device(device)
    return device


def check_gpus(spec: RunSpec, device: torch.device, ranks: Ranks) -> None:
    """Raise UserError where ranks that share backprop share a GPU, too: NCCL takes one rank on each."""
    if ranks.count == 1 or device.type != "cuda" or not uses_backprop(spec.mode):
        return
    gpus = _list_gpus(device, ranks)
    if len(set(gpus)) < len(gpus):
        raise UserError(
            f"ranks: {ranks.count} is not allowed: mode {spec.mode} needs a GPU for each rank, and they have "
            f"{len(set(gpus))}: take ranks {len(set(gpus))}, or device cpu"
        )


def learning_rate(spec: RunSpec, step: int, phase: Phase) -> float:
    """Of a step of a phase: linear warm-up, then constant or a cosine down to FINAL_RATE of the peak."""
    step, total = step - phase.first + 1, phase.last - phase.first + 1
    if step <= spec.warmup_steps:
        return spec.learning_rate * step / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - spec.warmup_steps) / max(1, total - spec.warmup_steps)
    return spec.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2)
