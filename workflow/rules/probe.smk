# The estimates of chosen runs against the exact gradient, at the weights they began with, had at
# the steps of `probe_steps`, and ended with.


PROBED_AT = ",".join(["start", *map(str, STUDY.workflow.probe_steps), "end"])


rule probe:
    input:
        outcome=rules.train.output.outcome,
    output:
        f"{RESULTS}/probes/{{run}}.csv",
    log:
        f"{RESULTS}/probes/{{run}}.log",
    retries: RETRIES_HERE
    conda:
        "../../envs/zo.yaml"
    threads: STUDY.workflow.threads
    resources:
        gpu=GPUS_PER_RUN,
        # The exact gradient and estimates lie beside the weights.
        mem_mb=lambda wildcards, attempt: 2 * run_memory_mb(wildcards, attempt),
    params:
        # One string: Snakemake compares params as an unordered set of values.
        flags=f"--at {PROBED_AT} --scopes {quote(','.join(STUDY.workflow.probe_scopes))} --batches {STUDY.workflow.probe_batches}",
    shell:
        "python -m zo probe $(dirname {input.outcome}) {params.flags}"
        " --gpus {resources.gpu} --threads {threads} --out {output} > {log} 2>&1"
