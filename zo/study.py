"""A study: the file that lists axes and settings, and the grid of runs it stands for."""

import fnmatch
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from zo.data.dataset import DatasetSpec
from zo.errors import UserError, suggest, unknown
from zo.fields import Integer, Number, describe
from zo.lengths import LENGTHS
from zo.methods import METHODS
from zo.sizes import parse_scope, validate_scope
from zo.spec import AXES, RunSpec, dataset_spec, guide_dataset_spec, parse_name, uses

PLURAL = {
    "mode": "modes",
    "scope": "scopes",
    "batch_size": "batch_sizes",
    "query_budget_q": "query_budgets",
    "learning_rate": "learning_rates",
}
"""Keys of the axes that every name spells out; every other key is the setting's own name."""
RESERVED = ("cache", "csv_logs", "job_logs", "runs", "plots", "probes")
"""Folders of the default study, which no other study may be named like."""
KEEP = ("checkpoint", "weights", "nothing")
"""What can be kept of a finished run: weights and optimizer state, weights alone, or neither."""
REQUIRED = ("study", "modes", "learning_rates")
FURTHER = "also"
"""Key of the further grids of a study: a list of mappings, each the study's own keys but for what it says."""

GRID_KEYS = (
    *(PLURAL.get(key, key) for key in AXES),
    *(key for key in RunSpec.model_fields if key not in AXES),
)
"""Keys of one grid of runs: the axes and the settings that its runs share."""


def _read_gpus(value: Any) -> Any:
    """``auto``, ``none`` or a tuple of ids (numbers, or UUIDs as nvidia-smi -L prints them)."""
    if isinstance(value, str):
        if value in ("auto", "none"):
            return value
        value = value.split(",")  # --config gpus=0,2
    ids = [str(name).strip() for name in value] if isinstance(value, list | tuple) else [""]
    if not ids or not all(re.fullmatch(r"\d+|(GPU|MIG)-[\w./-]+", name) for name in ids):
        raise ValueError("must be auto, none or a list of ids, e.g. [0, 2]")
    return tuple(dict.fromkeys(ids))


Gpus = Annotated[str | tuple[str, ...], BeforeValidator(_read_gpus)]


def _list_values(value: Any) -> Any:
    """The values of a list, of text with commas (`zo sweep`, --config), or one alone."""
    value = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    return value if isinstance(value, list | tuple) else (value,)


Words = Annotated[tuple[str, ...], BeforeValidator(_list_values)]
Step = Annotated[Integer, Field(ge=1)]
Steps = Annotated[
    tuple[Step, ...], BeforeValidator(_list_values), AfterValidator(lambda steps: tuple(sorted(set(steps))))
]


class Workflow(BaseModel):
    """The keys of a study file that say how to run it, not what a run is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str = Field(description="its name; results go to results/, or results/<study>/ if not 'default'")
    threads: Integer = Field(1, ge=1, description="CPU threads of one run, of each of its ranks")
    gpus: Gpus = Field(
        "auto", description="GPUs that local runs may use: all visible, none, or a list of ids"
    )
    jobs_per_gpu: Integer = Field(1, ge=1, description="runs that share a GPU; on Slurm always 1")
    gpus_per_run: Integer = Field(
        1, ge=0, description="GPUs of one run, of each of its ranks, where the machine has any"
    )
    retries: Integer = Field(
        1,
        ge=0,
        description="further attempts after a kill or a full disk; a bug gets none",
    )
    keep: Literal[*KEEP] = Field(
        "checkpoint", description="of a finished run: weights and optimizer state, weights alone, or neither"
    )
    plot_each_run: bool = Field(False, description="draw one curve for each run too")
    probe: Words = Field(
        (), description="runs whose estimates are held against the exact gradient: names, with * and ?"
    )
    probe_scopes: Words = Field(
        (), description="scopes of those runs' models that are probed; their own if none"
    )
    probe_steps: Steps = Field(
        (), description="steps at which those runs are probed too, beside their start and end"
    )
    backward_cost: Number = Field(
        2.0, ge=0, description="forward passes that one backward pass counts as, where costs are compared"
    )
    claims: bool = Field(False, description="judge the paper's claims by the runs: claims.csv")
    probe_batches: Integer = Field(
        4, ge=1, description="batches of each probe: its intervals narrow with their square root"
    )


@dataclass(frozen=True)
class Study:
    """The runs of a study by name, and the settings that a run outside the grid shares with them."""

    workflow: Workflow
    runs: dict[str, RunSpec]
    settings: dict[str, Any] = field(repr=False)

    @property
    def results(self) -> str:
        """Folder of the results, relative to where snakemake runs."""
        name = self.workflow.study
        return "results" if name == "default" else f"results/{name}"

    def resolve(self, run: str) -> RunSpec:
        """The spec of any run name: of a cell of the grid, or of one outside it with the same settings."""
        return self.runs[run] if run in self.runs else parse_name(run, **self.settings)

    def probed(self) -> list[str]:
        """Names of the runs that ``probe`` asks for. Raises UserError for a pattern that fits none."""
        for pattern in self.workflow.probe:
            if not fnmatch.filter(self.runs, pattern):
                raise UserError(
                    f"probe: {pattern!r} fits no run of the study, e.g. {next(iter(self.runs))!r}"
                )
        return [run for run in self.runs if any(fnmatch.fnmatchcase(run, p) for p in self.workflow.probe)]

    def caches(self) -> dict[str, DatasetSpec]:
        """Folder name -> DatasetSpec of every token cache that the grid's runs read."""
        datasets = {dataset: None for spec in self.runs.values() for dataset in caches_of(spec)}
        return {dataset.folder_name(): dataset for dataset in datasets}


