"""The loop of a run: step, watch the loss, write rows and checkpoints, stop where it is told to."""

import json
import logging
import math
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from zo.causes import RankLost
from zo.files import make_folder
from zo.methods import METHODS
from zo.step import StepReport
from zo.training.checkpoint import checkpoint_path, save_checkpoint, write_checkpoint
from zo.training.ledger import peak_memory_mb
from zo.training.record import Logs, RunFiles
from zo.training.run import Run

log = logging.getLogger("zo")

HIGH_STEPS = 20
"""Logged steps in a row above twice ln(vocabulary) that make a run diverged."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``done`` or ``diverged``, and why."""

    status: str
    reason: str | None = None


class Interrupted(SystemExit):
    """A signal asked the run to stop; its checkpoint is written."""


def step_to_end(run: Run, files: RunFiles, logs: Logs | None) -> Outcome:
    """Step to the end of the run, watching its loss; checkpoints fall between steps.

    Every rank does the same; the first alone has ``logs`` and writes.
    """
    if run.ledger.step == 0:
        val_loss = run.validate()
        if logs:
            logs.write_row(_row(run, None, val_loss))
    stop, progress = _Stop(), _Progress(run, shown=logs is not None)
    with stop, progress.bar:
        while run.ledger.step < run.total:
            report = run.take_step()
            told = run.state.ranks.agree(stop.received)  # of the step's own exchange, not of validation's
            outcome = _log_step(run, report, logs, progress)
            progress.bar.update()
            if outcome:
                return outcome
            _save(run, files, logs, told)
            if told and run.ledger.step < run.total:
                log.info("%s: signal %d: stopped at step %d", run.spec.name, told, run.ledger.step)
                raise Interrupted(128 + told)
    return Outcome("done")


def _log_step(run: Run, report: StepReport, logs: Logs | None, progress: "_Progress") -> Outcome | None:
    """Measure and write down a step, as far as it is due; the outcome if the run has diverged."""
    spec, step, outcome = run.spec, run.ledger.step, _watch(run, report)
    if logs:
        logs.write_scalars(step, _scalars(run, report))
    measured = outcome or step == run.total or step % spec.validation_interval == 0
    if not measured and step % spec.log_interval:
        return None
    val_loss = run.validate() if measured else None
    if val_loss is not None and not math.isfinite(val_loss):
        outcome = outcome or Outcome("diverged", f"val_loss {val_loss} at step {step}")
    if logs:
        logs.write_row(_row(run, report, val_loss))
        progress.tell(report, val_loss)
    return outcome


def _save(run: Run, files: RunFiles, logs: Logs | None, told: int) -> None:
    """Write the weights that are kept of this step, and the checkpoint that is due or was told for."""
    spec, ledger = run.spec, run.ledger
    last = ledger.step == run.total
    if logs and ledger.step in run.keep_steps:
        # Before the checkpoint: a run that goes on from it does not make these weights again.
        kept = checkpoint_path(make_folder(files.kept), ledger.step)
        write_checkpoint(kept, run.checkpoint(None))
    if last or told or ledger.step % spec.checkpoint_interval == 0:
        run.state.ranks.require_same(f"the weights at step {ledger.step}", run.weights_digest)
        if logs:
            save_checkpoint(files.checkpoints, run.checkpoint(logs.lengths()))


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


class _Progress:
    """Progress for people: in a bar on a terminal, as plain lines with the time left elsewhere."""

    def __init__(self, run: Run, shown: bool):
        self._run, self._first, self._started = run, run.ledger.step, time.perf_counter()
        silent = not (shown and sys.stderr.isatty())
        self.bar = tqdm(total=run.total, initial=self._first, unit="step", disable=silent)

    def tell(self, report: StepReport, val_loss: float | None) -> None:
        """Say what the last step's row says."""
        words = {"loss": f"{report.loss:.4f}"}
        words |= {"val_loss": f"{val_loss:.4f}"} if val_loss is not None else {}
        if not self.bar.disable:
            self.bar.set_postfix(words)
            return
        step, total = self._run.ledger.step, self._run.total
        left = (time.perf_counter() - self._started) / (step - self._first) * (total - step)
        log.info("step %d/%d %s left %.0f s", step, total, json.dumps(words).replace('"', ""), left)


class _Stop:
    """Inside it SIGTERM and SIGINT only leave a note in ``received``; the loop looks between steps.

    Where an error is quicker, the signal takes its course after it.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = 0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def _note(self, number, frame):
        self.received = self.received or number

    def __exit__(self, kind, *_):
        if kind is RankLost:  # the launcher now stops the rest, and why has still to be written down
            return
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)
        if self.received and kind not in (None, Interrupted):
            signal.raise_signal(self.received)  # or a run short of memory would go on with less
