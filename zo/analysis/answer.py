"""What a study says, in sentences: the answer, its doubts, and how many seeds stand behind it."""

from collections import Counter

import pandas as pd

from zo.analysis import stats
from zo.analysis.runs import spell_lr
from zo.analysis.scene import Finding
from zo.layout import spread


def state_answer(answer: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Say in a sentence for each context how the best ZO cell stands to FO and to the controls.

    `answer`: the table of `judge_methods`.
    """
    sentences, keys = [], stats.list_context(runs)
    for _, zo in answer[answer["mode"] == "ZO"].iterrows() if len(answer) else ():
        where, gap = stats.name_context(zo, runs), zo["minus_FO"]
        fo = _stand_beside(answer, zo, keys, "FO")["loss"]
        start = (
            f"{where}: best {stats.name_method(zo, runs)} (lr {spell_lr(zo['lr'])}) ends at {zo['loss']:.3f}"
        )
        parts = ["no FO run finished to compare with" if fo.empty else "FO's loss is infinite too"]
        if not pd.isna(gap):
            side = "above" if gap > 0 else "below"
            doubt = zo["minus_FO_low"] <= 0 <= zo["minus_FO_high"]
            parts = [f"{spread(abs(gap), _half(zo, 'minus_FO'))} {side} the best FO's {fo.item():.3f}"]
            parts[0] += " (the interval holds 0: no difference shown)" if doubt else ""
        for control in ("Frozen", "Random"):
            gain = -zo[f"minus_{control}"]
            if not pd.isna(gain):
                said = f"{gain:.3f} below" if gain > 0 else f"NOT below, but {-gain:.3f} above"
                parts.append(f"{said} {control}")
            elif len(_find_diverged(runs, zo, keys, control)):
                parts.append(f"no {control} to compare with, which diverged")
        verdict = f" Verdict: {zo['verdict']}." if zo["verdict"] else ""
        sentences.append(f"{start}: {', '.join(parts)}.{_doubt_rates(answer, zo, keys)}{verdict}")
    return sentences


def _find_diverged(runs: pd.DataFrame, zo: pd.Series, keys: list[str], mode: str) -> pd.DataFrame:
    """Return a method's diverged runs in the context of `zo`."""
    return _stand_beside(runs, zo, keys, mode).query("status == 'diverged'")


def list_lost_methods(answer: pd.DataFrame, best: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Name the methods that were tried in a context but have no cell to show for it: they must not vanish."""
    keys = [*stats.list_context(runs), "mode"]
    kept = {str(tuple(row)) for row in answer[keys].to_numpy()} if len(answer) else set()
    return [
        f"{stats.name_context(cells.iloc[0], runs)}: {cells['mode'].iloc[0]} has no learning rate that "
        f"finished in every seed ({cells['diverged'].sum()} diverged)."
        for _, cells in best.groupby(keys, dropna=False, sort=False)
        if str(tuple(cells[keys].to_numpy()[0])) not in kept
    ]


def _doubt_rates(answer: pd.DataFrame, zo: pd.Series, keys: list[str]) -> str:
    """Say which of FO and ZO is not tuned inside the learning rates tried, in the context of `zo`."""
    beside = _stand_beside(answer, zo, keys, "FO", "ZO")
    flagged = [f"{row.mode} ({row.edge})" for row in beside.itertuples() if row.edge]
    return f" Learning rate not settled: {', '.join(flagged)}." if flagged else ""


def _stand_beside(answer: pd.DataFrame, zo: pd.Series, keys: list[str], *modes: str) -> pd.DataFrame:
    """Return the rows of some methods in the context of `zo`."""
    return answer[stats.match_rows(answer, zo, keys) & answer["mode"].isin(modes)]


def list_warnings(best: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Give a line for each cell whose learning rate is not settled."""
    cells = [row for _, row in best.iterrows() if row["warning"]]
    return [
        f"warning: {stats.name_context(row, runs)}, {stats.name_method(row, runs)}: {row['warning']}"
        for row in cells
    ]


def state_finding(finding: Finding) -> str:
    """Say one raised guard in a line."""
    cost = f", verdict on {' and '.join(finding.withholds)} withheld" if finding.withholds else ""
    return f"{finding.guard.upper()} ({finding.where}{cost}): {finding.message}. Remedy: {finding.remedy}."


def count_findings(findings: list[Finding]) -> str:
    """Say in one line which guards were raised, and how often."""
    counts = Counter(finding.guard.upper() for finding in findings)
    said = ", ".join(f"{guard} ({n})" for guard, n in counts.items())
    return f"Guards raised: {said}." if said else "No guard was raised."


def state_seeds(runs: pd.DataFrame) -> str:
    """Say plainly how many seeds stand behind the numbers."""
    n = stats.best_learning_rates(runs)["n"]
    n = n[n > 0]
    if n.empty:
        return "No run finished: nothing to compare."
    if n.max() == 1:
        return "n = 1 seed: no intervals, differences may be chance."
    span = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    return f"n = {span} seeds: ± is a 95 % t interval over seeds (differences: paired by seed)."


def state_score(runs: pd.DataFrame) -> str:
    """Say which loss ranks the runs."""
    if stats.pick_score(runs) == "final_val_loss":
        name = "final validation loss, which also chose the learning rates (more values tried: more luck)"
    else:
        name = "final TRAINING loss (mean of the last 10 % of rows), for no finished run measured validation"
    return f"Losses are in nats; runs are ranked by {name}."


def _half(row: pd.Series, name: str) -> float:
    return row[f"{name}_high"] - row[name]