def caches_of(spec: RunSpec) -> list[DatasetSpec]:
    """The DatasetSpecs a run reads: its corpus, and the corpus of its backprop batches if another."""
    return list(dict.fromkeys([dataset_spec(spec), guide_dataset_spec(spec)]))


def load_study(config: Mapping[str, Any], *, check_data: bool = True) -> Study:
    """Check a study file's content and expand its grid. Raises UserError, one line.

    ``check_data``: that its corpora can be read too, which finished runs no longer need.
    """
    _check_keys(config)
    own = {key: config[key] for key in Workflow.model_fields if key in config}
    try:
        workflow = Workflow(**own)
    except ValidationError as error:
        raise UserError(describe(error, Workflow)) from None
    if not workflow.study.replace("-", "").replace("_", "").isalnum():
        raise UserError(
            f"study: {workflow.study!r} is not allowed: it names a folder: letters, digits, - and _"
        )
    if workflow.study in RESERVED:
        raise UserError(
            f"study: {workflow.study!r} is not allowed: results/ has a folder of that name already"
        )
    runs: dict[str, RunSpec] = {}
    for grid in (config, *_further_grids(config)):
        for cell in _expand(grid):
            spec = RunSpec.make(**_common_settings(grid), **cell)
            if runs.setdefault(spec.name, spec) != spec:
                raise UserError(
                    f"{FURTHER}: two grids give {spec.name} different settings: {_differ(spec, runs)}: "
                    "tell them apart by an axis, or make two studies"
                )
    study = Study(workflow, runs, _common_settings(config))
    _check_probes(study)
    for dataset in study.caches().values() if check_data else ():
        dataset.source().check()  # a corpus that can't be read is an error before any job
    return study


def _check_probes(study: Study) -> None:
    """Every scope that is to be probed is one of every probed run, every step one of the longest."""
    workflow, probed = study.workflow, [study.runs[run] for run in study.probed()]
    if workflow.probe_steps and not probed:
        raise UserError("probe_steps: no run is probed: name runs with the key probe")
    for scope in workflow.probe_scopes:
        parse_scope(scope)
    for spec in probed:
        for scope in workflow.probe_scopes:
            validate_scope(scope, spec.model_size, spec.architecture)
    longest = max((spec.max_steps or math.inf for spec in probed), default=0)
    if beyond := [step for step in workflow.probe_steps if step > longest]:
        raise UserError(f"probe_steps: {beyond[0]} is not allowed: no probed run goes beyond {longest}")


