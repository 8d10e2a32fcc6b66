"""The tables of a study as people read them: named rows, rounded numbers, intervals as ±."""

import pandas as pd

from zo.analysis import curves, stats
from zo.analysis.probes import show_probes
from zo.analysis.runs import spell_lr
from zo.layout import shorten, spread


def show_answer(answer: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out each method's best cell, its differences and its verdict."""
    frame = _name_rows(answer, runs)
    frame["n"] = answer["n"]
    frame["loss"] = _with_interval(answer, "loss", "high", "")
    for other in ("FO", "Frozen", "Random"):
        name = f"minus_{other}"
        frame[f"minus {other}"] = _with_interval(answer, name, f"{name}_high", "+")
        if other == "FO":  # what it decides stands beside it, on the narrowest screen too
            frame["verdict"] = answer["verdict"]
    return frame.assign(**{"lr flag": answer["edge"]})


def show_best(best: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out each cell's best learning rate."""
    frame = _name_rows(best, runs)
    frame["n"] = best["n"]
    frame["loss"] = _with_interval(best, "loss", "high", "")
    return frame.assign(tried=best["tried"], diverged=best["diverged"], flag=best["edge"])


def show_convergence(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out the cost of each loss target."""
    frame = _name_rows(table, runs)
    frame.insert(1, "loss", table["target"].map(_spell_target))
    frame["reached"] = table["reached"].astype(str) + "/" + table["n"].astype(str)
    for name, title in {"step": "steps", "forward_passes": "forward", "equivalents": "fwd equiv."}.items():
        frame[title] = table[name].map(shorten)
    frame["seconds"] = table["seconds"].map(shorten)
    return frame.assign(**{"x FO's": [_spell_ratio(row) for _, row in table.iterrows()]})


def show_budgets(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out the comparisons with FO, a column for each kind of budget."""
    shown = _with_interval(table, "difference", "high", "+") + " at " + table["budget"].map(shorten)
    unfit = "FO does not fit in " + table["budget"].map(shorten)
    shown = shown.where(table["difference"].notna() | (table["kind"] != curves.MEMORY), unfit)
    frame = _name_rows(table, runs)
    keys = list(frame.columns)
    unknown = table["kind"].map(lambda kind: "not logged" if kind == curves.MEMORY else "no shared range")
    frame["kind"], frame["shown"] = table["kind"], shown.where(table["budget"].notna(), unknown)
    wide = frame.set_index([*keys, "kind"])["shown"].unstack("kind", sort=False).reset_index()
    kinds = (*curves.BUDGETS, curves.MEMORY)
    return wide.rename(columns={kind: f"at equal {kind.replace('forward-pass', 'fwd')}" for kind in kinds})


def show_pareto(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out who is on which front."""
    frame = _name_rows(table, runs).assign(n=table["n"], loss=_with_interval(table, "loss", "high", ""))
    frame["peak MiB"] = table["peak_memory_mb"].map(shorten)
    frame["memory front"] = table["memory_front"].map({True: "on it", False: "-"})
    span = table["passes_from"].map(shorten) + " to " + table["passes_to"].map(shorten)
    return frame.assign(**{"leads at fwd equiv.": span.where(table["passes_from"].notna(), "-")})


def show_costs(costs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out what a step costs."""
    frame = _name_rows(costs, runs)
    for name in ("runs", "seconds_per_step", "tokens_per_second", "forward_per_step", "backward_per_step"):
        frame[name.replace("_per_", "/")] = costs[name].map(shorten)
    return frame.assign(**{"peak MiB": costs["peak_memory_mb"].map(shorten)})


def show_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out every run."""
    frame = runs[["run", "status"]].assign(steps=runs["steps"].map(shorten))
    for name, title in {"final_loss": "train", "final_val_loss": "val", "best_val_loss": "best val"}.items():
        frame[title] = runs[name].map(lambda loss: "-" if pd.isna(loss) else f"{loss:.3f}")
    names = {"tokens": "tokens", "forward_passes": "fwd", "backward_passes": "bwd"}
    names |= {"seconds": "seconds", "tokens_per_second": "tokens/s", "peak_memory_mb": "MiB"}
    return frame.assign(**{title: runs[name].map(shorten) for name, title in names.items()})


def _name_rows(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Start a table for people: where, method, lr."""
    rows = [row for _, row in table.iterrows()]
    frame = pd.DataFrame({"where": [stats.name_context(row, runs) for row in rows]}, index=table.index)
    frame["method"] = [stats.name_method(row, runs) for row in rows]
    lr = table["lr"].where(table["mode"] != "Frozen") if "lr" in table else None  # Frozen uses none
    return frame.assign(lr=lr.map(spell_lr)) if "lr" in table else frame


def _spell_target(target: float) -> str:
    """Write a loss with three digits, or with all that tell it from others near it."""
    return text if float(text := f"{target:.3f}") == target else f"{target:.10g}"


def _spell_ratio(row: pd.Series) -> str:
    """Write '12.3 (9.8 to 15.4)', without the interval where there is none."""
    if pd.isna(row["times_FO"]):
        return "-"
    ends = f" ({shorten(row['times_FO_low'])} to {shorten(row['times_FO_high'])})"
    return shorten(row["times_FO"]) + ("" if pd.isna(row["times_FO_low"]) else ends)


def _with_interval(table: pd.DataFrame, mean: str, high: str, sign: str) -> pd.Series:
    return pd.Series(
        [spread(m, h - m, sign) for m, h in zip(table[mean], table[high], strict=True)], table.index
    )


SHOW = {
    "answer": show_answer,
    "best_learning_rates": show_best,
    "convergence": show_convergence,
    "equal_budgets": show_budgets,
    "pareto": show_pareto,
    "costs": show_costs,
    "probes": lambda table, _: show_probes(table),
}
"""How people see each table of `collect`."""
