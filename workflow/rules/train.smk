# One job a run. A crash costs its own run alone: see zo/crash.py and docs/decisions/crashed-runs.md.

RETRIES = STUDY.workflow.retries


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
    retries: RETRIES
    conda:
        "../../envs/zo.yaml"
    threads: STUDY.workflow.threads
    resources:
        gpu=STUDY.workflow.gpus_per_run,
        record_crash=lambda wildcards, attempt: int(
            attempt > RETRIES and wildcards.run in STUDY.runs
        ),
    params:
        # One string: Snakemake compares params as an unordered set of values.
        spec=lambda wildcards: read_spec(wildcards.run).to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mkdir -p {params.results}/job_logs; status=0;"
        " python -m zo train --spec {params.spec:q} --results {params.results} --no-job-log"
        " --gpus {resources.gpu} --threads {threads} 2>&1"
        " | tee -a {params.results}/job_logs/{wildcards.run}.log > {log} || status=$?;"
        " [ $status = 0 ] || python -m zo crash --run {wildcards.run} --results {params.results}"
        " --exit $status --last-attempt {resources.record_crash}"
