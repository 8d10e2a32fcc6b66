# The study, checked before anything runs; where results go; how many GPUs there are.
import json
import os
import sys
from functools import cache
from glob import glob
from pathlib import Path
from shlex import quote

sys.path.insert(
    0, workflow.basedir
)  # this checkout's zo, also when it is not installed

from zo.errors import UserError
from zo.files import hold_or_exit, make_folder, read_json
from zo.planning.footprint import (
    NOMINAL_TOKENS,
    job_memory_mb,
    job_minutes,
    jobs_at_once,
    relative_cost,
)
from zo.study import caches_of, load_study
from zo.study_file import read_yaml
from zo.sweep.gpus import SLOTS, choose_gpus, lack_of_gpus


def checked(function, *arguments):
    """A user's mistake, or a full disk, ends snakemake with one line, not with a traceback."""
    try:
        return function(*arguments)
    except UserError as error:
        sys.exit(f"Error in the study: {error}")
    except OSError as error:
        sys.exit(f"Error: {error}")


for configfile in workflow.configfiles:  # snakemake takes the last of two equal keys
    checked(read_yaml, Path(configfile))
STUDY = checked(load_study, config)
RESULTS = STUDY.results
CACHES = STUDY.caches()


def read_spec(run):
    """The spec of a run's name, of the grid or not."""
    return checked(STUDY.resolve, run)


@cache
def cache_name(dataset):
    """The folder of a cache. Remembered: its name asks for the corpus's version, once for 10,000 runs."""
    return dataset.folder_name()


def cache_files(run):
    """The meta.json of every cache that a run reads; a run outside the grid may add a cache of its own."""
    wanted = {cache_name(dataset): dataset for dataset in caches_of(read_spec(run))}
    CACHES.update(wanted)
    return [f"{RESULTS}/cache/{name}/meta.json" for name in wanted]


def read_cache(name):
    """The DatasetSpec of a cache's folder name, as JSON."""
    if name not in CACHES:
        sys.exit(
            f"Error: no run of this study reads the cache {name!r}; it reads {', '.join(CACHES)}"
        )
    return CACHES[name].to_json()


@cache
def built_tokens(meta):
    """Training tokens of a cache that is built."""
    return read_json(Path(meta))["tokens"]["train"]


def corpus_tokens(meta):
    """Training tokens of a cache; a nominal number until it is built."""
    return built_tokens(meta) if os.path.exists(meta) else NOMINAL_TOKENS


LONGEST = max(map(relative_cost, STUDY.runs.values()))


def predicted_length(run):
    """Priority of a run: its predicted work, 100 for the longest of the study. The longest go first, so that
    none is left over at the end with the machine to itself."""
    return 100 * relative_cost(read_spec(run)) / LONGEST


RETRIES = STUDY.workflow.retries
# Inside a cluster's job another Snakemake reads this: it must not try again with the same time and memory.
RETRIES_HERE = 0 if workflow.remote_exec else RETRIES

PROBED_RUNS = set(STUDY.probed())


def keep_flags(run):
    """What follows `--keep`; of a run that is probed also the steps. One resource: another text of the rule's
    command would repeat every finished run."""
    steps = STUDY.workflow.probe_steps if run in PROBED_RUNS else ()
    flag = f" --keep-steps {','.join(map(str, steps))}" if steps else ""
    return STUDY.workflow.keep + flag


# Also of a cluster's job, where `gpus:` names none of this machine's.
GPUS_PER_RUN = 0 if STUDY.workflow.gpus == "none" else STUDY.workflow.gpus_per_run


def literal(text):
    """A word of the jobs' shell, whatever is in it; Snakemake formats the prefix that it stands in."""
    return quote(text).replace("{", "{{").replace("}", "}}")


def run_memory_mb(wildcards, attempt):
    """MB of host memory of a run's job. Local sweeps have no limit, so nothing waits for it there."""
    return attempt * job_memory_mb(read_spec(wildcards.run), GPUS_PER_RUN)


def run_minutes(wildcards, input, attempt, threads):
    """Time limit of a run's job; asked again before each start, when the cache says how long an epoch is."""
    spec, tokens = read_spec(wildcards.run), corpus_tokens(input.caches[0])
    return attempt * job_minutes(spec, GPUS_PER_RUN * spec.ranks, threads, tokens)


