"""What a study leaves on the disk, told before it runs: checkpoints, logs, figures.

Checkpoints are exact; the rest is sizes of real sweeps' lines (tests/workflow/test_planned_sweep.py holds it
against one). Token caches and what a hub downloads depend on the corpus alone.
"""

from collections.abc import Sequence

from zo.methods import METHODS
from zo.planning.footprint import checkpoint_bytes, count_parameters, passes_per_step, weight_bytes
from zo.spec import RunSpec
from zo.study import Study

CHECKPOINTS_KEPT = 2
"""checkpoint.KEPT, which would bring torch along."""
ROW_BYTES = 165
"""A row of a CSV log, which lies in runs/ and, published, in csv_logs/."""
LINE_BYTES = 95
"""A line of a job's log, one a row, which lies in runs/ and in job_logs/."""
SCALAR_BYTES, COEFFICIENT_BYTES = 60, 20
"""A line of the scalar log without its numbers, and each of them."""
RECORD_BYTES = 4096
"""All of spec, manifest, outcome, job and benchmark of a run."""
FIGURES_BYTES, FIGURES_BYTES_PER_RUN = 800_000, 25_000
"""Plots, report and summary of a study, which hold every run's curve."""


def checkpoints_kept(spec: RunSpec, keep: str) -> int:
    """Bytes of what a finished run leaves of its weights, by the study's key ``keep``."""
    kept = {"weights": count_parameters(spec)[1] * weight_bytes(spec), "nothing": 0}
    return kept.get(keep, checkpoint_bytes(spec))


def weights_kept(study: Study, specs: Sequence[RunSpec]) -> int:
    """Bytes of the weights that these runs of a study leave: at their end, and at steps that are probed."""
    flow, probed = study.workflow, set(study.probed())
    at_a_step = sum(checkpoints_kept(spec, "weights") for spec in specs if spec.name in probed)
    return sum(checkpoints_kept(spec, flow.keep) for spec in specs) + len(flow.probe_steps) * at_a_step


def checkpoints_at_work(specs: Sequence[RunSpec], jobs: int) -> int:
    """Bytes of the checkpoints of so many runs at once, of the largest: one more each while it is written."""
    sizes = sorted(map(checkpoint_bytes, specs), reverse=True)
    return (CHECKPOINTS_KEPT + 1) * sum(sizes[:jobs])


def count_rows(spec: RunSpec, steps: float) -> float:
    """Rows of a run's log: every ``log_interval`` steps, at every validation, and of the untrained model."""
    apart = steps / spec.validation_interval if spec.validation_interval % spec.log_interval else 0
    return 1 + steps / spec.log_interval + apart


def log_bytes(spec: RunSpec, steps: float) -> float:
    """Bytes of a run's CSV log and of its job's log, both copies of each."""
    return 2 * (ROW_BYTES + LINE_BYTES) * count_rows(spec, steps)


def scalar_bytes(spec: RunSpec, steps: float) -> float:
    """Bytes of a run's scalar log: a line a step with the coefficients of its directions."""
    if "query_budget_q" not in METHODS[spec.mode].uses:
        return 0
    guided = passes_per_step(spec)[1] if "cosine_target" in METHODS[spec.mode].uses else 0
    numbers = spec.query_budget_q * (1 + guided)  # Instruct: the cosine of each direction too
    return steps * (SCALAR_BYTES + COEFFICIENT_BYTES * numbers)
