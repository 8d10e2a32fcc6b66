"""Many runs together.

``start``: Snakemake from flags; ``doctor``, ``preflight``, ``machine``: what is here and whether it will do;
``gpus``, ``slurm``: who runs where; ``sweep_record``, ``status``, ``status_table``, ``partial``: how far it
is; ``archive``, ``prune``: what is kept.
"""