def least_tokens():
    """Flags of `zo cache`: fewer tokens than the largest batch needs is one error, not one for each run."""
    train = max(spec.batch_size * spec.block_size for spec in STUDY.runs.values()) + 1
    validation = max(spec.validation_block_size for spec in STUDY.runs.values()) + 1
    return f"--least-train-tokens {train} --least-validation-tokens {validation}"


wildcard_constraints:
    run=r"[A-Za-z0-9.+_-]+",
    cache=r"[A-Za-z0-9._-]+",


# Jobs of this machine: the GPUs that the study may use, and how many runs share one. On a cluster each job
# has what the cluster gave it.
LOCAL = workflow.nodes is None and not workflow.remote_exec
GPUS = checked(choose_gpus, STUDY.workflow.gpus) if LOCAL else []
ENVIRONMENT = {"PYTHONPATH": literal(workflow.basedir) + ":${{PYTHONPATH-}}"}
if LOCAL:
    ENVIRONMENT |= {
        "CUDA_VISIBLE_DEVICES": literal(",".join(GPUS)),
        SLOTS: STUDY.workflow.jobs_per_gpu,
    }

# A prefix replaces Snakemake's strict mode, so it says it again. The trap keeps Ctrl-C from passing as a crash.
# Slurm's SIGTERM goes to every process of a job at once: the shell waits, and tee ignores it, until the run has
# written its checkpoint and said so.
# Jobs use the python that runs snakemake, and this checkout's zo. Not with `--sdm conda`, which activates the
# rule's environment before this prefix: ours would hide its python.
if not workflow.deployment_settings.deployment_method:
    ENVIRONMENT["PATH"] = literal(os.path.dirname(sys.executable)) + ":$PATH"
EXPORTS = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
shell.prefix(
    "set -euo pipefail; trap 'exit 130' INT; trap 'exit 143' TERM;"
    ' tee() {{ trap "" TERM; command tee "$@"; }};'
    f" export {EXPORTS}; "
)

# The resource counts slots. Without --resources gpu=N a local sweep has those of its GPUs: with none, jobs
# ask for none.
if LOCAL and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(GPUS) * STUDY.workflow.jobs_per_gpu)
SLOTS_GIVEN = int(workflow.global_resources["gpu"].value) if LOCAL and GPUS else 0
# How many its runs of several ranks take, the preflight asks of those that are left.
LACK = lack_of_gpus(STUDY.workflow.gpus_per_run, 1, len(GPUS))
if SLOTS_GIVEN and LACK:
    sys.exit(f"Error in the study: {LACK}: {', '.join(GPUS)}")


checked(make_folder, Path(RESULTS))


def settle_with_slurm(executor):
    """Only the study says how its jobs should be called, and only the cluster which command sees them end."""
    from zo.sweep.slurm import choose_status_command

    settings = workflow.executor_settings
    settings.status_command = checked(
        choose_status_command, settings.init_seconds_before_status_checks
    )
    executor.run_uuid = f"{STUDY.workflow.study}_{executor.run_uuid}"


# Imported in the handlers: a dry run runs none of them.
onstart:
    from zo.sweep.preflight import Means, preflight
    from zo.sweep.sweep_record import begin_sweep

    checked(hold_or_exit, RESULTS)
    # A local sweep may use its cores and GPU slots, one on a cluster as many jobs as it was given.
    if LOCAL:
        flow = STUDY.workflow
        jobs = jobs_at_once(
            workflow.cores, flow.threads, SLOTS_GIVEN, flow.gpus_per_run
        )
        means = Means(jobs, min(SLOTS_GIVEN, len(GPUS)))
    else:
        means = Means(workflow.nodes, workflow.nodes, local=False)
    checked(preflight, STUDY, means)
    # Made already: the executor has read its settings, and submits nothing before this handler ends.
    if hasattr(workflow.executor_settings, "status_command"):
        settle_with_slurm(workflow.scheduler._executor)
    checked(begin_sweep, STUDY, means.jobs)


onsuccess:
    from zo.sweep.sweep_record import end_sweep

    end_sweep(RESULTS, succeeded=True)


onerror:
    from zo.sweep.sweep_record import end_sweep

    end_sweep(RESULTS, succeeded=False)
    from zo.sweep.partial import write_partial_summary

    if partial := write_partial_summary(STUDY):
        print(f"Runs or probes are missing: {partial}", file=sys.stderr)
