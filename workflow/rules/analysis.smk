# What the runs of the study say together. The folder may hold other runs: --study names those that count.
# Local rules also on a cluster: they read a few MB and take seconds of one core, which a login node bears, while a
# queue may cost hours, and the CSVs, which Snakemake has waited for here, another node may not see yet.

STUDY_TEXT = json.dumps(dict(config), sort_keys=True)
FIGURES = "loss_vs_steps loss_vs_forward_passes final_loss_vs_lr_by_q loss_heatmap_lr_q time_and_memory pareto_memory pareto_passes".split()

PROBES = expand(rules.probe.output, run=STUDY.probed())
# claims.csv belongs to a study only where it says so; the rule is there for all.
CLAIMS = [f"{RESULTS}/claims.csv"] * STUDY.workflow.claims


rule summary:
    input:
        csv=expand(rules.train.output.csv, run=STUDY.runs),
        outcomes=expand(rules.train.output.outcome, run=STUDY.runs),
        probes=PROBES,
    output:
        txt=report(
            f"{RESULTS}/summary.txt",
            caption="../report/summary.rst",
            category="Summary",
        ),
        csv=f"{RESULTS}/summary.csv",
    log:
        f"{RESULTS}/job_logs/summary.log",
    localrule: True
    conda:
        "../../envs/zo.yaml"
    params:
        study=STUDY_TEXT,
        results=lambda wildcards: RESULTS,
    shell:
        "python -m zo analyze {params.results}/csv_logs --study {params.study:q} --out {params.results} > {log} 2>&1"


rule plots:
    input:
        csv=expand(rules.train.output.csv, run=STUDY.runs),
        outcomes=expand(rules.train.output.outcome, run=STUDY.runs),
        probes=PROBES,
    output:
        report(
            expand(f"{RESULTS}/plots/{{figure}}.png", figure=FIGURES),
            caption="../report/figure.rst",
            category="Figures",
        ),
    log:
        f"{RESULTS}/job_logs/plots.log",
    localrule: True
    conda:
        "../../envs/zo.yaml"
    params:
        study=STUDY_TEXT,
        results=lambda wildcards: RESULTS,
        per_run="--per-run" if STUDY.workflow.plot_each_run else "",
    shell:
        "python -m zo plot {params.results}/csv_logs --study {params.study:q} --out {params.results}/plots"
        " {params.per_run} > {log} 2>&1"


rule claims:
    input:
        csv=expand(rules.train.output.csv, run=STUDY.runs),
        outcomes=expand(rules.train.output.outcome, run=STUDY.runs),
        probes=PROBES,
    output:
        f"{RESULTS}/claims.csv",
    log:
        f"{RESULTS}/job_logs/claims.log",
    localrule: True
    conda:
        "../../envs/zo.yaml"
    params:
        study=STUDY_TEXT,
        results=lambda wildcards: RESULTS,
    shell:
        "python -m zo claims {params.results}/csv_logs --study {params.study:q} --out {output} > {log} 2>&1"


rule report:
    input:
        csv=expand(rules.train.output.csv, run=STUDY.runs),
        outcomes=expand(rules.train.output.outcome, run=STUDY.runs),
        probes=PROBES,
        claims=CLAIMS,
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/report.rst",
            category="Summary",
        ),
    log:
        f"{RESULTS}/job_logs/report.log",
    localrule: True
    conda:
        "../../envs/zo.yaml"
    params:
        study=STUDY_TEXT,
        results=lambda wildcards: RESULTS,
    shell:
        "python -m zo report {params.results}/csv_logs --study {params.study:q} --out {output} > {log} 2>&1"


# The exit status of a sweep: made last, fails if any run crashed. A diverged run is a result.
rule complete:
    input:
        summary=rules.summary.output.txt,
        plots=rules.plots.output,
        report=rules.report.output,
    output:
        touch(f"{RESULTS}/.complete"),
    log:
        f"{RESULTS}/job_logs/complete.log",
    localrule: True
    conda:
        "../../envs/zo.yaml"
    shell:
        "! grep '^crashed ' {input.summary} | tee {log} >&2"