def _common_settings(grid: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are one value for all runs of a grid."""
    return {k: v for k, v in grid.items() if k in RunSpec.model_fields and k not in AXES}


def _further_grids(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each further grid, complete: one that gives a length takes the place of the study's."""
    further = config.get(FURTHER) or ()
    if not isinstance(further, list | tuple) or not all(isinstance(grid, Mapping) for grid in further):
        raise UserError(f"{FURTHER}: {further!r} is not allowed: it must be a list of mappings, one a grid")
    for grid in further:
        try:
            _reject_unknown(grid, GRID_KEYS)
        except UserError as error:
            raise UserError(f"{FURTHER}: {error}") from None
        rest = {key: value for key, value in config.items() if key in GRID_KEYS}
        if any(key in grid for key in LENGTHS):
            rest = {key: value for key, value in rest.items() if key not in LENGTHS}
        yield rest | dict(grid)


def _differ(spec: RunSpec, runs: Mapping[str, RunSpec]) -> str:
    """Say in which settings a run differs from the one of the same name."""
    here, there = spec.model_dump(), runs[spec.name].model_dump()
    return ", ".join(f"{key} {there[key]} and {here[key]}" for key in here if here[key] != there[key])


def _reject_unknown(config: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in config:
        if key not in allowed:
            raise UserError(f"unknown config key {key!r}: {suggest(key, allowed)}")


def _check_keys(config: Mapping[str, Any]) -> None:
    _reject_unknown(config, [*Workflow.model_fields, *GRID_KEYS, FURTHER])
    for key in REQUIRED:
        if config.get(key) is None:
            raise UserError(f"config key {key!r} is missing: a study file is complete in itself")
    given = [key for key in LENGTHS if config.get(key) is not None]
    if len(given) != 1:
        got = " and ".join(given) if given else "none"
        raise UserError(f"a run's length is exactly one of {', '.join(LENGTHS)}: {got} given")


def _expand(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each cell of the grid: for every mode, the product of the axes that it uses."""
    for mode in _values(config["modes"], "modes"):
        if mode not in METHODS:
            raise unknown("mode", mode, METHODS)
        learns = bool(METHODS[mode].uses)
        own = [
            key for key in AXES if key != "mode" and uses(mode, key) and (learns or key != "learning_rate")
        ]
        axes = {key: values for key in own if (values := _axis_values(config, key, mode)) is not None}
        if not learns:  # Frozen: one run, named by the grid's smallest rate
            axes["learning_rate"] = [_smallest_rate(config["learning_rates"], mode)]
        for combination in itertools.product(*axes.values()):
            yield {"mode": mode, **dict(zip(axes, combination, strict=True))}


def _axis_values(config: Mapping[str, Any], axis: str, mode: str) -> list | None:
    """An axis's values for one mode; None where the study leaves the axis at its default."""
    key = PLURAL.get(axis, axis)
    values = config.get(key)
    if not isinstance(values, Mapping):
        return None if values is None else _values(values, key)
    for name in values:
        if name not in (*METHODS, "default"):
            raise unknown(f"mode in {key}", name, [*METHODS, "default"])
    if mode in values:
        return _values(values[mode], f"{key}.{mode}")
    if "default" in values:
        return _values(values["default"], f"{key}.default")
    raise UserError(f"{key}: no value for mode {mode}: add {mode!r} or 'default' to the mapping")


def _values(values: Any, key: str) -> list:
    values = list(values) if isinstance(values, list | tuple) else [values]
    if not values:
        raise UserError(f"{key}: the list is empty: give at least one value")
    if any(isinstance(value, Mapping | list) for value in values):
        raise UserError(
            f"{key}: {values!r} is not allowed: it must be a value, a list, or a mapping from mode"
        )
    return values


def _smallest_rate(rates: Any, mode: str) -> Any:
    """Of the rates given for the mode itself, else of all rates of the grid."""
    if isinstance(rates, Mapping):
        own = [rates[mode]] if mode in rates else rates.values()
        rates = [rate for values in own for rate in _values(values, "learning_rates")]
    rates = _values(rates, "learning_rates")
    try:
        return min(rates, key=float)
    except (TypeError, ValueError):
        return rates[0]  # RunSpec says what is wrong with it


def read_study(path: Path, *, check_data: bool = True) -> Study:
    """Load a study file (YAML), as ``load_study`` does. Raises UserError."""
    from zo.study_file import read_yaml

    config = read_yaml(path)
    if not isinstance(config, Mapping):
        raise UserError(f"{path}: a study file is a mapping of keys to values")
    try:
        return load_study(config, check_data=check_data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
