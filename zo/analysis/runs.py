"""CSV logs to one table: a row for each logged step (`Logs`), then a row for each run (`summarize_runs`).

A loss that was measured and came out NaN or infinite is kept as +inf, so that NaN only ever means "not
measured" and a diverged value can never drop out of a mean unseen. Units: losses in nats, memory in MiB.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from zo.errors import UserError
from zo.methods import METHODS
from zo.spec import uses
from zo.training.record import COLUMNS

NAN = ("nan", "+nan", "-nan", "none")
TEXT_COLUMNS = ("timestamp", "mode", "scope", "optimizer")
CORE_AXES = ("mode", "scope", "batch_size", "q", "lr", "optimizer", "seed")
LOGGED_AXES = (*CORE_AXES, "block_size", "bp_interval", "epsilon")
# What is being learned, as against how: these separate comparisons whenever they differ at all.
PROBLEM_AXES = ("scope", "batch_size", "model_size", "architecture", "dataset", "tokenizer", "vocab_size")
ALIASES = {"query_budget_q": "q", "query_budget": "q", "learning_rate": "lr"}
NAMES = {"q": "query_budget_q", "lr": "learning_rate"}
FACTS = ("trainable_parameters",)  # in `Logs.specs` because a law needs them, but no setting
BLEW_UP, NO_BETTER = 2.0, 0.95
"""A loss above twice the untrained model's blew up; a last one above 0.95 of it never came back."""
COUNTERS = ("tokens", "tokens_evaluated", "forward_passes", "backward_passes")
NAME = re.compile(r"(?P<mode>[^_]+)_(?P<scope>[^_]+)_bs(?P<batch_size>\d+)_q(?P<q>\d+)_lr(?P<lr>[^_]+)")


@dataclass(frozen=True)
class Logs:
    """A folder of logs: `rows` has every row and its `run`, `frames` the same cut by run (empty: no rows)."""

    folder: Path
    rows: pd.DataFrame
    frames: dict[str, pd.DataFrame]
    specs: dict[str, dict]
    outcomes: dict[str, dict]


def read_logs(folder: str | Path, only: Collection[str] | None = None) -> Logs:
    """Read every `<run>.csv` in `folder`, and `../runs/<run>/{spec,manifest,outcome}.json` where they are.

    `only`: names of the runs to read, None for all. Raises UserError for a missing or empty folder, for one
    that holds none of those runs, and for a file that is no log.
    """
    folder = Path(folder)
    paths = [path for path in _list_logs(folder) if only is None or path.stem in only]
    if not paths:
        raise UserError(f"none of the study's {len(only)} runs has a log in {str(folder)!r}: run it first")
    texts = {path.stem: _read_text(path) for path in paths}
    rows = _to_numbers(pd.concat(texts, names=["run", "row"]).reset_index("run"), folder)
    rows = rows.sort_values(["run", "step"], kind="stable").reset_index(drop=True)
    frames = dict.fromkeys(sorted(texts), rows.iloc[:0])
    frames |= {str(run): frame.reset_index(drop=True) for run, frame in rows.groupby("run", sort=False)}
    beside = folder.parent / "runs"
    specs = {run: _read_spec(beside / run) for run in frames}
    outcomes = {run: _read_json(beside / run / "outcome.json") for run in frames}
    return Logs(folder, rows, frames, specs, outcomes)


def summarize_runs(logs: Logs) -> pd.DataFrame:
    """Give one row a run, sorted: its settings, its status and what it reached and cost.

    `final_loss` is the mean over the last 10 % of the rows with a training loss (at least one row);
    `final_val_loss` is the last one measured, and empty where the run did not finish. A diverged run's
    `final_loss` is inf where one of those rows is. `tokens_per_second` is tokens / seconds of the whole run.
    A run that ended by itself but blew up (`_tell_blow_up`) is a diverged one.
    """
    settings = pd.DataFrame([read_settings(logs, run) for run in logs.frames], index=list(logs.frames))
    for axis in CORE_AXES:
        settings[axis] = settings.get(axis, np.nan)
    settings["q"] = settings["q"].fillna(0)  # a mode that makes no queries: q0, as in its name
    settings = settings[[*CORE_AXES, *_find_further_axes(settings)]]
    measures = pd.DataFrame([_measure_run(logs, run) for run in logs.frames], index=settings.index)
    runs = settings.join(measures).rename_axis("run").reset_index()
    order = [*CORE_AXES[:4], "lr", *settings.columns[5:], "run"]
    runs = runs.sort_values(order, key=_sort_key, kind="stable").reset_index(drop=True)
    return runs.apply(_whole_numbers)


