"""The report: one HTML file that opens from disk, with every number computed from the runs."""

import base64
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from zo.analysis import answer, lost, provenance, stats
from zo.analysis.claims.judge import COLUMNS, LEVELS, count_verdicts, lay_cards
from zo.analysis.collect import TITLES, Reading, read_folder, tell_notes
from zo.analysis.figures.captions import state_basis, write_captions
from zo.analysis.figures.panels import say_n
from zo.analysis.figures.plots import draw_figures
from zo.analysis.runs import list_axes, read_table, spell_lr
from zo.analysis.tables import SHOW, show_runs
from zo.analysis.verdicts import WITHHELD, list_unjudged, state_comparisons
from zo.analysis.words import list_words
from zo.files import make_folder, write_aside
from zo.layout import spread

QUESTION = "Where, how far and at what cost does zeroth-order training keep up with backprop?"
CLAIMS = "claims.csv"
"""The verdicts that `zo claims` leaves beside summary.csv, shown where they are."""
NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf))([kMG]?)(?=$|[\s/])")
SUFFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
SHOWN = 0.55
"""CSS pixels for a pixel of a figure: those of two panels are as wide as the page."""
FILTERS = ("status", "mode", "scope", "q", "lr")


class Table(NamedTuple):
    """A table as the page shows it: `rows` of (text, sort key), `numeric` by column, `filters` by column."""

    caption: str
    columns: list[str]
    rows: list[list[tuple[str, str]]]
    numeric: list[bool]
    filters: list[bool]


def write_report(
    folder: str | Path,
    out: str | Path,
    *,
    only: Collection[str] | None = None,
    backward_cost: float = 2.0,
    claims: bool = True,
) -> Path:
    """Write the report of `folder`'s runs (of `only` these) to `out` and return its path.

    `backward_cost`: forward passes that one backward pass counts as. `claims`: show a claims.csv that lies
    beside the logs. The same logs give the same bytes. Raises UserError for a folder that holds no readable
    logs.
    """
    out = Path(out)
    make_folder(out.parent)
    write_aside(out, render_report(read_folder(folder, only, backward_cost=backward_cost), claims))
    return out


