# The estimates of chosen runs against the exact gradient, at the weights they began and ended with.


rule probe:
    input:
        outcome=rules.train.output.outcome,
    output:
        f"{RESULTS}/probes/{{run}}.csv",
    log:
        f"{RESULTS}/probes/{{run}}.log",
    conda:
        "../../envs/zo.yaml"
    threads: STUDY.workflow.threads
    resources:
        gpu=GPUS_PER_RUN,
        # The exact gradient and estimates lie beside the weights.
        mem_mb=lambda wildcards, attempt: 2 * run_memory_mb(wildcards, attempt),
    params:
        scopes=",".join(STUDY.workflow.probe_scopes),
        batches=STUDY.workflow.probe_batches,
    shell:
        "python -m zo probe $(dirname {input.outcome}) --at start,end --scopes {params.scopes:q} --batches {params.batches}"
        " --gpus {resources.gpu} --threads {threads} --out {output} > {log} 2>&1"
