# One token cache for all runs of a study; every run maps it into memory.


rule cache:
    output:
        f"{RESULTS}/cache/{{cache}}/meta.json",
    log:
        f"{RESULTS}/cache/{{cache}}.log",
    # Above every run's: a long run that waits for the second cache must not start after short ones of the first.
    priority: 1000
    retries: RETRIES_HERE
    conda:
        "../../envs/zo.yaml"
    # Nothing else can run before the cache is there: tokenizing may take the cores. --cores lowers it.
    threads: 8
    params:
        spec=lambda wildcards: read_cache(wildcards.cache),
        least=least_tokens(),
        results=lambda wildcards: RESULTS,
    shell:
        "RAYON_NUM_THREADS={threads} python -m zo cache --spec {params.spec:q} {params.least} --results {params.results} > {log} 2>&1"
