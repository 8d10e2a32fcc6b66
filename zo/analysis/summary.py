"""The summary of a folder of runs, for people (text, Markdown) and for machines (CSV, JSON)."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from zo.analysis import curves, stats
from zo.analysis.layout import render, section, shorten, spread, wrap_line
from zo.analysis.lost import Unfinished, find_unfinished, list_unfinished, read_tail
from zo.analysis.table import Logs, find_log, list_axes, read_logs, spell_lr, summarize_runs
from zo.errors import UserError, unknown
from zo.files import write_aside

FORMATS = ("text", "md", "csv", "json")
TITLES = {
    "answer": "The answer: each method at its best settings",
    "best_learning_rates": "Best learning rate of each cell",
    "convergence": "Convergence: the cost of reaching a loss",
    "equal_budgets": "Against FO at equal budgets",
    "costs": "Costs (medians over finished runs, validation left out)",
}

NOTES = {
    "convergence": [
        "Curves of each method's best cell, interpolated; a cost is given only where every seed reached the "
        "loss. fwd equiv.: forward passes + 2 x backward passes (or what was asked for)."
    ],
    "equal_budgets": [
        "Loss minus FO's (positive: FO ahead) at the largest budget that both reached, interpolated. Each "
        "keeps the learning rate that was best for its whole run."
    ],
}


def write_summary(
    folder: str | Path, txt: str | Path, csv: str | Path, *, only: Collection[str] | None = None
) -> str:
    """Write the text for people to `txt` and the run table to `csv`; return the text. `only`: these runs.

    While a run has no outcome, because it was killed past its last retry or has not been made yet, the text
    goes to `<txt>.partial.txt` instead, names those runs, and leaves `txt` and `csv` alone: a summary that
    was written in full stays the one that is. The same logs give the same bytes. Raises UserError for a
    folder that holds no readable logs.
    """
    txt, partial = Path(txt), Path(txt).with_suffix(".partial.txt")
    unfinished = find_unfinished(folder, only)
    if unfinished:
        text = _summarize_partly(folder, only, unfinished)
        write_aside(partial, text)
        return text
    logs = read_logs(folder, only)
    runs = summarize_runs(logs)
    write_aside(Path(csv), runs.to_csv(index=False))
    text = summarize(logs, runs)
    write_aside(txt, text)
    partial.unlink(missing_ok=True)
    return text


def _summarize_partly(folder: str | Path, only: Collection[str] | None, unfinished: list[Unfinished]) -> str:
    """Say which runs are not there, then summarize those that are."""
    head = [f"PARTIAL: no outcome of {len(unfinished)} of the runs. `snakemake` goes on with them."]
    head += list_unfinished(unfinished)
    finished = [path.stem for path in Path(folder).glob("*.csv") if only is None or path.stem in only]
    if not finished:
        return "\n".join([*head, "", "No run has finished.", ""])
    logs = read_logs(folder, finished)
    return "\n".join([*head, "", summarize(logs, summarize_runs(logs))])


def summarize(logs: Logs, runs: pd.DataFrame) -> str:
    """Return the whole summary, at most WIDTH columns wide but for long paths."""
    tables = collect_stats(logs, runs)
    parts = ["\n".join(_head(logs, runs)), _present(tables, runs, "text")]
    parts.append(section("All runs", render(_show_runs(runs), "text"), "text"))
    parts.append(section("Problems", "\n".join(list_problems(logs, runs)) or "none", "text"))
    return "\n\n".join(parts) + "\n"


def stats_text(
    folder: str | Path,
    *,
    format: str = "text",
    targets: Iterable[float] | None = None,
    backward_cost: float = 2.0,
    only: Collection[str] | None = None,
) -> str:
    """Return the statistics of a folder (of `only` these runs): the tables of `TITLES`.

    `format`: text or md for people; csv is one table whose first column names which one a row belongs to;
    json is an object of lists of rows. `targets`: losses (nats) for the convergence table, None: chosen from
    the data. `backward_cost`: forward passes that one backward pass counts as. Raises UserError.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    targets = None if targets is None else [float(target) for target in targets]
    if targets is not None and not (targets and np.isfinite(targets).all()):
        raise UserError(f"targets {targets}: give one or more finite losses, e.g. 4.5,4.0")
    logs = read_logs(folder, only)
    runs = summarize_runs(logs)
    tables = collect_stats(logs, runs, targets, backward_cost)
    if format == "json":
        return json.dumps(
            {name: json.loads(t.to_json(orient="records")) for name, t in tables.items()}, indent=1
        )
    if format == "csv":
        return pd.concat(tables, names=["table", None]).reset_index("table").to_csv(index=False)
    return _present(tables, runs, format) + "\n"


