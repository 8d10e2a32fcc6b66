"""What each figure shows, in words computed from its data: n, budget, conclusions, a text alternative."""

from typing import NamedTuple

import pandas as pd

from zo.analysis import stats
from zo.analysis.collect import WHOLE_PROCESS, Reading, state_sharing
from zo.analysis.figures.curve_plots import predict_cosine
from zo.analysis.figures.panels import name_loss, say_n
from zo.analysis.probes import conclude
from zo.analysis.runs import spell_lr
from zo.layout import shorten, spread


class Caption(NamedTuple):
    """`title`; `basis`: n and budget; `conclusions`, a sentence a context; `alt`, what an eye would see."""

    title: str
    basis: str
    conclusions: list[str]
    alt: str


def write_captions(reading: Reading) -> dict[str, Caption]:
    """Write the caption of every figure."""
    loss, basis = name_loss(reading.runs), state_basis(reading)
    passes = f"forward passes + {reading.backward_cost:g} x backward passes"
    ends = f"Final {loss} [nats] by method. {_list_losses(reading)}"
    facts = {
        "loss_vs_steps": ("Loss against steps", _conclude_budget(reading, "steps"), f"Curves. {ends}"),
        "loss_vs_forward_passes": (
            f"Loss against {passes}",
            _conclude_budget(reading, "forward-pass equivalents"),
            f"Curves, passes on a logarithmic axis. {ends}",
        ),
        "final_loss_vs_lr_by_q": (
            "Final loss against learning rate",
            _conclude_rates(reading),
            f"A line for each method and q; crosses mark learning rates that diverged. {ends}",
        ),
        "loss_heatmap_lr_q": ("ZO over learning rate and q", _conclude_heatmap(reading), f"Heat map. {ends}"),
        "time_and_memory": ("Time and memory", _conclude_costs(reading), f"Bars. {_list_costs(reading)}"),
        "pareto_memory": (
            "Least loss for the memory",
            _conclude_memory(reading),
            f"Points by peak memory and final loss, their front as a staircase. {ends}",
        ),
        "pareto_passes": (
            f"Least loss for {passes}",
            _conclude_passes(reading),
            f"Curves, and the front over all of them as a staircase. {ends}",
        ),
        "cosine": (
            "Cosine with the true gradient",
            _conclude_cosine(reading),
            "Curves of the logged cosine against steps, dotted lines at the exact law.",
        ),
        "probes": (
            "Estimates against the exact gradient",
            conclude(reading.tables["probes"]) if "probes" in reading.tables else [],
            "Cosine, length and best rate against q, error of the slopes against eps, with their laws: "
            "a column of panels for each place in the runs.",
        ),
    }
    nothing = ["No finished run has what this figure needs."]
    return {name: Caption(title, basis, said or nothing, alt) for name, (title, said, alt) in facts.items()}


def state_basis(reading: Reading) -> str:
    """Say how many seeds a point stands for, and what its runs were given."""
    done = reading.runs[reading.runs["status"] == "done"]
    spent = [
        f"{_span(done[name])} {words}"
        for name, words in {"steps": "steps", "tokens": "training tokens"}.items()
        if done[name].notna().any()
    ]
    return f"{say_n(reading.runs)}; {' and '.join(spent) or 'no cost logged'} a run."