def read_settings(logs: Logs, run: str) -> dict:
    """Collect a run's settings: its log's first row, then its spec, then (without rows) its name."""
    spec = {ALIASES.get(key, key): value for key, value in logs.specs[run].items()}
    known = {key: value for key, value in spec.items() if value is not None and key not in FACTS}
    flat = {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in known.items()}
    named = NAME.match(run)
    found = named.groupdict() if named and logs.frames[run].empty else {}
    for key in {"batch_size", "q", "lr"} & found.keys():
        found[key] = float(found[key]) if re.fullmatch(r"[\d.]+(e[+-]?\d+)?", found[key]) else np.nan
    logged = {name: logs.frames[run][name].iat[0] for name in LOGGED_AXES if not logs.frames[run].empty}
    settings = found | flat | {key: value for key, value in logged.items() if not pd.isna(value)}
    return {key: value for key, value in settings.items() if applies(settings.get("mode"), key)}


def list_axes(runs: pd.DataFrame) -> list[str]:
    """Name the setting columns of a run table: those between `run` and `status`."""
    return list(runs.columns[1 : runs.columns.get_loc("status")])


def applies(mode: str | None, key: str) -> bool:
    """Whether a method reads a setting: a spec holds the defaults of those that it does not."""
    setting = NAMES.get(key, key)
    return mode not in METHODS or setting in ("query_budget_q", "learning_rate") or uses(mode, setting)


def spell_lr(lr: float) -> str:
    """Spell a learning rate as run names do: 1e-05, 2.5e-04; '-' where there is none."""
    if pd.isna(lr):
        return "-"
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def read_table(path: Path, what: str = "table", **options) -> pd.DataFrame:
    """Read a CSV file. Raises UserError for one that is none, of zero bytes too; `what` it should be."""
    try:
        return pd.read_csv(path, **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path} is not a CSV {what} ({reason}): remove it or write it again") from None


def find_log(logs: Logs, run: str) -> Path | None:
    """Find a run's job log: where its outcome says (from here or from above), else where it usually is."""
    named = logs.outcomes[run].get("log")
    roots = [Path(), logs.folder.parent, logs.folder.parent.parent]
    places = [root / named for root in roots] if named else []
    places.append(logs.folder.parent / "job_logs" / f"{run}.log")
    return next((place for place in places if place.is_file()), Path(named) if named else None)


def _list_logs(folder: Path) -> list[Path]:
    inner = folder / "csv_logs"
    hint = f"did you mean {inner}?" if inner.is_dir() else "give the folder that holds <run>.csv files"
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}: {hint}")
    paths = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    if not paths or inner.is_dir():
        raise UserError(f"no run logs in {str(folder)!r}: {hint}")
    return paths


def _read_text(path: Path) -> pd.DataFrame:
    """Read one log as text, for "" (not measured) and "nan" (diverged) must stay apart; no rows: crashed."""
    if not path.read_bytes().strip():
        return pd.DataFrame()
    frame = read_table(path, "log", dtype=object, keep_default_na=False, skipinitialspace=True)
    missing = [name for name in ("step", "mode") if name not in frame]
    if not {"loss", "val_loss"} & set(frame.columns):
        missing.append("loss or val_loss")
    if missing:
        raise UserError(f"{path} lacks the columns: {', '.join(missing)}; add or rename them")
    return frame


def _to_numbers(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Turn the text columns of a CSV log into floats; absent columns become empty ones."""
    columns = {"run": rows["run"].astype(object)}
    for name in COLUMNS:
        text = rows[name].fillna("") if name in rows else pd.Series("", index=rows.index, dtype=object)
        if name in TEXT_COLUMNS:
            columns[name] = text.where(text != "", None)
            continue
        numbers = pd.to_numeric(text, errors="coerce").astype(float)
        lost = numbers.isna() & (text != "") & ~text.str.strip().str.lower().isin(NAN)
        if lost.any():
            file = folder / f"{rows['run'][lost].iloc[0]}.csv"
            raise UserError(f"{file}: {text[lost].iloc[0]!r} in column {name} is no number; correct that row")
        if name in ("loss", "val_loss"):
            numbers = numbers.mask((text != "") & ~np.isfinite(numbers), np.inf)
        columns[name] = numbers
    return pd.DataFrame(columns).reset_index(drop=True)


def _read_spec(folder: Path) -> dict:
    """Read a run's settings, and the one fact of its manifest that a law needs: how much it trains."""
    trained = _read_json(folder / "manifest.json").get("trainable_parameters")
    return _read_json(folder / "spec.json") | ({"trainable_parameters": trained} if trained else {})


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except OSError:  # a run that crashed early left none
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): remove it or write it again") from None


