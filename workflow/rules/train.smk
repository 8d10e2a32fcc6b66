# One job a run. A crash costs its own run alone: see zo/training/crash.py and docs/decisions/crashed-runs.md.


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
    retries: RETRIES_HERE
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
        keep=lambda wildcards: keep_flags(wildcards.run),
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
