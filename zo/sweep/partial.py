"""What a sweep that stopped short of its summary says instead."""

from collections.abc import Iterator
from pathlib import Path

from zo.analysis.collect import read_folder
from zo.analysis.lost import find_unfinished, read_tail
from zo.analysis.summary import summarize, write_summary
from zo.files import write_aside
from zo.study import Study


def write_partial_summary(study: Study) -> Path | None:
    """Name the runs without an outcome and the failed probes, and summarize the rest; the file, if it is due.

    Runs killed past their last retry, and failed probes, keep Snakemake from the summary. No rule makes it.
    """
    results, cost = Path(study.results), study.workflow.backward_cost
    logs, partial = results / "csv_logs", results / "summary.partial.txt"
    probes = list(_failed_probes(study, results))
    if find_unfinished(logs, study.runs):
        summary = (results / "summary.txt", results / "summary.csv")
        text = write_summary(logs, *summary, only=study.runs, backward_cost=cost)
    elif probes:
        text = summarize(read_folder(logs, study.runs, backward_cost=cost))
    else:
        return None
    if probes:
        write_aside(partial, "\n".join(["PARTIAL: `snakemake` tries these probes again.", *probes, "", text]))
    return partial


def _failed_probes(study: Study, results: Path) -> Iterator[str]:
    """A line for each, and the last ones of its log, which is there since the probe began."""
    for run in study.probed():
        log = results / "probes" / f"{run}.log"
        if log.exists() and not log.with_suffix(".csv").exists():
            yield "\n".join([f"no probe of {run} (log: {log})", *read_tail(log)])
