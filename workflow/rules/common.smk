# The study, checked before anything runs; where results go; how many GPUs there are.
import json
import os
import sys
from glob import glob
from pathlib import Path

sys.path.insert(
    0, workflow.basedir
)  # this checkout's zo, also when it is not installed

from zo.errors import UserError
from zo.files import hold_or_exit, make_folder
from zo.gpus import visible_gpus
from zo.preflight import Means, jobs_at_once, preflight
from zo.study import caches_of, load_study
from zo.sweep_record import begin_sweep, end_sweep


def checked(function, *arguments):
    """A user's mistake ends snakemake with one line, not with a traceback."""
    try:
        return function(*arguments)
    except UserError as error:
        sys.exit(f"Error in the study: {error}")


STUDY = checked(load_study, config)
RESULTS = STUDY.results
CACHES = STUDY.caches()


def read_spec(run):
    """The spec of a run's name, of the grid or not."""
    return checked(STUDY.resolve, run)


def cache_files(run):
    """The meta.json of every cache that a run reads; a run outside the grid may add a cache of its own."""
    wanted = {dataset.folder_name(): dataset for dataset in caches_of(read_spec(run))}
    CACHES.update(wanted)
    return [f"{RESULTS}/cache/{name}/meta.json" for name in wanted]


def read_cache(name):
    """The DatasetSpec of a cache's folder name, as JSON."""
    if name not in CACHES:
        sys.exit(
            f"Error: no run of this study reads the cache {name!r}; it reads {', '.join(CACHES)}"
        )
    return CACHES[name].to_json()


def least_tokens():
    """Flags of `zo cache`: fewer tokens than the largest batch needs is one error, not one for each run."""
    train = max(spec.batch_size * spec.block_size for spec in STUDY.runs.values()) + 1
    validation = max(spec.validation_block_size for spec in STUDY.runs.values()) + 1
    return f"--least-train-tokens {train} --least-validation-tokens {validation}"


wildcard_constraints:
    run=r"[A-Za-z0-9.+_-]+",
    cache=r"[A-Za-z0-9._-]+",


# A prefix replaces Snakemake's strict mode, so it says it again. The trap keeps Ctrl-C from passing as a crash.
# Jobs use the python that runs snakemake, and this checkout's zo; `--sdm conda` puts its own python before it.
PYTHON_FOLDER = os.path.dirname(sys.executable)
shell.prefix(
    "set -euo pipefail; trap 'exit 130' INT; "
    f"export PATH={PYTHON_FOLDER}:$PATH PYTHONPATH={workflow.basedir}:${{{{PYTHONPATH-}}}}; "
)

# Without --resources gpu=N a local sweep runs on the GPUs that the machine has: on none, jobs ask for none.
if workflow.nodes is None and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(visible_gpus()))


checked(make_folder, Path(RESULTS))


def means():
    """What the sweep may use: a local one cores and GPUs, one on a cluster as many jobs as it was given."""
    if workflow.nodes is not None:
        return Means(workflow.nodes, workflow.nodes, local=False)
    threads, per_run = STUDY.workflow.threads, STUDY.workflow.gpus_per_run
    gpus = int(workflow.global_resources["gpu"].value) if visible_gpus() else 0
    return Means(jobs_at_once(workflow.cores, threads, gpus, per_run), gpus)


onstart:
    checked(hold_or_exit, RESULTS)
    checked(preflight, STUDY, means())
    begin_sweep(STUDY, means().jobs)


onsuccess:
    end_sweep(RESULTS, succeeded=True)


onerror:
    end_sweep(RESULTS, succeeded=False)