def collect_stats(logs: Logs, runs: pd.DataFrame, targets=None, backward_cost: float = 2.0) -> dict:
    """Compute every table of `TITLES` in full, as stats.py returns them."""
    return {
        "answer": stats.compare_methods(runs),
        "best_learning_rates": stats.best_learning_rates(runs),
        "convergence": curves.measure_convergence(logs, runs, targets, backward_cost),
        "equal_budgets": curves.compare_equal_budgets(logs, runs, backward_cost),
        "costs": stats.measure_costs(runs),
    }


def list_problems(logs: Logs, runs: pd.DataFrame) -> list[str]:
    """List crashed and diverged runs, a line each with reason and log; under a crash its log's last lines."""
    lines = []
    for row in runs[runs["status"] != "done"].sort_values(["status", "run"]).itertuples():
        end = "" if pd.isna(row.log) else f" (log: {row.log})"
        start = f"{row.status} {row.run}: "
        reason = "no reason recorded" if pd.isna(row.reason) else " ".join(str(row.reason).split())
        lines.append(start + reason + end)
        if row.status == "crashed":
            lines += read_tail(find_log(logs, row.run))
    return lines


def _head(logs: Logs, runs: pd.DataFrame) -> list[str]:
    counts = runs["status"].value_counts()
    status = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("done", "diverged", "crashed"))
    fixed = [
        f"{axis} {runs[axis].dropna().iloc[0]}"
        for axis in list_axes(runs)
        if axis != "seed" and runs[axis].nunique() == 1
    ]
    lines = [
        f"{len(runs)} run{'s'[: len(runs) > 1]} in {logs.folder.as_posix()}: {status}",
        *wrap_line(state_seeds(runs)),
    ]
    lines += wrap_line(f"The same in every run: {', '.join(fixed)}") if fixed else []
    return lines + wrap_line(state_score(runs)) if counts.get("done") else lines


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


def _present(tables: dict, runs: pd.DataFrame, format: str) -> str:
    """Lay out all tables for people."""
    shown = {
        "answer": _show_answer,
        "best_learning_rates": _show_best,
        "convergence": _show_convergence,
        "equal_budgets": _show_budgets,
        "costs": _show_costs,
    }
    lost = list_lost_methods(tables["answer"], tables["best_learning_rates"], runs)
    before = NOTES | {"answer": state_answer(tables["answer"], runs) + lost}
    after = {"best_learning_rates": list_warnings(tables["best_learning_rates"], runs)}
    sections = []
    for name, table in tables.items():
        body = (
            render(shown[name](table, runs), format)
            if len(table)
            else "nothing to show: no finished run for it"
        )
        notes = [
            ["\n".join(wrap_line(line, "  ")) for line in lines.get(name, [])] for lines in (before, after)
        ]
        parts = ["\n".join(notes[0]), body, "\n".join(notes[1])]
        sections.append(section(TITLES[name], "\n\n".join(part for part in parts if part), format))
    return "\n\n".join(sections)


