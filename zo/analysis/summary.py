"""The summary of a folder of runs, for people (text, Markdown, LaTeX) and for machines (CSV, JSON)."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from zo.analysis import answer, stats
from zo.analysis.collect import TITLES, Reading, read_folder, tell_notes
from zo.analysis.lost import Unfinished, find_unfinished, list_problems, tell_partial
from zo.analysis.runs import applies, list_axes
from zo.analysis.tables import SHOW, show_runs
from zo.analysis.verdicts import state_comparisons
from zo.errors import unknown
from zo.files import write_aside
from zo.layout import render, section, write_lines

FORMATS = ("text", "md", "csv", "json", "tex")


def write_summary(
    folder: str | Path,
    txt: str | Path,
    csv: str | Path,
    *,
    only: Collection[str] | None = None,
    backward_cost: float = 2.0,
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
        text = _summarize_partly(folder, only, unfinished, backward_cost)
        write_aside(partial, text)
        return text
    reading = read_folder(folder, only, backward_cost=backward_cost)
    write_aside(Path(csv), reading.runs.to_csv(index=False))
    text = summarize(reading)
    write_aside(txt, text)
    partial.unlink(missing_ok=True)
    return text


def _summarize_partly(
    folder: str | Path, only: Collection[str] | None, unfinished: list[Unfinished], backward_cost: float
) -> str:
    """Say which runs are not there, then summarize those that are."""
    head = tell_partial(unfinished)
    finished = [path.stem for path in Path(folder).glob("*.csv") if only is None or path.stem in only]
    if not finished:
        return "\n".join([*head, "", "No run has finished.", ""])
    return "\n".join([*head, "", summarize(read_folder(folder, finished, backward_cost=backward_cost))])


def summarize(reading: Reading, format: str = "text") -> str:
    """Return the whole summary; as text at most WIDTH columns wide but for long paths.

    md and tex hold the same; csv is the run table alone, json the runs and every table.
    """
    if format in ("csv", "json"):
        tables = {"runs": reading.runs} | reading.tables
        return reading.runs.to_csv(index=False) if format == "csv" else _to_json(tables)
    problems = list_problems(reading.logs, reading.runs) or ["none"]
    parts = [write_lines(_head(reading), format), present(reading, format)]
    parts.append(section("All runs", render(show_runs(reading.runs), format), format))
    told = "\n".join(problems) if format == "text" else write_lines(problems, format)  # paths stay whole
    parts.append(section("Problems", told, format))
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

    `format`: text, md or tex for people; csv is one table whose first column names which one a row belongs
    to; json is an object of lists of rows. `targets`, `backward_cost`: see `read_folder`. Raises UserError.
    """
    check_format(format, FORMATS)
    reading = read_folder(folder, only, targets=targets, backward_cost=backward_cost)
    if format == "json":
        return _to_json(reading.tables)
    if format == "csv":
        return pd.concat(reading.tables, names=["table", None]).reset_index("table").to_csv(index=False)
    return present(reading, format) + "\n"


def check_format(format: str, allowed: Collection[str]) -> None:
    """Raise UserError for a format that is not one of `allowed`."""
    if format not in allowed:
        raise unknown("format", format, allowed)


def _to_json(tables: dict[str, pd.DataFrame]) -> str:
    return json.dumps({name: json.loads(t.to_json(orient="records")) for name, t in tables.items()}, indent=1)


def _head(reading: Reading) -> list[str]:
    logs, runs = reading.logs, reading.runs
    counts = runs["status"].value_counts()
    status = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("done", "diverged", "crashed"))
    fixed = _list_fixed(runs)
    lines = [
        f"{len(runs)} run{'s'[: len(runs) > 1]} in {logs.folder.as_posix()}: {status}",
        answer.state_seeds(runs),
    ]
    lines += [f"The same in every run: {', '.join(fixed)}"] if fixed else []
    lines += [answer.state_score(runs)] if counts.get("done") else []
    return [*lines, answer.count_findings(reading.findings)]


def _list_fixed(runs: pd.DataFrame) -> list[str]:
    """Name the settings that are one value in every run of a mode that reads them. Not set is a value too."""
    fixed, knobs = [], stats.list_knobs(runs)
    for axis in list_axes(runs):
        reads = np.array([applies(mode, axis) for mode in runs["mode"]])
        lost = runs[axis].isna() & (runs["status"] == "crashed")  # an early crash left few settings behind
        values = runs.loc[reads & ~lost, axis]
        if axis in ("seed", *knobs) or values.nunique(dropna=False) != 1 or values.isna().any():
            continue
        value = values.iloc[0]
        whole = isinstance(value, float) and value.is_integer()  # in a column with gaps
        fixed.append(f"{axis} {int(value) if whole else value}")
    return fixed


def present(reading: Reading, format: str) -> str:
    """Lay out all tables for people."""
    tables, runs = reading.tables, reading.runs
    lost = answer.list_lost_methods(tables["answer"], tables["best_learning_rates"], runs)
    said = answer.state_answer(tables["answer"], runs) + lost
    before = {name: [note] for name, note in tell_notes(reading).items()}
    before["answer"] = [*said, state_comparisons(tables["answer"])]
    before["guards"] = [answer.state_finding(finding) for finding in reading.findings] or ["none raised"]
    after = {"best_learning_rates": answer.list_warnings(tables["best_learning_rates"], runs)}
    sections = []
    for name, table in tables.items():
        body = "nothing to show: no finished run for it" if name in SHOW else ""
        if name in SHOW and len(table):
            body = render(SHOW[name](table, runs), format)
        parts = [write_lines(before.get(name, []), format), body, write_lines(after.get(name, []), format)]
        sections.append(section(TITLES[name], "\n\n".join(part for part in parts if part), format))
    return "\n\n".join(sections)
