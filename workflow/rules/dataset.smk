# One token cache for all runs of a study; every run maps it into memory.


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


rule cache:
    output:
        f"{RESULTS}/cache/{{cache}}/meta.json",
    log:
        f"{RESULTS}/cache/{{cache}}.log",
    conda:
        "../../envs/zo.yaml"
    params:
        spec=lambda wildcards: read_cache(wildcards.cache),
        results=lambda wildcards: RESULTS,
    shell:
        "python -m zo cache --spec {params.spec:q} --results {params.results} > {log} 2>&1"
