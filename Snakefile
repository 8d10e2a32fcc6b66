# FO against ZO pretraining: one token cache, one job a run, then summary and plots of all of them.
#
#   snakemake                                    the default sweep, config.yaml
#   snakemake --configfile workflow/studies/quick.yaml
#   snakemake --cores 16 --resources gpu=4       at most 4 GPUs at once, one a run
#   snakemake results/csv_logs/ZO_full_bs4_q16_lr3e-04.csv    any run that a name can say
#
# docs/sweeps.md explains what reruns when.
from snakemake.utils import min_version

min_version("9.27")


# A study file is complete in itself: it replaces config.yaml, it is not merged into it.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/dataset.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/analysis.smk"


rule all:
    default_target: True
    input:
        rules.complete.output,
        rules.summary.output,
        rules.plots.output,
        PROBES,
        CLAIMS,
        rules.report.output,
        # Listed one by one so that a deleted log is made again.
        expand(rules.train.output, run=STUDY.runs),
    localrule: True
