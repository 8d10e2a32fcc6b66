"""Rebuilding a ZO run's final weights from its scalar log: the seed and q coefficients a step, no data.

Every direction is a function of (seed, step, query, parameter), so the coefficients are all that the data
ever gave an update. What follows is the run's own path: the same estimate, the same method's direction,
the same optimizers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from zo.engine.estimate import Estimate
from zo.engine.plan import Plan
from zo.errors import UserError
from zo.files import read_json
from zo.methods import METHODS
from zo.spec import RunSpec
from zo.step import State, descend, make_directions
from zo.training.checkpoint import digest, write_tensors
from zo.training.run import build_state, frozen_digest, pick_device, prepare_torch


@dataclass(frozen=True)
class Replayed:
    """What a replay made, and whether its weights are the run's own."""

    equal: bool
    report: str
    weights: dict[str, torch.Tensor]


def replay(
    folder: Path, *, device: str | None = None, threads: int | None = None, out: Path | None = None
) -> Replayed:
    """Make the final weights of the run in ``folder`` again and compare them with its checksum.

    Bits are promised with the run's own model of device, threads and versions, which are the defaults but for
    versions. Raises UserError for a run that has not ended, took backprop steps or whose log is damaged.
    """
    spec, outcome, manifest = _read_run(folder)
    prepare_torch(threads or manifest["threads"])
    device = _device_of(manifest, device)
    state, named = build_state(spec, manifest["vocab_size"], device, Plan(), outcome["step"])
    if frozen_digest(state.model, named) != manifest["frozen_weights_sha256"]:
        raise UserError(
            f"{folder}: its initial weights cannot be made again here: "
            f"they were made by {manifest['versions']}, on {manifest['platform']}"
        )
    lines = _read_scalars(folder / "scalars.jsonl", outcome["step"]) if METHODS[spec.mode].uses else []
    for line in tqdm(lines, unit="step", disable=None):
        _repeat_step(state, line)
    weights = {name: parameter.detach().cpu() for name, parameter in named}
    found = digest(weights)
    if out:
        write_tensors(out, weights)
    equal = found == outcome["weights_sha256"]
    verdict = "equal to the run's" if equal else f"NOT the run's, {outcome['weights_sha256']}"
    report = f"{spec.name}: {len(lines)} steps replayed: weights sha256 {found}: {verdict}"
    return Replayed(equal, report, weights)


def _read_run(folder: Path) -> tuple[RunSpec, dict, dict]:
    """Spec, outcome and manifest of a run that can be replayed."""
    files = {name: folder / f"{name}.json" for name in ("spec", "outcome", "manifest")}
    spec, outcome, manifest = (read_json(path) for path in files.values())
    if not spec:
        raise UserError(f"{folder} is not a run's folder: it has no spec.json")
    spec = RunSpec.make(**spec)
    if not outcome.get("weights_sha256") or "vocab_size" not in manifest:
        status = outcome.get("status", "not finished")
        raise UserError(
            f"{folder}: the run is {status}: only the weights of a run that is done have a checksum"
        )
    method = METHODS[spec.mode]
    for step in range(1, outcome["step"] + 1):
        if method.backward_passes(spec, step, outcome["step"]):
            raise UserError(
                f"{folder}: step {step} is a backprop step of mode {spec.mode}: its gradient is not in the "
                "scalar log, so it cannot be replayed from scalars; use the run's final.safetensors"
            )
    if method.uses and not hasattr(method, "direction"):
        raise UserError(
            f"{folder}: mode {spec.mode} cannot be replayed: its updates are not a function of the scalar "
            "log; use the run's final.safetensors"
        )
    return spec, outcome, manifest


def _device_of(manifest: dict, asked: str | None) -> torch.device:
    """Noise differs between kinds of devices, so the run's own kind is the default and the only one."""
    kind = torch.device(manifest["device"]).type
    device = pick_device(asked or kind)
    if device.type != kind:
        raise UserError(f"device: {asked!r} makes other noise than the run's {kind}: replay on {kind}")
    return device


def _read_scalars(path: Path, steps: int) -> list[dict]:
    """The log's lines of steps 1 ... ``steps``, all of them."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found = [line["step"] for line in lines if line["coefficients"] and line["learning_rate"] is not None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no scalar log: {type(error).__name__}: {error}") from None
    if found != list(range(1, steps + 1)):
        wrong = next((n for n, step in enumerate(found, start=1) if n != step), len(found) + 1)
        raise UserError(f"{path}: the run made {steps} steps, but line {wrong} is not step {wrong}'s")
    return lines


def _repeat_step(state: State, line: dict) -> None:
    """Make the update of one line of the log."""
    state.step, state.learning_rate = line["step"], line["learning_rate"]
    directions = make_directions(state)
    coefficients = torch.tensor(line["coefficients"], dtype=torch.float64)
    estimate = Estimate(directions, coefficients, float("nan"), 0, directions.scale)
    descend(state, METHODS[state.spec.mode]().direction(state, estimate))
