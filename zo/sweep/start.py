"""``zo sweep``: turns flags into a study file and starts the Snakemake workflow on it."""

import os
import sys
from pathlib import Path

import zo
from zo.errors import UserError
from zo.files import is_held, make_folder, write_aside
from zo.lengths import LENGTHS
from zo.spec import AXES, RunSpec
from zo.study import PLURAL, REQUIRED, Workflow, load_study

QUICK = {
    "modes": "FO,ZO,Frozen",
    "scopes": "full",
    "batch_sizes": "4",
    "query_budgets": "1,8",
    "learning_rates": {"FO": ["3e-1"], "default": ["1e-2"]},
    "max_steps": "60",
}
"""What ``--quick`` fills in where no flag says otherwise."""


def start_sweep(options) -> int:
    """Run the grid that the flags describe: this process becomes snakemake, and gets its signals.

    Only a dry run returns.
    """
    config = study_of(options)
    if lacking := [f"--{key.replace('_', '-')}" for key in REQUIRED if key not in config]:
        raise UserError(f"{' and '.join(lacking)} missing: say what to compare, or take --quick")
    study = load_study(config)
    if options.dry_run:
        print("\n".join(study.runs))
        print(f"{len(study.runs)} runs, results in {study.results}/", file=sys.stderr)
        return 0
    if options.parallel < 1:
        raise UserError(f"parallel: {options.parallel} is not allowed: it must be 1 or more")
    if is_held(Path(study.results) / ".lock"):
        raise UserError(f"{study.results}: another sweep is at work there: wait for it, or give --study")
    path = make_folder(Path(study.results)) / "study.yaml"
    write_aside(path, _to_yaml(config))
    environment = dict(os.environ)
    if options.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = options.gpus
    command = _command(path, options, max(spec.ranks for spec in study.runs.values()))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def study_of(options) -> dict:
    """The study file's content that the flags stand for."""
    flow = {key: getattr(options, key) for key in Workflow.model_fields if key != "gpus"}  # the environment's
    config = {key: value for key, value in flow.items() if value is not None}
    for key in RunSpec.model_fields:
        value = getattr(options, key)
        if value is not None:
            config[PLURAL.get(key, key)] = value.split(",") if key in AXES else value
    if options.quick:
        filled = {key: value for key, value in QUICK.items() if key not in LENGTHS}
        config = {key: _split(value) for key, value in filled.items()} | config
    if not any(key in config for key in LENGTHS):
        config |= {"max_steps": QUICK["max_steps"]} if options.quick else {"epochs": 1}
    return config


def _split(value):
    return value.split(",") if isinstance(value, str) else value


def _command(study_file: Path, options, ranks: int) -> list[str]:
    root = Path(zo.__file__).resolve().parent.parent
    if not (root / "Snakefile").exists():
        raise UserError(f"no Snakefile in {root}: install the project from its checkout (pip install -e .)")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--workflow-profile", str(root / "profiles" / "default")]
    command += ["--cores", str(options.parallel * options.threads * ranks)]
    return [*command, *options.snakemake, "--configfile", str(study_file)]


def _to_yaml(config: dict) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=True)
