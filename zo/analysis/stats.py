"""What the runs say: best learning rates, intervals over seeds, methods compared, costs.

Vocabulary. A *context* is what two methods must share to be compared (scope, batch size, model, data); a
*cell* is a context, a method and its own settings, all but learning rate and seed. The *score* of a run is
its final validation loss, or its final training loss where no run measured validation. What needs whole
curves (convergence, equal budgets) is in curves.py.
"""

import numpy as np
import pandas as pd

from zo.analysis.intervals import difference_interval, mean_interval
from zo.analysis.runs import PROBLEM_AXES, list_axes, spell_lr
from zo.methods import METHODS
from zo.spec import AXES

MODES = tuple(METHODS)
CONTROLS = ("Random", "Frozen", "LayerwiseFrozen")
"""Modes that show what the others are worth: they get no verdict and have no best learning rate."""
ENDS = ("", "_low", "_high", "_n")  # of the columns that hold an Interval
SHORT = {"batch_size": "bs", "model_size": ""}  # bs as run names have it; a size says what it is
FEWER = "fewer seeds"
EDGE_WARNINGS = {
    "low edge": "best is the lowest learning rate tried: the optimum may lie below",
    "high edge": "best is the highest learning rate tried: the optimum may lie above",
    "single value": "only one learning rate tried: not tuned",
    "none": "no learning rate finished, with a validation loss, in every seed",
}


def pick_score(runs: pd.DataFrame) -> str:
    """Name the column that ranks runs."""
    return "final_val_loss" if runs["final_val_loss"].notna().any() else "final_loss"


def list_context(runs: pd.DataFrame) -> list[str]:
    """Name the axes that two methods must share: the scope, and other PROBLEM_AXES that vary."""
    axes = [axis for axis in list_axes(runs) if axis in PROBLEM_AXES]
    axes = [axis for axis in axes if axis == "scope" or runs[axis].nunique() > 1]
    return [axis for axis in axes if not _comes_with_the_size(runs, axis, axes)]


def _comes_with_the_size(runs: pd.DataFrame, axis: str, axes: list[str]) -> bool:
    """Whether a model's size says what its tokenizer or vocabulary is: by default it does."""
    if axis not in ("tokenizer", "vocab_size") or "model_size" not in axes:
        return False
    return runs.groupby("model_size", dropna=False)[axis].nunique(dropna=False).max() == 1


def list_knobs(runs: pd.DataFrame) -> list[str]:
    """Name the axes that are a method's own beyond mode, q, lr and seed, where they vary."""
    core = (*PROBLEM_AXES, "mode", "q", "lr", "seed")
    own = [axis for axis in list_axes(runs) if axis in AXES and axis not in core]
    modes = runs[runs["status"] != "crashed"].groupby("mode")  # an early crash left few settings behind
    return [axis for axis in own if runs[axis].nunique() > 1 or modes[axis].nunique(dropna=False).max() > 1]


def name_context(row, runs: pd.DataFrame) -> str:
    """Name a row's context in words: the scope, then what else varies: 'full, bs4'."""
    axes = [axis for axis in list_context(runs) if axis != "scope"]
    scope = "?" if pd.isna(row["scope"]) else str(row["scope"])
    return ", ".join([scope, *(f"{SHORT.get(axis, axis + ' ')}{row[axis]}" for axis in axes)])


def name_method(row, runs: pd.DataFrame) -> str:
    """Name a row's method in words: mode, q if it makes queries, varying knobs: 'ZO q=8 optimizer adam'."""
    knobs = [f"{axis} {row[axis]}" for axis in list_knobs(runs) if axis in row and not pd.isna(row[axis])]
    return " ".join([str(row["mode"]), *([f"q={row['q']}"] if row["q"] else []), *knobs])


def best_learning_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Choose each cell's learning rate: the lowest mean score among those that finished in every seed.

    One row a cell: its axes, `lr`, `n` (seeds), `loss` with `low` and `high`, `tried`, `diverged`, `edge`
    and `warning`. A learning rate that diverged in any seed counts as tried but cannot be chosen (the mean
    of its survivors would flatter it); one that ran in fewer seeds than the chosen one is no try. Controls
    get no edge: the smallest step is always best for them.
    """
    axes = [*list_context(runs), "mode", "q", *list_knobs(runs)]
    score = pick_score(runs)
    rows = [
        dict(zip(axes, key, strict=True)) | _choose_lr(cell, score)
        for key, cell in runs.groupby(axes, dropna=False, sort=False)
    ]
    best = pd.DataFrame(rows)
    return best.sort_values(axes, key=mode_order, kind="stable").reset_index(drop=True)


def _choose_lr(cell: pd.DataFrame, score: str) -> dict:
    """Choose one cell's learning rate; crashed runs say nothing about theirs and are left out."""
    known = cell[cell["status"] != "crashed"]
    gone = known.loc[known["status"] == "diverged", "lr"]
    done = known[(known["status"] == "done") & known[score].notna() & ~known["lr"].isin(gone)]
    everything = sorted(known["lr"].dropna().unique())
    mode = cell["mode"].iloc[0]
    facts = {"tried": ", ".join(map(spell_lr, everything)), "diverged": len(gone)}
    if done.empty:
        nothing = {"lr": np.nan, "n": 0, "loss": np.nan, "low": np.nan, "high": np.nan}
        return nothing | facts | {"edge": "none", "warning": EDGE_WARNINGS["none"]}
    rates = done.groupby("lr", dropna=False)[score].agg(["mean", "size"])
    seeds = rates["size"][rates["mean"] == rates["mean"].min()].min()
    tried = [rate for rate in everything if rate in set(gone) or rates["size"].get(rate, 0) >= seeds]
    lr = settle_rate(dict(zip(rates.index, rates["mean"], strict=True)), tried)
    loss = mean_interval(done.loc[(done["lr"] == lr) | pd.isna(lr), score])
    edge = "" if mode in CONTROLS else flag_edge(lr, tried)
    facts["tried"] = tell_tried(tried, everything)
    chosen = {"lr": lr, "n": loss.n, "loss": loss.mean, "low": loss.low, "high": loss.high}
    return chosen | facts | {"edge": edge, "warning": EDGE_WARNINGS.get(edge, "")}


