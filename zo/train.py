"""Running one cell: build it, resume it, step it, and write down how it ended."""

import json
import logging
import math
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from zo.checkpoint import Checkpoint, digest, load_checkpoint, save_checkpoint
from zo.dataset import DatasetSpec, TokenCache, build_cache, open_cache
from zo.errors import UserError
from zo.estimate import Objective
from zo.files import hold, read_json, write_json
from zo.job import recorded_job
from zo.ledger import Ledger, peak_memory_mb
from zo.methods import METHODS, State, StepReport
from zo.models import build_model, parameter_roles, select_scope
from zo.optimizers import build_optimizers, pack_state, unpack_state
from zo.plan import Plan, decide_plan
from zo.record import Logs, RunFiles, describe_machine, logs_reach
from zo.spec import RunSpec, dataset_spec, guide_dataset_spec, total_steps

log = logging.getLogger("zo")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HIGH_STEPS = 20
"""Logged steps in a row above twice ln(vocabulary) that make a run diverged."""
FINAL_RATE = 0.1
"""Of the peak learning rate, at the end of the cosine schedule."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``done`` or ``diverged``, and why."""

    status: str
    reason: str | None = None


class Interrupted(SystemExit):
    """A signal asked the run to stop; its checkpoint is written."""


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

    def batch(self, data: TokenCache, step: int) -> torch.Tensor:
        """The token blocks of one step, [B, T + 1]: a function of (seed, step)."""
        spec = self.spec
        return data.batch(spec.seed, step, spec.batch_size, spec.block_size).to(self.device)

    def take_step(self) -> StepReport:
        """Make the next step and count it."""
        step = self.ledger.step + 1
        batch = self.batch(self.data, step)
        guide = batch if self.guide_data is self.data else self.batch(self.guide_data, step)
        self.state.step, self.state.learning_rate = step, learning_rate(self.spec, step, self.total)
        with self.ledger.timed():
            report = METHODS[self.spec.mode]().step(self.state, batch, guide)
        self.ledger.add(report, self.spec.batch_size * self.spec.block_size)
        return report

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the study's held-out blocks: the same tokens for every run."""
        spec = self.spec
        blocks = self.data.validation_blocks(spec.validation_block_size, spec.validation_blocks)
        sums = [
            self.state.objective(part.to(self.device)).losses().item() * len(part)
            for part in blocks.split(spec.batch_size)
        ]
        return sum(sums) / len(blocks)

    def checkpoint(self, lengths: dict[str, int]) -> Checkpoint:
        """Everything needed to go on from here."""
        tensors, scalars = pack_state(self.state.optimizers)
        tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"model.{name}": parameter for name, parameter in self.named}
        state = {
            "spec": self.spec.model_dump(),
            "ledger": self.ledger.as_dict(),
            "optimizers": scalars,
            "log_lengths": lengths,
        }
        return Checkpoint(self.ledger.step, tensors, state)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Go back to a checkpoint; the lengths its logs had."""
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


def train(
    spec: RunSpec, results: Path, *, device: str = "auto", threads: int | None = None, replace: bool = True
) -> Outcome:
    """Run one cell to its end, from its checkpoint if it has one; write all its files.

    ``replace`` False refuses to overwrite a run of the same name that ended with other settings.

    A second process for the same run waits until the first is gone. Raises UserError for what the user
    can correct and Interrupted (exit status 128 + signal) after SIGTERM or SIGINT.
    """
    files = RunFiles(results, spec.name)
    files.make_folders()
    with hold(files.folder / ".lock"), recorded_job(files):
        if not replace:
            _refuse_other_settings(spec, files)
        torch.set_num_threads(threads or torch.get_num_threads())
        spec, checkpoint = _resume(spec, files)
        run, facts = build_run(spec, results / "cache", pick_device(device))
        write_json(files.folder / "spec.json", run.spec.model_dump())
        write_json(
            files.folder / "manifest.json", facts | describe_machine(str(run.device), torch.get_num_threads())
        )
        logs = Logs(files, run.restore(checkpoint) if checkpoint else None)
        log.info("%s: %s", spec.name, f"resumed at step {run.ledger.step}" if checkpoint else "started")
        if facts["plan"]:
            log.info("plan: %s, directions in flight %s: %s", *facts["plan"].values())
        try:
            outcome = _loop(run, logs, files)
        except FloatingPointError as error:
            outcome = Outcome("diverged", str(error))
        finally:
            logs.close()
        files.write_outcome(outcome.status, outcome.reason, run.ledger.step)
        if outcome.status == "done":
            files.keep_final_weights()
        log.info("%s: %s%s", spec.name, outcome.status, f" ({outcome.reason})" if outcome.reason else "")
        return outcome


def _refuse_other_settings(spec: RunSpec, files: RunFiles) -> None:
    """A name does not carry all settings: by hand, another study's finished run must not be lost."""
    stored, plan = read_json(files.folder / "spec.json"), ("plan", "parallel_batch_size")
    if not (files.folder / "outcome.json").exists() or not stored:
        return
    for key, value in spec.model_dump().items():
        if key not in plan and stored.get(key) != value:
            raise UserError(
                f"{files.folder} holds a run of this name with another {key} "
                f"({stored.get(key)}, not {value}): choose another --results, or delete it"
            )


