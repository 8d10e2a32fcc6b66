"""A run's weights, at its start or its end, under the probe: results/probes/<run>.csv."""

import copy
import csv
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zo.errors import UserError, unknown
from zo.files import make_folder, read_json, write_aside
from zo.methods import METHODS
from zo.models import select_scope
from zo.plan import Plan
from zo.probe import COLUMNS, ProbeSettings, probe
from zo.record import RunFiles
from zo.replay import replay
from zo.run import Run, build_run, objective_of, pick_device
from zo.sizes import validate_scope
from zo.spec import RunSpec

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

    ``scopes`` of the model, the run's own if none are given; ``batches`` are ones that the run has not read.
    ``settings``: eps, family and rank are the run's unless given. Raises UserError for a run whose weights
    are not there.
    """
    spec, files = read_run(folder)
    if threads:
        torch.set_num_threads(threads)
    for scope in scopes:
        validate_scope(scope, spec.model_size, spec.architecture)
    if wrong := [place for place in places if place not in PLACES]:
        raise unknown("place", wrong[0], PLACES)
    settings = settings or of_run(spec)
    run, _ = build_run(spec, files.results / "cache", pick_device(device))
    rows = []
    for place in places:
        if place == "end" and (status := read_json(files.outcome).get("status")) != "done":
            log.warning("%s: %s: no final weights to probe", spec.name, status or "not finished")
            continue
        if place == "end":
            _load_final(run, files)
        own = dict(zip(OWN, (spec.name, spec.mode, place, run.total if place == "end" else 0), strict=True))
        for scope in scopes or [spec.scope]:
            rows += [own | {"scope": scope} | row for row in _probe_scope(run, scope, batches, settings)]
    path = out or make_folder(files.results / "probes") / f"{spec.name}.csv"
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


def _load_final(run: Run, files: RunFiles) -> None:
    """Put the run's final weights in: those it kept, or those that its scalars give."""
    if files.final.exists():
        found = load_file(files.final)
        weights = {name: found[f"model.{name}"] for name, _ in run.named}
    elif METHODS[run.spec.mode].backward_passes(run.spec, 1, run.total) == 0:
        weights = replay(files.folder).weights
    else:
        raise UserError(
            f"{files.folder} has no final weights: probe its start, or repeat it with --keep weights"
        )
    with torch.no_grad():
        for name, parameter in run.named:
            parameter.copy_(weights[name])


def _probe_scope(run: Run, scope: str, batches: int, settings: ProbeSettings) -> Iterator[dict[str, Any]]:
    model = copy.deepcopy(run.state.model)  # a scope may untie the head
    parameters = [parameter for _, parameter in select_scope(model, scope)]
    unread = range(run.total + 1, run.total + 1 + batches)
    objectives = [objective_of(model, run.spec)(run.batch(run.data, step)) for step in unread]
    plan = Plan("parallel", run.state.plan.directions_in_flight)
    return probe(objectives, parameters, settings, seed=run.spec.seed, plan=plan)


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*OWN, *COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
