# One job a run. A crash costs its own run alone: see zo/crash.py and docs/decisions/crashed-runs.md.

RETRIES = STUDY.workflow.retries
# Also of a cluster's job, where `gpus:` names none of this machine's.
GPUS_PER_RUN = 0 if STUDY.workflow.gpus == "none" else STUDY.workflow.gpus_per_run


def run_memory_mb(wildcards, attempt):
    """MB of host memory of a run's job. Local sweeps have no limit, so nothing waits for it there."""
    return attempt * job_memory_mb(read_spec(wildcards.run), GPUS_PER_RUN)


def run_minutes(wildcards, input, attempt, threads):
    """Time limit of a run's job; asked again before each start, when the cache says how long an epoch is."""
    spec, tokens = read_spec(wildcards.run), corpus_tokens(input.caches[0])
    return attempt * job_minutes(spec, GPUS_PER_RUN * spec.ranks, threads, tokens)


rule train:
    input:
        caches=lambda wildcards: cache_files(wildcards.run),
        # Recorded crashes: one more than at the last parse means another set of inputs, hence a rerun.
        crashes=lambda wildcards: sorted(
            glob(f"{RESULTS}/runs/{wildcards.run}/crash*.json")
        ),
    output:
        csv=f"{RESULTS}/csv_logs/{{run}}.csv",
        outcome=f"{RESULTS}/runs/{{run}}/outcome.json",
    log:
        # Snakemake deletes it before each attempt; job_logs/<run>.log keeps them all.
        f"{RESULTS}/runs/{{run}}/attempt.log",
    benchmark:
        f"{RESULTS}/runs/{{run}}/benchmark.tsv"
    priority: lambda wildcards: predicted_length(wildcards.run)
    # Inside a cluster's job another Snakemake reads this: it must not try again with the same time and memory.
    retries: 0 if workflow.remote_exec else RETRIES
    conda:
        "../../envs/zo.yaml"
    threads: lambda wildcards: STUDY.workflow.threads * read_spec(wildcards.run).ranks
    resources:
        # What a cluster's job asks for; more at each attempt, for the last may have failed for lack of it.
        gpu=lambda wildcards: GPUS_PER_RUN * read_spec(wildcards.run).ranks,
        mem_mb=run_memory_mb,
        runtime=run_minutes,
        # Two minutes before its time is up a run stops after its step and writes a checkpoint.
        slurm_extra="--signal=TERM@120",
        # Of each rank: fewer where --cores allows fewer.
        threads_each=lambda wildcards, threads: max(
            1, threads // read_spec(wildcards.run).ranks
        ),
        attempt=lambda wildcards, attempt: attempt,
        last_attempt=lambda wildcards, attempt: int(attempt > RETRIES),
        record_crash=lambda wildcards: int(wildcards.run in STUDY.runs),
        # A resource: unlike a changed param, another value repeats no run.
        keep=STUDY.workflow.keep,
    params:
        # One string: Snakemake compares params as an unordered set of values.
        spec=lambda wildcards: read_spec(wildcards.run).to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mkdir -p {params.results}/job_logs; status=0;"
        " python -m zo train --spec {params.spec:q} --results {params.results} --no-job-log"
        " --gpus {resources.gpu} --threads {resources.threads_each} --keep {resources.keep} --attempt {resources.attempt} 2>&1"
        # Not the pipe's own status: tee fails where the disk is full, whatever became of the run.
        " | tee -a {params.results}/job_logs/{wildcards.run}.log > {log} || status=${{PIPESTATUS[0]}};"
        " [ $status = 0 ] || python -m zo crash --run {wildcards.run} --results {params.results} --exit $status"
        " --last-attempt {resources.last_attempt} --record {resources.record_crash}"