def _resume(spec: RunSpec, files: RunFiles) -> tuple[RunSpec, Checkpoint | None]:
    """The newest checkpoint of these same settings, with the plan that its run had decided on.

    A plan or a number of directions in flight that is asked for now is taken: results differ by rounding.
    """
    checkpoint, complaints = load_checkpoint(files.checkpoints)
    for complaint in complaints:
        log.warning("%s", complaint)
    if checkpoint is None:
        return spec, None
    then = RunSpec.make(**checkpoint.state["spec"])
    plan = {
        "plan": then.plan if spec.plan == "auto" else spec.plan,
        "parallel_batch_size": spec.parallel_batch_size or then.parallel_batch_size,
    }
    resolved = spec.model_copy(update=plan)
    if resolved != then.model_copy(update=plan):
        reason = "settings changed"
    elif not logs_reach(files, checkpoint.state["log_lengths"]):
        reason = "the run's logs are gone"
    else:
        return resolved, checkpoint
    log.info("%s since step %d: starting over", reason, checkpoint.step)
    for old in files.checkpoints.glob("step-*.safetensors"):
        old.unlink()
    return spec, None


def build_run(spec: RunSpec, cache_root: Path, device: torch.device) -> tuple[Run, dict[str, Any]]:
    """Build model, optimizers and data of a run at step 0, and the facts its manifest keeps of them."""
    data = _open_data(dataset_spec(spec), cache_root)
    guide_data = _open_data(guide_dataset_spec(spec), cache_root) if spec.bp_dataset else data
    model = build_model(
        spec.model_size,
        spec.architecture,
        data.vocab_size,
        spec.seed,
        device=device,
        gradient_checkpointing=spec.gradient_checkpointing,
    )
    named = select_scope(model, spec.scope)
    roles = parameter_roles(model, named)
    optimizers = build_optimizers(
        spec.optimizer,
        named,
        roles,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        cautious=spec.cautious,
    )
    plan, reason = _decide_plan(spec, data.vocab_size, device)
    if METHODS[spec.mode].uses and spec.query_budget_q:
        spec = spec.model_copy(update={"plan": plan.kind, "parallel_batch_size": plan.directions_in_flight})
    total = total_steps(spec, data.steps_per_epoch(spec.batch_size, spec.block_size))
    state = State(model, [p for _, p in named], optimizers, spec, plan, _objective_of(model, spec))
    run = Run(spec, state, named, data, guide_data, device, total, Ledger())
    trained = {id(p) for p in state.parameters}
    frozen = {name: p for name, p in model.named_parameters() if id(p) not in trained}
    facts = {
        "run": spec.name,
        "steps": total,
        "parameters": model.num_parameters(),
        "trainable_parameters": sum(p.numel() for p in state.parameters),
        "frozen_weights_sha256": digest({name: p.detach().cpu() for name, p in frozen.items()}),
        "plan": spec.query_budget_q
        and {"kind": plan.kind, "directions_in_flight": plan.directions_in_flight, "reason": reason},
        "cache": {"folder": data.folder.name} | read_json(data.folder / "timings.json"),
    }
    return run, facts


def _decide_plan(spec: RunSpec, vocab_size: int, device: torch.device) -> tuple[Plan, str]:
    return decide_plan(
        spec.plan,
        spec.parallel_batch_size,
        q=max(1, spec.query_budget_q),
        signs=2 if spec.sides == "two" else 1,
        tokens=spec.batch_size * spec.block_size,
        vocab_size=vocab_size,
        device=device.type,
    )


def _open_data(wanted: DatasetSpec, cache_root: Path) -> TokenCache:
    folder = cache_root / wanted.folder_name()
    return open_cache(folder if (folder / "meta.json").exists() else build_cache(wanted, cache_root))


def _objective_of(model: torch.nn.Module, spec: RunSpec):
    """Next-token prediction: position t of a block [B, T + 1] predicts token t + 1."""

    def objective(blocks: torch.Tensor) -> Objective:
        inputs = {"input_ids": blocks[:, :-1]}
        return Objective(model, F.cross_entropy, inputs, blocks[:, 1:], PRECISIONS[spec.precision])

    return objective


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU that is visible, if any. Raises UserError for one that isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is not allowed: auto, cpu, cuda or cuda:<index>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {name!r} is asked for, but torch {torch.__version__} sees no GPU")
    return device


def learning_rate(spec: RunSpec, step: int, total: int) -> float:
    """Of step 1 ... total: linear warm-up, then constant or a cosine down to FINAL_RATE of the peak."""
    if step <= spec.warmup_steps:
        return spec.learning_rate * step / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - spec.warmup_steps) / max(1, total - spec.warmup_steps)
    return spec.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2)