def state_answer(answer: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Say in a sentence for each context how the best ZO cell stands to FO and to the controls."""
    sentences, keys = [], stats.list_context(runs)
    for _, zo in answer[answer["mode"] == "ZO"].iterrows() if len(answer) else ():
        where, gap = stats.name_context(zo, runs), zo["minus_FO"]
        start = (
            f"{where}: best {stats.name_method(zo, runs)} (lr {spell_lr(zo['lr'])}) ends at {zo['loss']:.3f}"
        )
        parts = ["no FO run finished to compare with"]
        if not pd.isna(gap):
            side = "above" if gap > 0 else "below"
            doubt = zo["minus_FO_low"] <= 0 <= zo["minus_FO_high"]
            parts = [f"{spread(abs(gap), _half(zo, 'minus_FO'))} {side} the best FO's {zo['loss'] - gap:.3f}"]
            parts[0] += " (the interval holds 0: no difference shown)" if doubt else ""
        for control in ("Frozen", "Random"):
            gain = -zo[f"minus_{control}"]
            if not pd.isna(gain):
                said = f"{gain:.3f} below" if gain > 0 else f"NOT below, but {-gain:.3f} above"
                parts.append(f"{said} {control}")
        sentences.append(f"{start}: {', '.join(parts)}.{_doubt_rates(answer, zo, keys)}")
    return sentences


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
    same = answer[keys].astype(str).eq(zo[keys].astype(str)).all(axis=1) & answer["mode"].isin(["FO", "ZO"])
    flagged = [f"{row.mode} ({row.edge})" for row in answer[same].itertuples() if row.edge]
    return f" Learning rate not settled: {', '.join(flagged)}." if flagged else ""


def list_warnings(best: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Give a line for each cell whose learning rate is not settled."""
    cells = [row for _, row in best.iterrows() if row["warning"]]
    return [
        f"warning: {stats.name_context(row, runs)}, {stats.name_method(row, runs)}: {row['warning']}"
        for row in cells
    ]


def _show_answer(answer: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    frame = _name_rows(answer, runs)
    frame["n"] = answer["n"]
    frame["loss"] = _with_interval(answer, "loss", "high", "")
    for other in ("FO", "Frozen", "Random"):
        name = f"minus_{other}"
        frame[f"minus {other}"] = _with_interval(answer, name, f"{name}_high", "+")
    frame["lr flag"] = answer["edge"]
    return frame


def _show_best(best: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    frame = _name_rows(best, runs)
    frame["n"] = best["n"]
    frame["loss"] = _with_interval(best, "loss", "high", "")
    return frame.assign(tried=best["tried"], diverged=best["diverged"], flag=best["edge"])


def _show_convergence(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    frame = _name_rows(table, runs)
    frame.insert(1, "loss", table["target"].map("{:.3f}".format))
    frame["reached"] = table["reached"].astype(str) + "/" + table["n"].astype(str)
    for name, title in {"step": "steps", "forward_passes": "forward", "equivalents": "fwd equiv."}.items():
        frame[title] = table[name].map(shorten)
    return frame.assign(seconds=table["seconds"].map(shorten))


def _show_budgets(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    shown = _with_interval(table, "difference", "high", "+") + " at " + table["budget"].map(shorten)
    frame = _name_rows(table, runs).assign(FO=table["FO_lr"].map(spell_lr))
    frame = frame.rename(columns={"FO": "FO lr"})
    keys = list(frame.columns)
    frame["kind"], frame["shown"] = table["kind"], shown.where(table["budget"].notna(), "no shared range")
    wide = frame.set_index([*keys, "kind"])["shown"].unstack("kind", sort=False).reset_index()
    return wide.rename(
        columns={kind: f"at equal {kind.replace('forward-pass', 'fwd')}" for kind in curves.BUDGETS}
    )


def _show_costs(costs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    frame = _name_rows(costs, runs)
    for name in ("runs", "seconds_per_step", "tokens_per_second", "forward_per_step", "backward_per_step"):
        frame[name.replace("_per_", "/")] = costs[name].map(shorten)
    return frame.assign(**{"peak MB": costs["peak_memory_mb"].map(shorten)})


def _show_runs(runs: pd.DataFrame) -> pd.DataFrame:
    frame = runs[["run", "status"]].assign(steps=runs["steps"].map(shorten))
    for name, title in {"final_loss": "train", "final_val_loss": "val", "best_val_loss": "best val"}.items():
        frame[title] = runs[name].map(lambda loss: "-" if pd.isna(loss) else f"{loss:.3f}")
    names = {"tokens": "tokens", "forward_passes": "fwd", "backward_passes": "bwd"}
    names |= {"seconds": "seconds", "tokens_per_second": "tokens/s", "peak_memory_mb": "MB"}
    return frame.assign(**{title: runs[name].map(shorten) for name, title in names.items()})


def _name_rows(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Start a table for people: where, method, lr."""
    rows = [row for _, row in table.iterrows()]
    frame = pd.DataFrame({"where": [stats.name_context(row, runs) for row in rows]}, index=table.index)
    frame["method"] = [stats.name_method(row, runs) for row in rows]
    lr = table["lr"].where(table["mode"] != "Frozen") if "lr" in table else None  # Frozen uses none
    return frame.assign(lr=lr.map(spell_lr)) if "lr" in table else frame


def _with_interval(table: pd.DataFrame, mean: str, high: str, sign: str) -> pd.Series:
    return pd.Series(
        [spread(m, h - m, sign) for m, h in zip(table[mean], table[high], strict=True)], table.index
    )


def _half(row: pd.Series, name: str) -> float:
    return row[f"{name}_high"] - row[name]
