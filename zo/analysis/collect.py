"""Everything that a folder of logs says, computed once: tables, guards, runs without an outcome."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from zo.analysis import curves, guards, pareto, probes, stats
from zo.analysis.lost import Unfinished, find_unfinished
from zo.analysis.runs import Logs, read_logs, summarize_runs
from zo.analysis.verdicts import judge_methods, put_judged_first
from zo.errors import UserError
from zo.files import read_json


class Reading(NamedTuple):
    """A folder of logs, read. `tables`: by the names of `TITLES`, in full; `runs`: a row a run."""

    logs: Logs
    runs: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    findings: list[guards.Finding]
    unfinished: list[Unfinished]
    backward_cost: float


TITLES = {
    "answer": "The answer: each method at its best settings",
    "guards": "Guards: what stands in the way of a verdict",
    "best_learning_rates": "Best learning rate of each cell",
    "convergence": "Convergence: the cost of reaching a loss",
    "equal_budgets": "Against FO at equal budgets",
    "pareto": "Pareto fronts: the least loss for the memory, and for the passes",
    "costs": "Costs (medians over finished runs, validation left out)",
    "probes": "Diagnostics: estimates against the exact gradient",
}
WHOLE_PROCESS = "On a CPU the memory is the whole process's, Python and its libraries included."
NOTES = {
    "convergence": "Curves of each method's best cell, interpolated; a cost is given only where every seed "
    "reached the loss. fwd equiv.: forward passes + {cost:g} x backward passes. x FO's: geometric mean of "
    "fwd equiv. over FO's, over seeds with its 95 % interval.",
    "equal_budgets": "Loss minus FO's (positive: FO ahead) at the largest budget that both reached, "
    "interpolated; a backward pass counts {cost:g}. Each keeps the learning rate that was best for its whole "
    "run. Equal peak memory: final losses, against the best FO cell that fits in the method's memory [MiB]. "
    + WHOLE_PROCESS
    + " {seconds}",
    "probes": "Of the runs that the study's key probe names, at the weights they began with, had at the "
    "steps of probe_steps, and ended with, on the batches after their last step's. n: estimates, over runs "
    "and batches; those of one batch share its gradient, and those of all q and places its directions. law: "
    "exact for a linear loss; the best rate's for a quadratic. Rates and r are of the batches with g'Hg > 0 "
    "alone, for elsewhere no step along g is best: their n is smaller.",
    "pareto": "On a front: no other method's best cell loses no more for no more. Means over seeds, no "
    "intervals; a backward pass counts {cost:g}; the controls are left out. " + WHOLE_PROCESS,
}


def tell_notes(reading: Reading) -> dict[str, str]:
    """Return `NOTES` with what is the study's own in them."""
    own = {"cost": reading.backward_cost, "seconds": state_sharing(reading)}
    return {name: note.format(**own) for name, note in NOTES.items()}


def state_sharing(reading: Reading) -> str:
    """Say what all seconds hold for: other runs may have had a part of the machine at the time."""
    jobs = read_json(reading.logs.folder.parent / "sweep.json").get("jobs") or 1
    known = f": up to {jobs} at once in the last sweep" if jobs > 1 else ""
    return f"Seconds are of runs that may have shared the machine{known}."


def read_folder(
    folder: str | Path,
    only: Collection[str] | None = None,
    *,
    targets: Iterable[float] | None = None,
    backward_cost: float = 2.0,
) -> Reading:
    """Read a folder of CSV logs (of `only` these runs) and compute every table.

    `targets`: losses (nats) for the convergence table, None: chosen from the data. `backward_cost`: forward
    passes that one backward pass counts as. Raises UserError for unreadable logs and impossible options.
    """
    targets = None if targets is None else [float(target) for target in targets]
    if targets is not None and not (targets and np.isfinite(targets).all()):
        raise UserError(f"targets {targets}: give one or more finite losses, e.g. 4.5,4.0")
    if not (np.isfinite(backward_cost) and backward_cost >= 0):
        raise UserError(f"backward_cost: {backward_cost:g} is not allowed: it must be 0 or more, usually 2")
    logs = read_logs(folder, only)
    runs = summarize_runs(logs)
    answer = stats.compare_methods(runs)
    probed = probes.read_probes(logs)
    findings = guards.raise_guards(logs, runs, answer, backward_cost) + probes.check_epsilon(probed, logs)
    answer, findings = put_judged_first(judge_methods(answer, findings, runs), findings, runs)
    tables = {
        "answer": answer,
        "guards": pd.DataFrame(
            [finding._replace(withholds=", ".join(finding.withholds)) for finding in findings],
            columns=guards.Finding._fields,
        ),
        "best_learning_rates": stats.best_learning_rates(runs),
        "convergence": curves.measure_convergence(logs, runs, targets, backward_cost),
        "equal_budgets": curves.compare_equal_budgets(logs, runs, backward_cost),
        "pareto": pareto.measure_pareto(logs, runs, backward_cost),
        "costs": stats.measure_costs(runs),
    }
    if len(probed):
        tables["probes"] = probes.measure_probes(probed)
    return Reading(logs, runs, tables, findings, find_unfinished(folder, only), backward_cost)
