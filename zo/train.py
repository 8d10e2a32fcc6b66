"""Running one cell: build it, resume it, step it, and write down how it ended."""

import gc
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
from tqdm import tqdm

from zo.attempt import Attempt
from zo.causes import is_out_of_memory
from zo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_checkpoint
from zo.errors import UserError
from zo.files import hold, read_json, write_json
from zo.job import recorded_job
from zo.ledger import peak_memory_mb
from zo.methods import METHODS, StepReport
from zo.record import Logs, RunFiles, describe_machine, logs_reach
from zo.run import Run, build_run, pick_device
from zo.spec import RunSpec

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


def train(
    spec: RunSpec,
    results: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    replace: bool = True,
    keep: str = "checkpoint",
    retry: bool = False,
) -> Outcome:
    """Run one cell to its end, from its checkpoint if it has one; write all its files.

    ``replace`` False refuses to overwrite a run of the same name that ended with other settings; ``keep``
    is what is kept of a run that has ended (zo.record.KEEP); ``retry`` refuses what a bug ended before.

    A second process for the same run waits until the first is gone. Out of memory, the run goes on from its
    checkpoint with fewer directions in flight, or FO's batch in more parts. Raises UserError for what the
    user can correct and Interrupted (exit status 128 + signal) after SIGTERM or SIGINT.
    """
    files = RunFiles(results, spec.name)
    files.make_folders()
    before = read_json(files.outcome)
    with hold(files.folder / ".lock"), recorded_job(files):
        if ended := _ended_meanwhile(before, spec, files):
            log.info("%s: another process finished it meanwhile: %s", spec.name, ended.status)
            return ended
        if not replace:
            _refuse_other_settings(spec, files)
        files.remove_leftovers()
        torch.set_num_threads(threads or torch.get_num_threads())
        attempt = Attempt(files.attempt, spec, retry=retry)
        try:
            outcome = _train_within_memory(spec, files, pick_device(device), attempt, keep)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.end(outcome.status)
        log.info("%s: %s%s", spec.name, outcome.status, f" ({outcome.reason})" if outcome.reason else "")
        return outcome


def _train_within_memory(
    spec: RunSpec, files: RunFiles, device: torch.device, attempt: Attempt, keep: str
) -> Outcome:
    """Go on from the last checkpoint with less in memory, for as long as that can help."""
    while True:
        try:
            return _train(spec, files, device, attempt, keep)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            attempt.reduce(str(error).split("\n")[0] or type(error).__name__)
        gc.collect()  # the run that did not fit: its last references went with the error
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _train(spec: RunSpec, files: RunFiles, device: torch.device, attempt: Attempt, keep: str) -> Outcome:
    attempt.begin()
    limits = dict(attempt.limits)
    accumulation = limits.pop("gradient_accumulation", None)  # in the run's name: its spec must not change
    spec, checkpoint = _resume(spec.model_copy(update=limits), files)
    run, facts = build_run(spec, files.results / "cache", device, accumulation)
    attempt.begin(run.state.spec)
    write_json(files.folder / "spec.json", run.spec.model_dump())
    facts |= {"out_of_memory": attempt.reductions}
    facts |= describe_machine(str(device), torch.get_num_threads())
    write_json(files.folder / "manifest.json", facts)
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
    checksum = run.weights_digest() if outcome.status == "done" else None
    files.write_outcome(outcome.status, outcome.reason, run.ledger.step, checksum)
    _keep(run, files, outcome.status, keep)
    return outcome


def _keep(run: Run, files: RunFiles, status: str, keep: str) -> None:
    """Leave the final weights in place of the checkpoints; a diverged run has none worth a file."""
    if keep == "checkpoint":
        if status == "done":
            files.keep_final_weights()
        return
    if status == "done" and keep == "weights":
        write_checkpoint(files.final, run.checkpoint(None))
    else:
        files.final.unlink(missing_ok=True)
    files.drop_checkpoints()


def _ended_meanwhile(before: dict, spec: RunSpec, files: RunFiles) -> Outcome | None:
    """How another process ended this run while we waited: the job of a killed Snakemake lives on."""
    now = read_json(files.outcome)
    if now == before or now["status"] not in ("done", "diverged"):
        return None
    plan = {"plan": spec.plan, "parallel_batch_size": spec.parallel_batch_size}
    same = read_json(files.folder / "spec.json") | plan == spec.model_dump()
    return Outcome(now["status"], now["reason"]) if same else None


def _refuse_other_settings(spec: RunSpec, files: RunFiles) -> None:
    """A name does not carry all settings: by hand, another study's finished run must not be lost."""
    stored, plan = read_json(files.folder / "spec.json"), ("plan", "parallel_batch_size")
    if not files.outcome.exists() or not stored:
        return
    for key, value in spec.model_dump().items():
        before = stored.get(key, RunSpec.model_fields[key].default)  # a setting that is younger than the run
        if key not in plan and before != value:
            raise UserError(
                f"{files.folder} holds a run of this name with another {key} "
                f"({before}, not {value}): choose another --results, or delete it"
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
