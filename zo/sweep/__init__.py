"""Many runs together: started by Snakemake, given GPUs, watched, packed, pruned."""