def _find_further_axes(settings: pd.DataFrame) -> list[str]:
    """Name the settings beyond the core ones that tell runs apart.

    A setting that merely follows the core ones (a plan that depends on q, a block size on the mode) is
    left out; one of PROBLEM_AXES counts whenever it varies, for runs on two problems are no comparison.
    """
    further = [n for n in sorted(settings) if n not in (*CORE_AXES, "run", "name")]
    several = {n for n in further if n in PROBLEM_AXES and settings[n].nunique() > 1}
    groups = settings.groupby(list(CORE_AXES), dropna=False)
    # "Not set" is a value too: of two runs alike but for it, one is no repeat of the other.
    return [n for n in further if n in several or groups[n].nunique(dropna=False).max() > 1]


def _measure_run(logs: Logs, run: str) -> dict:
    """Measure one run; see `summarize_runs` for the definitions."""
    frame = logs.frames[run]
    column = {name: frame[name].to_numpy() for name in COLUMNS}
    status, reason = _judge_run(logs.outcomes[run], column)
    train = column["loss"][~np.isnan(column["loss"])]
    seen = ~np.isnan(column["val_loss"])
    val, val_step = column["val_loss"][seen], column["step"][seen]
    best = int(np.argmin(val)) if np.isfinite(val).any() else None
    tail = train[-max(1, len(train) // 10) :]
    last = {name: _last(column[name]) for name in COUNTERS}
    seconds = _last(column["seconds"])
    log = find_log(logs, run) if status == "crashed" else logs.outcomes[run].get("log")
    return {
        "status": status,
        "reason": reason,
        "steps": _last(column["step"]),
        **last,
        "final_loss": tail.mean() if len(tail) and status != "crashed" else np.nan,
        "best_loss": train.min() if np.isfinite(train).any() else np.nan,
        "initial_val_loss": val[0] if len(val) and val_step[0] == 0 else np.nan,
        "final_val_loss": val[-1] if len(val) and status == "done" else np.nan,
        "best_val_loss": np.nan if best is None else val[best],
        "best_val_step": np.nan if best is None else val_step[best],
        "seconds": seconds,
        "tokens_per_second": last["tokens"] / seconds if seconds else _last(column["tokens_per_second"]),
        "peak_memory_mb": np.fmax.reduce(column["peak_memory_mb"], initial=np.nan),
        "log": str(log) if log else None,
    }


def _judge_run(outcome: dict, column: dict[str, np.ndarray]) -> tuple[str, str | None]:
    """Return status and reason: from the outcome, else no rows: crashed, last loss inf: diverged.

    A run that is done, by its outcome or without one, but blew up is diverged: its log decides.
    """
    if outcome.get("status") in ("diverged", "crashed"):
        return outcome["status"], outcome.get("reason")
    if outcome.get("status") != "done":
        if not len(column["step"]):
            return "crashed", "its log has no rows and no outcome was recorded"
        for name in ("loss", "val_loss"):
            if np.isinf(_last(column[name])):
                first = column["step"][np.isinf(column[name])][0]
                return "diverged", f"{name} not finite from step {first:.0f}"
    if blow_up := _tell_blow_up(column):
        return "diverged", blow_up
    return "done", None


def _tell_blow_up(column: dict[str, np.ndarray]) -> str | None:
    """Say how a run blew up: it lost more than BLEW_UP times the untrained model, and stayed no better.

    Some training or validation loss after step 0 above BLEW_UP x the validation loss at step 0, and the last
    validation loss above NO_BETTER x that. None for a run that did not, or that came back, and where the
    untrained model or a later validation loss was not measured.
    """
    trained = column["step"] > 0
    seen = ~np.isnan(column["val_loss"])
    start, val = column["val_loss"][seen & (column["step"] == 0)], column["val_loss"][seen & trained]
    if not len(start) or not len(val):
        return None
    losses = np.fmax(column["loss"], column["val_loss"])[trained]
    peak = np.nanmax(losses)
    if peak <= BLEW_UP * start[0] or val[-1] <= NO_BETTER * start[0]:
        return None
    step = column["step"][trained][np.nanargmax(losses)]
    began = f"a loss of {peak:.6g} at step {step:.0f}, more than twice the untrained model's"
    return f"blew up: {began}; it ended at {val[-1]:.4g}, no better than it began"


def _last(values: np.ndarray) -> float:
    """Return the last value that is there, or NaN."""
    there = values[~np.isnan(values)]
    return there[-1] if len(there) else np.nan


def _whole_numbers(column: pd.Series) -> pd.Series:
    """Make a float column of whole numbers (a step, a count) an integer one that can be empty."""
    whole = column.name in (*COUNTERS, "batch_size", "q", "seed", "steps", "best_val_step", "block_size")
    return column.astype("Int64") if whole and column.dropna().astype(float).mod(1).eq(0).all() else column


def _sort_key(column: pd.Series) -> pd.Series:
    """Sort numbers as numbers and everything else as text, so that mixed settings sort at all."""
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
