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
from zo.study import caches_of, load_study


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


# Imported in the handlers: a dry run runs none of them.
onstart:
    from zo.preflight import Means, jobs_at_once, preflight
    from zo.sweep_record import begin_sweep

    checked(hold_or_exit, RESULTS)
    # A local sweep may use its cores and GPUs, one on a cluster as many jobs as it was given.
    if workflow.nodes is None:
        gpus = int(workflow.global_resources["gpu"].value) if visible_gpus() else 0
        flow = STUDY.workflow
        jobs = jobs_at_once(workflow.cores, flow.threads, gpus, flow.gpus_per_run)
        means = Means(jobs, gpus)
    else:
        means = Means(workflow.nodes, workflow.nodes, local=False)
    checked(preflight, STUDY, means)
    begin_sweep(STUDY, means.jobs)


onsuccess:
    from zo.sweep_record import end_sweep

    end_sweep(RESULTS, succeeded=True)


onerror:
    from zo.sweep_record import end_sweep

    end_sweep(RESULTS, succeeded=False)