def tell_tried(tried: list[float], everything: list[float]) -> str:
    """List the rates tried, after them those that fewer seeds ran with: '1e-02 (fewer seeds: 1e-03)'."""
    few = ", ".join(spell_lr(rate) for rate in everything if rate not in tried)
    return ", ".join(map(spell_lr, tried)) + (f" ({FEWER}: {few})" if few else "")


def settle_rate(means: dict[float, float], tried: list[float]) -> float:
    """Return the rate of the least mean loss; of equal ones one at an edge, for that doubt must not hide."""
    tied = [rate for rate, mean in means.items() if mean == min(means.values())]
    return next((rate for rate in tied if flag_edge(rate, tried)), tied[0])


def flag_edge(lr: float, tried: list[float]) -> str:
    """Say where `lr` lies among those tried: "low edge", "high edge", "single value", or "" inside."""
    if len(tried) <= 1:
        return "single value"
    return {min(tried): "low edge", max(tried): "high edge"}.get(lr, "")


def lead_cells(runs: pd.DataFrame, by: tuple[str, ...] = ("mode",)) -> pd.DataFrame:
    """Keep, in each context and for each value of `by`, the best cell of `best_learning_rates`."""
    best = best_learning_rates(runs)
    keys = [*list_context(runs), *by]
    ranked = best[best["n"] > 0].sort_values("loss", kind="stable")
    return best.loc[ranked.groupby(keys, dropna=False).head(1).index.sort_values()].reset_index(drop=True)


def select_runs(runs: pd.DataFrame, cell: pd.Series) -> pd.DataFrame:
    """Return the finished runs of one row of `best_learning_rates` (its cell at its lr), one a seed."""
    axes = [axis for axis in list_axes(runs) if axis in cell.index]
    return runs[(runs["status"] == "done") & match_rows(runs, cell, axes)]


def match_rows(table: pd.DataFrame, row: pd.Series, axes: list[str]) -> pd.Series:
    """Mark the rows of a table that are alike with `row` in some axes; not set is like not set."""
    same = pd.Series(True, table.index)
    for axis in axes:
        same &= table[axis].isna() if pd.isna(row[axis]) else table[axis].eq(row[axis]).fillna(False)
    return same


def compare_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """Give each method's best cell in each context beside FO's, with differences in nats.

    `minus_FO`, `minus_Frozen` and `minus_Random` (with `_low`, `_high`, and `_n` pairs) pair runs by seed;
    positive: worse than it. Where no Frozen run exists the loss before training, which is what Frozen keeps,
    stands in.
    """
    leads, score = lead_cells(runs), pick_score(runs)
    keys = list_context(runs)
    rows = []
    for _, context in leads.groupby(keys, dropna=False, sort=False):
        scores = {
            cell["mode"]: index_by_seed(select_runs(runs, cell), score) for _, cell in context.iterrows()
        }
        first = select_runs(runs, context.iloc[0])
        scores.setdefault("Frozen", index_by_seed(first, "initial_val_loss").dropna())
        for _, cell in context.iterrows():
            row = cell.to_dict()
            for other in ("FO", "Frozen", "Random"):
                rival = scores.get(other if other != cell["mode"] else None, pd.Series(dtype=float))
                gap = difference_interval(scores[cell["mode"]], rival)
                row |= dict(zip((f"minus_{other}{end}" for end in ENDS), gap, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def index_by_seed(runs: pd.DataFrame, column: str) -> pd.Series:
    """Return one column of a cell's runs, indexed by seed."""
    return runs.set_index("seed")[column].astype(float)


def measure_costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Give each method and q what a step costs: medians over its finished runs of all learning rates.

    Columns: runs, seconds_per_step, tokens_per_second, forward_per_step, backward_per_step, peak_memory_mb.
    """
    done = runs[(runs["status"] == "done") & (runs["steps"] > 0)].copy()
    for name, total in {
        "seconds": "seconds",
        "forward": "forward_passes",
        "backward": "backward_passes",
    }.items():
        done[f"{name}_per_step"] = done[total].astype(float) / done["steps"].astype(float)
    measures = [
        "seconds_per_step",
        "tokens_per_second",
        "forward_per_step",
        "backward_per_step",
        "peak_memory_mb",
    ]
    groups = done.groupby([*list_context(runs), "mode", "q"], dropna=False, sort=False)
    costs = groups[measures].median()
    costs.insert(0, "runs", groups.size())
    return costs.reset_index().sort_values([*list_context(runs), "mode", "q"], key=mode_order, kind="stable")


def mode_order(column: pd.Series) -> pd.Series:
    """Sort modes as people name them (FO, ZO, hybrids, controls), numbers as numbers, the rest as text."""
    if column.name == "mode":
        known = {mode: f"{i:02}" for i, mode in enumerate(MODES)}
        return column.map(lambda mode: known.get(mode, f"{len(MODES):02}{mode}"))
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