def render_report(reading: Reading, claims: bool = True) -> str:
    """Return the page; `claims`: with those of the results folder, if there are any."""
    page = Environment(
        loader=PackageLoader("zo.analysis"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    ).get_template("report.html")
    tables, runs = reading.tables, reading.runs
    pictures = draw_figures(reading.logs, runs, backward_cost=reading.backward_cost)
    captions, told = write_captions(reading), read_claims(reading) if claims else None
    quantities = [line for card, _ in (told or {}).get("cards", ()) for line in card.measured]
    return page.render(
        study=name_study(reading),
        question=QUESTION,
        headline=state_headline(tables["answer"], reading),
        answers=answer.state_answer(tables["answer"], runs)
        + answer.list_lost_methods(tables["answer"], tables["best_learning_rates"], runs),
        facts=[answer.state_seeds(runs), answer.state_score(runs), state_comparisons(tables["answer"])],
        basis=state_basis(reading),
        counts=count_runs(reading),
        span=state_span(reading),
        findings=reading.findings,
        guards=count_guards(reading),
        tables={name: lay_table(name, reading) for name in SHOW if name in tables},
        titles=TITLES,
        notes=dict.fromkeys(SHOW, "") | tell_notes(reading),
        runs_table=lay_runs(reading),
        commands=[provenance.tell_command(reading.logs, run) for run in runs["run"]],
        targets=[provenance.name_target(reading.logs, run) for run in runs["run"]],
        figures={name: (captions[name], encode(png), find_width(png)) for name, png in pictures.items()},
        claims=told,
        words=list_words(reading, quantities),
        levels=LEVELS,
        problems=lost.find_problems(reading.logs, runs) + lost.find_lost(reading.unfinished),
        settings=provenance.list_settings(reading.logs),
        machines=provenance.list_machines(reading.logs),
        commit=provenance.state_commit(reading.logs),
        results=reading.logs.folder.parent.as_posix(),
        logs_folder=reading.logs.folder.as_posix(),
    )


def name_study(reading: Reading) -> str:
    """Name the study by its results folder, results/ itself being the default one's."""
    name = reading.logs.folder.resolve().parent.name
    return "default" if name == "results" else name


def state_headline(table: pd.DataFrame, reading: Reading) -> str:
    """Say the answer in a line: ZO's difference from FO in each context, n, and each verdict once.

    A withheld verdict's difference is no answer: it stands in the table alone.
    """
    zo = table[table["mode"] == "ZO"] if len(table) else table
    if zo.empty:
        return "No ZO run finished: there is nothing to answer with."
    gaps, verdicts = [], {}
    for _, row in zo.iterrows():
        where = stats.name_context(row, reading.runs)
        verdicts.setdefault(row["verdict"], []).append(where)
        if pd.notna(row["minus_FO"]) and not row["verdict"].startswith(WITHHELD):
            gaps.append(f"{spread(row['minus_FO'], row['minus_FO_high'] - row['minus_FO'], '+')} in {where}")
    start = f"ZO's final loss minus FO's: {'; '.join(gaps)} (nats, {say_n(reading.runs)}). " if gaps else ""
    said = {f"verdict {text}" if text.startswith(WITHHELD) else text: at for text, at in verdicts.items()}
    return start + " ".join(f"{text[:1].upper()}{text[1:]} ({'; '.join(at)})." for text, at in said.items())


def count_guards(reading: Reading) -> str:
    """Count the raised guards by name, and of them those of contexts where no verdict on ZO stands."""
    found, said = reading.findings, answer.count_findings(reading.findings)
    unjudged = list_unjudged(reading.tables["answer"], reading.runs)
    away = [finding.where for finding in found if finding.where in unjudged]
    if not 0 < len(away) < len(found):
        return said
    places = "; ".join(dict.fromkeys(away))
    return f"{said} {len(away)} of these {len(found)} are of {places}, where no verdict on ZO stands."


def count_runs(reading: Reading) -> str:
    """Say how many runs there are in each state."""
    counts = reading.runs["status"].value_counts()
    for run in reading.unfinished:
        counts[run.state] = counts.get(run.state, 0) + 1
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def state_span(reading: Reading) -> str:
    """Say when the runs were made; no date of the report itself, so that the same logs give the same page."""
    stamps = reading.logs.rows["timestamp"].dropna()
    ends = [stamp[:16].replace("T", " ") for stamp in (stamps.min(), stamps.max())] if len(stamps) else []
    return f"{' to '.join(ends)} UTC" if ends else "unknown date"


def lay_table(name: str, reading: Reading) -> Table:
    """Lay out one table of `SHOW`; without rows where there is nothing to show."""
    table = reading.tables[name]
    if table.empty:
        return Table(TITLES[name], [], [], [], [])
    return lay_frame(TITLES[name], SHOW[name](table, reading.runs))


def lay_frame(caption: str, frame: pd.DataFrame, keys: dict[str, pd.Series] | None = None) -> Table:
    """Lay out a frame of texts; `keys` hold the numbers that columns sort by, where text does not tell."""
    keys = keys or {}
    columns = list(map(str, frame.columns))
    numeric = [name in keys or _is_numeric(frame[name]) for name in frame.columns]
    rows = []
    for i in range(len(frame)):
        texts = ["" if pd.isna(value) else str(value) for value in frame.iloc[i]]
        sort = [
            keys[name].iloc[i] if name in keys else text for name, text in zip(columns, texts, strict=True)
        ]
        rows.append([(text, _sort_key(value)) for text, value in zip(texts, sort, strict=True)])
    return Table(caption, columns, rows, numeric, [name in FILTERS for name in columns])


def lay_runs(reading: Reading) -> Table:
    """Lay out every run with its settings, sorted by their exact numbers."""
    runs = reading.runs
    axes = [axis for axis in list_axes(runs) if axis in FILTERS or runs[axis].nunique(dropna=False) > 1]
    settings = runs[axes].astype(object).where(runs[axes].notna(), "")
    settings["lr"] = runs["lr"].map(spell_lr)
    shown = show_runs(runs)
    exact = {
        "lr": "lr", "steps": "steps", "train": "final_loss", "val": "final_val_loss",
        "best val": "best_val_loss", "tokens": "tokens", "fwd": "forward_passes", "bwd": "backward_passes",
        "seconds": "seconds", "tokens/s": "tokens_per_second", "MiB": "peak_memory_mb",
    }  # fmt: skip
    keys = {name: runs[column] for name, column in exact.items()}
    frame = pd.concat([shown[["run", "status"]], settings, shown.drop(columns=["run", "status"])], axis=1)
    return lay_frame("All runs", frame, keys)


def _is_numeric(column: pd.Series) -> bool:
    return all(_as_number(value) is not None for value in column if str(value) not in ("", "-"))


def _as_number(value: object) -> float | None:
    """Read the number that a cell begins with ('5.5 ± 0.1', '+1.061 at 500', '1/3', '49.6k'), or None."""
    found = NUMBER.match(str(value))
    return float(found[1]) * SUFFIXES[found[2]] if found else None


def _sort_key(value: object) -> str:
    """Spell a sort key: a number exactly; nothing for what was not measured, which sorts last."""
    if pd.isna(value) or value == "-":
        return ""
    number = _as_number(value)
    return str(value) if number is None else ("inf" if math.isinf(number) else repr(number))


def read_claims(reading: Reading) -> dict | None:
    """Read the claims of the results folder: their count, and a card with its table for each; None: none.

    A `claims.csv` from elsewhere that lacks columns is shown as the table that it is. Raises UserError for
    one that is no table.
    """
    path = reading.logs.folder.parent / CLAIMS
    if not path.is_file():
        return None
    table, age = read_table(path), state_age(reading, path)
    if not set(COLUMNS) <= set(table):
        plain = lay_frame("Claims", read_table(path, dtype=str, keep_default_na=False))
        return {"age": age, "plain": plain}
    cards = lay_cards(table.astype({"n": "Int64"}))
    tables = [lay_frame(f"{card.name}: every comparison", card.shown) for card in cards]
    return {"age": age, "counts": count_verdicts(table), "cards": list(zip(cards, tables, strict=True))}


def state_age(reading: Reading, claims: Path) -> str:
    """Say that verdicts are older than some of the logs, if they are: they were reached without those."""
    judged = claims.stat().st_mtime_ns
    logs = [reading.logs.folder / f"{run}.csv" for run in reading.logs.frames]
    newer = sum(log.stat().st_mtime_ns > judged for log in logs)
    remedy = f"judge again: python -m zo claims {reading.logs.folder.as_posix()}"
    return f"{CLAIMS} is older than {newer} of the {len(logs)} logs; {remedy}" if newer else ""


def find_width(png: bytes) -> int:
    """CSS pixels that a figure takes, so that words are as large in one of one panel as in one of two."""
    return round(int.from_bytes(png[16:20], "big") * SHOWN)


def encode(picture: bytes) -> str:
    """Return a PNG as a data URI: the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