def _span(values: pd.Series) -> str:
    low, high = shorten(float(values.min())), shorten(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _each_context(reading: Reading, table: pd.DataFrame):
    """Yield (name, rows) of each context of a table."""
    if len(table):
        for _, rows in table.groupby(stats.list_context(reading.runs), dropna=False, sort=False):
            yield stats.name_context(rows.iloc[0], reading.runs), rows


def _name(row: pd.Series, reading: Reading) -> str:
    return stats.name_method(row, reading.runs)


def _list_losses(reading: Reading) -> str:
    best = reading.tables["best_learning_rates"]
    parts = []
    for where, rows in _each_context(reading, best[best["n"] > 0]):
        losses = [f"{_name(row, reading)} {row['loss']:.3f}" for _, row in rows.iterrows()]
        parts.append(f"{where}: {', '.join(losses)}.")
    return " ".join(parts)


def _list_costs(reading: Reading) -> str:
    parts = []
    for where, rows in _each_context(reading, reading.tables["costs"]):
        costs = [
            f"{row['mode']} q={row['q']} {shorten(row['seconds_per_step'])} s a step, "
            f"{shorten(row['peak_memory_mb'])} MiB"
            for _, row in rows.iterrows()
        ]
        parts.append(f"{where}: {'; '.join(costs)}.")
    return " ".join(parts)


def state_gap(gap: float, low: float, high: float) -> str:
    """Say a difference from FO with its interval and whether it is shown: '0.31 ± 0.05 above FO'."""
    side = "above" if gap > 0 else "below"
    if pd.isna(low):
        return f"{abs(gap):.3f} {side} FO, without an interval: it may be chance"
    if low <= 0 <= high:
        return f"{spread(gap, high - gap, '+')} from FO: the interval holds 0, so no difference is shown"
    return f"{spread(abs(gap), high - gap)} {side} FO"


def _conclude_budget(reading: Reading, kind: str) -> list[str]:
    """At equal budgets: every method and q that is not a control, each at the budget it shares with FO."""
    table, said = reading.tables["equal_budgets"], []
    if table.empty:
        return []
    table = table[(table["kind"] == kind) & table["difference"].notna() & ~table["mode"].isin(stats.CONTROLS)]
    for where, rows in _each_context(reading, table):
        gaps = [
            f"{_name(row, reading)} is {state_gap(row['difference'], row['low'], row['high'])} "
            f"(at {shorten(row['budget'])})"
            for _, row in rows.iterrows()
        ]
        said.append(f"{where}, at equal {kind}: {'; '.join(gaps)}.")
    return said


def _conclude_rates(reading: Reading) -> list[str]:
    best, said = reading.tables["best_learning_rates"], []
    for where, cells in _each_context(reading, best[~best["mode"].isin(stats.CONTROLS)]):
        rows = [row for _, row in cells.iterrows() if row["n"]]
        rates = [f"{_name(row, reading)} {spell_lr(row['lr'])}" for row in rows]
        edges = [f"{_name(row, reading)} ({row['edge']})" for row in rows if row["edge"]]
        gone = [_name(row, reading) for _, row in cells.iterrows() if not row["n"]]
        tuned = f" Not tuned: {', '.join(edges)}." if edges else " Every best rate lies inside its grid."
        lost = f" No rate finished in every seed: {', '.join(gone)}." if gone else ""
        said.append(f"{where}: best at {', '.join(rates)}.{tuned}{lost}" if rates else f"{where}:{lost}")
    return said


def _conclude_heatmap(reading: Reading) -> list[str]:
    best = reading.tables["best_learning_rates"]
    said = []
    for where, rows in _each_context(reading, best[best["mode"] == "ZO"]):
        least = "no rate finished in every seed"
        if rows["n"].any():
            row = rows.loc[rows["loss"].idxmin()]
            least = f"the least loss, {row['loss']:.3f}, is at q = {row['q']}, lr {spell_lr(row['lr'])}"
        said.append(f"{where}: {least}; ZO runs that diverged: {rows['diverged'].sum()}.")
    return said


def _conclude_costs(reading: Reading) -> list[str]:
    said, notes = [], []
    for where, rows in _each_context(reading, reading.tables["costs"]):
        fo = rows[rows["mode"] == "FO"]
        for _, row in rows[rows["mode"] == "ZO"].tail(1).iterrows() if len(fo) else ():
            time, memory = (row[name] / fo[name].iloc[0] for name in ("seconds_per_step", "peak_memory_mb"))
            parts = [f"{time:.3g} times an FO step's time"] * pd.notna(time)
            parts += [f"{memory:.3g} times an FO run's memory"] * pd.notna(memory)
            if parts:
                said.append(f"{where}: a ZO step with q = {row['q']} takes {' and '.join(parts)}.")
                notes += [state_sharing(reading)] * pd.notna(time) + [WHOLE_PROCESS] * pd.notna(memory)
    return said + list(dict.fromkeys(notes))


def _conclude_memory(reading: Reading) -> list[str]:
    table, said = reading.tables["pareto"], []
    if table.empty:
        return []
    for where, rows in _each_context(reading, table[table["memory_front"]]):
        rows = rows.sort_values("peak_memory_mb")
        names = [f"{_name(row, reading)} ({row['peak_memory_mb']:.4g} MiB)" for _, row in rows.iterrows()]
        said.append(f"{where}: on the front, from the least memory: {', '.join(names)}.")
    return said + [WHOLE_PROCESS] * (len(said) > 0)


def _conclude_passes(reading: Reading) -> list[str]:
    table, said = reading.tables["pareto"], []
    if table.empty:
        return []
    for where, rows in _each_context(reading, table[table["passes_from"].notna()]):
        spans = [
            f"{_name(row, reading)} {_tell_span(row['passes_from'], row['passes_to'])}"
            for _, row in rows.sort_values("passes_from").iterrows()
        ]
        said.append(f"{where}: on the front: {', '.join(spans)}.")
    return said


def _tell_span(start: float, end: float) -> str:
    low, high = shorten(start), shorten(end)
    return f"at {low}" if low == high else f"from {low} to {high}"


def _conclude_cosine(reading: Reading) -> list[str]:
    runs, logs, said = reading.runs, reading.logs, []
    for where, rows in _each_context(reading, stats.lead_cells(runs, ("mode", "q"))):
        for _, cell in rows.iterrows():
            names = stats.select_runs(runs, cell)["run"]
            logged = pd.concat([logs.frames[run]["cosine"].dropna() for run in names])
            if len(logged):
                law = predict_cosine(cell, logs.specs[names.iloc[0]])
                beside = "" if law is None else f"; the law says {law:.3g}"
                said.append(f"{where}: {_name(cell, reading)}: mean {logged.mean():.3g}{beside}.")
    return said
