"""A run's weights, at its start, its end or a step between, under the probe: results/probes/<run>.csv."""

import copy
import csv
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from zo.engine.plan import Plan
from zo.engine.probe import COLUMNS, ProbeSettings, probe
from zo.errors import UserError, unknown
from zo.files import make_folder, read_json, write_aside
from zo.methods import METHODS
from zo.models import select_scope
from zo.sizes import validate_scope
from zo.spec import RunSpec
from zo.training.checkpoint import checkpoint_path, read_checkpoint
from zo.training.record import RunFiles
from zo.training.replay import replay
from zo.training.run import Run, build_run, objective_of, pick_device, prepare_torch, reads_other_text

log = logging.getLogger("zo")

PLACES = ("start", "end")
OWN = ("run", "mode", "at", "step")


def probe_run(
    folder: Path,
    *,
    scopes: Sequence[str] = (),
    places: Sequence[str] = ("end",),
    batches: int = 4,
    settings: ProbeSettings | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> Path:
    """Probe the run in ``folder`` and write the rows; the file's path.

    ``scopes`` of the model, the run's own if none are given; ``places``: start, end and steps whose weights
    the run kept, in any order, measured in the run's; ``batches``: as many of those that would follow the
    run's last, whose text it has not read if it ends within an epoch. ``settings``: eps, family and rank are
    the run's unless given. A place whose weights are not there is a warning; raises UserError where
    no other is left.
    """
    spec, files = read_run(folder)
    manifest = read_json(files.folder / "manifest.json")
    if reads_other_text(spec, manifest):
        raise UserError(
            f"{folder}: the corpus or the tokenizer is no longer that of the run, which read the caches "
            f"{', '.join(manifest['caches'])}: put it back, or make the run again"
        )
    prepare_torch(threads)
    for scope in scopes:
        validate_scope(scope, spec.model_size, spec.architecture)
    places = sorted(set(places), key=place_order)
    settings = settings or of_run(spec)
    run, _ = build_run(spec, files.results / "cache", pick_device(device))
    rows, lacking = [], []
    for place in places:
        try:
            step = _go_to(run, place, files)
        except UserError as error:  # what the other places say is worth having
            log.warning("%s: %s is not probed: %s", spec.name, place, error)
            lacking.append(error)
            continue
        if step is None:
            continue
        own = dict(zip(OWN, (spec.name, spec.mode, place, step), strict=True))
        for scope in scopes or [spec.scope]:
            rows += [own | {"scope": scope} | row for row in _probe_scope(run, scope, batches, settings)]
    if lacking and not rows:
        raise lacking[0]
    path = out or files.probe
    make_folder(path.parent)
    write_aside(path, _as_csv(rows))
    return path


def of_run(spec: RunSpec) -> ProbeSettings:
    """The probe's defaults with a run's own epsilon and family of directions."""
    family = {"family": spec.direction_family, "rank": spec.rank, "epsilon": spec.epsilon}
    return replace(ProbeSettings(), **family)


def read_run(folder: Path) -> tuple[RunSpec, RunFiles]:
    """The run of a folder results/runs/<run>. Raises UserError for another folder."""
    spec = read_json(folder / "spec.json")
    if not spec:
        raise UserError(f"{folder} is not a run's folder: it has no spec.json")
    spec = RunSpec.make(**spec)
    return spec, RunFiles(folder.resolve().parents[1], folder.resolve().name)


def place_order(place: str) -> float:
    """Where a place lies in a run, to sort by. Raises UserError for what is none."""
    if place.isascii() and place.isdecimal() and int(place):
        return int(place)
    if place not in PLACES:
        raise unknown("place", place, [*PLACES, "a step from 1"])
    return {"start": 0, "end": math.inf}[place]


def _go_to(run: Run, place: str, files: RunFiles) -> int | None:
    """Put the weights of a place into the run, which has those of an earlier one; its step.

    None, with a warning, where the run never came. Raises UserError where it did and kept no weights.
    """
    if place == "start":
        return 0
    outcome, status = read_json(files.outcome), read_json(files.outcome).get("status")
    if place == "end":
        weights = _final_weights(run, files) if status == "done" else None
    else:
        weights = _kept_weights(int(place), files, outcome.get("step", 0))
    if weights is None:
        log.warning("%s: %s: no weights of %s to probe", run.spec.name, status or "not finished", place)
        return None
    with torch.no_grad():
        for name, parameter in run.named:
            parameter.copy_(weights[name])
    return run.total if place == "end" else int(place)


def _final_weights(run: Run, files: RunFiles) -> dict[str, torch.Tensor]:
    """Those that the run kept, or those that its scalars give."""
    if files.final.exists():
        return _read_weights(files.final)
    if METHODS[run.spec.mode].backward_passes(run.spec, 1, run.total) == 0:
        replayed = replay(files.folder)
        if not replayed.equal:
            raise UserError(
                f"{files.folder} kept no weights, and here they come out other: {replayed.report}"
            )
        return replayed.weights
    raise UserError(f"{files.folder} has no final weights: probe its start, or repeat it with --keep weights")


def _kept_weights(step: int, files: RunFiles, reached: int) -> dict[str, torch.Tensor] | None:
    path = checkpoint_path(files.kept, step)
    if path.exists():
        return _read_weights(path)
    if step <= reached:
        target = Path(os.path.relpath(files.csv))  # as Snakemake names it where the sweep runs
        raise UserError(
            f"{files.folder} kept no weights of step {step}: make it again with --keep-steps {step}, "
            f"in a sweep with `snakemake --force {target} --configfile` and its study file"
        )
    return None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = read_checkpoint(path).tensors
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): make the run again") from None
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


def _probe_scope(run: Run, scope: str, batches: int, settings: ProbeSettings) -> Iterator[dict[str, Any]]:
    model = copy.deepcopy(run.state.model)  # a scope may untie the head
    parameters = [parameter for _, parameter in select_scope(model, scope)]
    further = range(run.total + 1, run.total + 1 + batches)
    objectives = [objective_of(model, run.spec)(run.batch(run.data, step)) for step in further]
    plan = Plan("parallel", run.state.plan.directions_in_flight)
    return probe(objectives, parameters, settings, seed=run.spec.seed, plan=plan)


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*OWN, *COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