def _loop(run: Run, logs: Logs, files: RunFiles) -> Outcome:
    """Step to the end of the run, watching its loss; checkpoints fall between steps."""
    spec, ledger = run.spec, run.ledger
    if ledger.step == 0:
        logs.write_row(_row(run, None, run.validate()))
    stop = _Stop()
    started, before = time.perf_counter(), ledger.step
    bar = tqdm(total=run.total, initial=ledger.step, unit="step", disable=not sys.stderr.isatty())
    with stop, bar:
        while ledger.step < run.total:
            report = run.take_step()
            outcome = _watch(run, report)
            last = ledger.step == run.total or outcome is not None
            logs.write_scalars(ledger.step, _scalars(run, report))
            measured = last or ledger.step % spec.validation_interval == 0
            if measured or ledger.step % spec.log_interval == 0:
                val_loss = run.validate() if measured else None
                if val_loss is not None and not math.isfinite(val_loss):
                    outcome = outcome or Outcome("diverged", f"val_loss {val_loss} at step {ledger.step}")
                logs.write_row(_row(run, report, val_loss))
                pace = (time.perf_counter() - started) / (ledger.step - before)
                _tell(run, report, val_loss, bar, pace)
            bar.update()
            if outcome:
                return outcome
            if last or stop.received or ledger.step % spec.checkpoint_interval == 0:
                save_checkpoint(files.checkpoints, run.checkpoint(logs.lengths()))
            if stop.received and not last:
                log.info("%s: signal %d: stopped at step %d", spec.name, stop.received, ledger.step)
                raise Interrupted(128 + stop.received)
    return Outcome("done")


def _watch(run: Run, report: StepReport) -> Outcome | None:
    """Diverged: a loss that is no number, or far above chance for HIGH_STEPS logged steps in a row."""
    if not math.isfinite(report.loss):
        return Outcome("diverged", f"loss {report.loss} at step {run.ledger.step}")
    if run.ledger.step % run.spec.log_interval:
        return None
    limit = 2 * math.log(run.data.vocab_size)
    run.ledger.high_steps = run.ledger.high_steps + 1 if report.loss > limit else 0
    if run.ledger.high_steps >= HIGH_STEPS:
        return Outcome(
            "diverged", f"loss above {limit:.1f} for {HIGH_STEPS} logged steps, to {run.ledger.step}"
        )
    return None


def _row(run: Run, report: StepReport | None, val_loss: float | None) -> dict[str, Any]:
    """One row of the CSV; empty where a column does not apply to the method."""
    spec, ledger, used = run.spec, run.ledger, METHODS[run.spec.mode].uses
    row = {
        "epoch": f"{ledger.tokens / len(run.data.train):.6g}",
        "step": ledger.step,
        "mode": spec.mode,
        "scope": spec.scope,
        "q": spec.query_budget_q,
        "lr": spec.learning_rate,
        "current_lr": run.state.learning_rate if used and report else None,
        "batch_size": spec.batch_size,
        "block_size": spec.block_size,
        "optimizer": spec.optimizer if used else None,
        "bp_interval": spec.bp_interval,
        "epsilon": spec.epsilon if "epsilon" in used else None,
        "loss": report.loss if report else None,
        "val_loss": val_loss,
        "grad_norm": report.grad_norm if report else None,
        "cosine": report.cosine if report else None,
        "tokens": ledger.tokens,
        "tokens_evaluated": ledger.tokens_evaluated,
        "forward_passes": ledger.forward_passes,
        "backward_passes": ledger.backward_passes,
        "seconds": f"{ledger.seconds:.4f}",
        "tokens_per_second": f"{ledger.tokens / ledger.seconds:.1f}" if ledger.seconds else None,
        "peak_memory_mb": f"{peak_memory_mb(run.device):.1f}",
        "seed": spec.seed,
    }
    return {key: "" if value is None else value for key, value in row.items()}


def _scalars(run: Run, report: StepReport) -> dict[str, Any]:
    return {"learning_rate": run.state.learning_rate} | report.scalars if report.scalars else {}


def _tell(run: Run, report: StepReport, val_loss: float | None, bar: tqdm, pace: float) -> None:
    """Progress for people: in the bar on a terminal, as plain lines with the time left elsewhere."""
    words = {"loss": f"{report.loss:.4f}"} | ({"val_loss": f"{val_loss:.4f}"} if val_loss is not None else {})
    if not bar.disable:
        bar.set_postfix(words)
        return
    left = pace * (run.total - run.ledger.step)
    log.info(
        "step %d/%d %s left %.0f s", run.ledger.step, run.total, json.dumps(words).replace('"', ""), left
    )


class _Stop:
    """Inside it SIGTERM and SIGINT only leave a note in ``received``; the loop looks between steps."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = 0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def _note(self, number, frame):
        self.received = self.received or number

    def __exit__(self, *_):
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)
