"""Running one cell: build it, resume it, step it, and write down how it ended."""

import gc
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from zo.causes import RankLost, is_out_of_memory
from zo.distributed.ranks import ALONE, Ranks
from zo.errors import UserError
from zo.files import hold, read_json, write_json
from zo.methods import METHODS
from zo.spec import RunSpec, find_other_setting
from zo.training.attempt import Attempt
from zo.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from zo.training.job import recorded_job
from zo.training.loop import Outcome, step_to_end
from zo.training.record import FINISHED, Logs, RunFiles, describe_machine, logs_reach
from zo.training.run import Run, build_run, pick_device, prepare_torch, reads_other_text

log = logging.getLogger("zo")


@dataclass(frozen=True)
class Keep:
    """What is kept of a run's weights: at its end (study.KEEP), and after which steps."""

    at_end: str
    steps: frozenset[int]


@dataclass(frozen=True)
class Orders:
    """What the first rank has found in the run's files and the others need to take the same steps."""

    spec: RunSpec
    accumulation: int | None
    """Parts of the batch that backprop reads, where memory is short."""
    step: int | None
    """Of the checkpoint to go on from."""


def train(
    spec: RunSpec,
    results: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    replace: bool = True,
    keep: str = "checkpoint",
    keep_steps: Collection[int] = (),
    retry: bool = False,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Run one cell to its end, from its checkpoint if it has one; write all its files.

    ``replace`` False refuses to overwrite a run of the same name that ended with other settings; ``keep``
    is what is kept of a run that has ended (study.KEEP), ``keep_steps`` the steps whose trained weights
    are kept besides, in runs/<run>/kept/; ``retry`` refuses what a bug ended before. ``ranks`` are the
    processes that call this together: the first writes the files, all take the steps.

    A second process for the same run waits until the first is gone. Out of memory, the run goes on from its
    checkpoint with fewer directions in flight, or FO's batch in more parts. Raises UserError for what the
    user can correct, Interrupted (exit status 128 + signal) after SIGTERM or SIGINT, RankLost for a rank
    that is gone.
    """
    files = RunFiles(results, spec.name)
    prepare_torch(threads)
    if not ranks.is_first:
        return _follow(files, pick_device(device, ranks), ranks)
    outcome = _lead(spec, files, device, replace, Keep(keep, frozenset(keep_steps)), retry, ranks)
    return ranks.broadcast(outcome)


def _lead(
    spec: RunSpec, files: RunFiles, device: str, replace: bool, keep: Keep, retry: bool, ranks: Ranks
) -> Outcome:
    """What the first rank does, or the only one: all that has to do with files."""
    files.make_folders()
    before = read_json(files.outcome)
    with hold(files.lock), recorded_job(files):
        if ended := _ended_meanwhile(before, spec, files):
            log.info("%s: another process finished it meanwhile: %s", spec.name, ended.status)
            return ended
        if not replace:
            _refuse_other_settings(spec, files)
        files.remove_leftovers()
        attempt = Attempt(files.attempt, spec, retry=retry)
        try:
            outcome = _train_within_memory(spec, files, pick_device(device, ranks), attempt, keep, ranks)
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.end(outcome.status)
        log.info("%s: %s%s", spec.name, outcome.status, f" ({outcome.reason})" if outcome.reason else "")
        return outcome


def _follow(files: RunFiles, device: torch.device, ranks: Ranks) -> Outcome:
    """What every other rank does: the steps, by the first one's orders."""
    while isinstance(orders := ranks.broadcast(None), Orders):
        try:
            run, _ = build_run(orders.spec, files.results / "cache", device, orders.accumulation, ranks)
            if orders.step is not None:
                run.restore(read_checkpoint(checkpoint_path(files.checkpoints, orders.step)))
            step_to_end(run, files, None)
        except FloatingPointError:
            pass  # diverged: the first rank says so
        except Exception as error:
            _require_shortage_of_all(error, ranks)
        run = None
        _release_memory(device)
    return orders


def _train_within_memory(
    spec: RunSpec, files: RunFiles, device: torch.device, attempt: Attempt, keep: Keep, ranks: Ranks
) -> Outcome:
    """Go on from the last checkpoint with less in memory, for as long as that can help."""
    while True:
        try:
            return _train(spec, files, device, attempt, keep, ranks)
        except Exception as error:
            _require_shortage_of_all(error, ranks)
            attempt.reduce(str(error).split("\n")[0] or type(error).__name__)
        _release_memory(device)


def _require_shortage_of_all(error: Exception, ranks: Ranks) -> None:
    """Go on only after a lack of memory that all ranks know of; one of them alone can but leave."""
    if not is_out_of_memory(error) or isinstance(error, RankLost):
        raise error
    if not ranks.agreed(error):
        raise RankLost(f"rank {ranks.rank}: out of memory: {error}") from error


def _release_memory(device: torch.device) -> None:
    gc.collect()  # the run that did not fit: its last references went with the error
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _train(
    spec: RunSpec, files: RunFiles, device: torch.device, attempt: Attempt, keep: Keep, ranks: Ranks
) -> Outcome:
    """From the last checkpoint to the end, and what is left then."""
    run, logs = _start(spec, files, device, attempt, ranks)
    run.keep_steps = keep.steps
    try:
        outcome = step_to_end(run, files, logs)
    except FloatingPointError as error:
        outcome = Outcome("diverged", str(error))
    finally:
        logs.close()
    checksum = run.weights_digest() if outcome.status == "done" else None
    files.write_outcome(outcome.status, outcome.reason, run.ledger.step, checksum)
    _keep(run, files, outcome.status, keep.at_end)
    return outcome


def _start(
    spec: RunSpec, files: RunFiles, device: torch.device, attempt: Attempt, ranks: Ranks
) -> tuple[Run, Logs]:
    """Build the run as the attempts before left it, tell the other ranks, and say in its files what it is."""
    attempt.begin()
    limits = dict(attempt.limits)
    accumulation = limits.pop("gradient_accumulation", None)  # in the run's name: its spec must not change
    spec, checkpoint = _resume(spec.model_copy(update=attempt.plan | limits), files)
    if checkpoint is None and _is_of_another(files, spec):
        files.drop_logs()  # else a crash before the first row would publish them as this run's
    ranks.broadcast(Orders(spec, accumulation, checkpoint and checkpoint.step))
    run, facts = build_run(spec, files.results / "cache", device, accumulation, ranks)
    attempt.begin(run.state.spec)
    write_json(files.folder / "spec.json", run.spec.model_dump())
    facts |= {"out_of_memory": attempt.reductions}
    facts |= describe_machine(str(device), torch.get_num_threads())
    write_json(files.folder / "manifest.json", facts)
    if checkpoint is None:
        files.drop_result()  # of a run of this name that had other settings, maybe
    logs = Logs(files, run.restore(checkpoint) if checkpoint else None)
    _announce(run, facts["plan"])
    return run, logs  # the checkpoint goes here: it is as large as what is trained


def _announce(run: Run, plan: dict | None) -> None:
    """Say where the run starts, and what was chosen for it."""
    spec, step = run.spec, run.ledger.step
    log.info("%s: %s", spec.name, f"resumed at step {step}" if step else "started")
    if "learning_rate" not in spec.model_fields_set and METHODS[spec.mode].uses:
        log.info("learning_rate %g (the default; FO and ZO want rates far apart)", spec.learning_rate)
    if plan:
        log.info("plan: %s, directions in flight %s: %s", *plan.values())


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
    if now == before or now.get("status") not in FINISHED or _is_of_another(files, spec):
        return None
    return Outcome(now["status"], now["reason"])


def _is_of_another(files: RunFiles, spec: RunSpec) -> bool:
    """Whether what lies here is of a run of this name that had another setting, or read another text."""
    stored, manifest = (read_json(files.folder / name) for name in ("spec.json", "manifest.json"))
    return find_other_setting(spec, stored) is not None or reads_other_text(spec, manifest)


def _refuse_other_settings(spec: RunSpec, files: RunFiles) -> None:
    """A name does not carry all settings: by hand, another study's finished run must not be lost."""
    stored = read_json(files.folder / "spec.json")
    if not files.outcome.exists() or not stored:
        return
    if other := find_other_setting(spec, stored):
        key, before, value = other
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
    elif reads_other_text(resolved, checkpoint.state):
        reason = "the corpus or the tokenizer changed"
    elif not logs_reach(files, checkpoint.state["log_lengths"]):
        reason = "the run's logs are gone"
    else:
        return resolved, checkpoint
    log.info("%s since step %d: starting over", reason, checkpoint.step)
    for old in files.checkpoints.glob("step-*.safetensors"):
        old.unlink()
    return spec, None
