"""What probes measured: estimates against the exact gradient and their laws, over runs and batches."""

import numpy as np
import pandas as pd

from zo.analysis.guards import Finding
from zo.analysis.intervals import Interval, mean_interval, rms_interval
from zo.analysis.runs import Logs, read_table
from zo.layout import shorten

KEYS = ["at", "scope", "d", "mode", "quantity", "q", "epsilon"]
NAMES = {
    "cosine": "RMS cosine of g_hat with g",
    "second_moment": "|g_hat|^2 / |g|^2",
    "slope_error": "error of the slopes, of their RMS",
    "best_rate": "best rate of a step, of FO's",
    "best_rate_fo": "best rate of a step along g",
    "curvature_ratio": "r = tr(H) |g|^2 / g'Hg",
    "gradient_noise": "|g_batch - g|^2 / |g|^2",
}
LAWS = ("cosine", "second_moment", "best_rate")
"""Quantities that stand beside a law."""
BAD_SLOPE = 0.1
"""Error of the finite differences, of their RMS, above which eps is called bad."""
RATIOS = (
    "Of each ratio the one farthest from its law over q is given. Each interval is of 95 % by itself: one in "
    "twenty misses a law that holds."
)
COLUMNS = [*KEYS, "measured", "low", "high", "n", "law"]


def read_probes(logs: Logs) -> pd.DataFrame:
    """Read probes/<run>.csv of the runs; no rows where none was probed. Raises UserError for a broken one."""
    paths = [logs.folder.parent / "probes" / f"{run}.csv" for run in logs.frames]
    frames = [read_table(path, dtype={"at": str}) for path in paths if path.is_file()]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run", *KEYS])


def measure_probes(probes: pd.DataFrame) -> pd.DataFrame:
    """Average over runs, batches and estimates: `measured` with `low` and `high`, `n`, and the law's `law`.

    A cosine is the root of a mean square, as its law is. Estimates of one batch share its gradient, so n is
    that of estimates, not of seeds; infinite and missing values are left out.
    """
    rows = []
    probes = probes.sort_values("at", key=lambda at: at.map(_order_place), kind="stable")
    for key, group in probes.groupby(KEYS, dropna=False, sort=False):
        own = dict(zip(KEYS, key, strict=True))
        found = _average(group["value"], own["quantity"])
        rows.append(
            own
            | dict(zip(("measured", "low", "high", "n"), found, strict=True))
            | {"law": group["law"].mean()}
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"q": "Int64"})


def _average(values: pd.Series, quantity: str) -> Interval:
    values = values[np.isfinite(values)]
    return rms_interval(values) if quantity == "cosine" else mean_interval(values)


def show_probes(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out the table for people."""
    frame = table[["at", "scope"]].copy()
    frame["d"] = table["d"].map(lambda d: f"{d:.0f}")
    frame["run's mode"] = table["mode"]
    frame["quantity"] = table["quantity"].map(NAMES)
    frame["q"] = table["q"].map(lambda q: "-" if pd.isna(q) else f"{q}")
    frame["eps"] = table["epsilon"].map(lambda eps: "-" if pd.isna(eps) else f"{eps:g}")
    half = (table["high"] - table["low"]) / 2
    frame["measured"] = [
        shorten(mean) + ("" if pd.isna(h) else f" ± {shorten(h)}")
        for mean, h in zip(table["measured"], half, strict=True)
    ]
    return frame.assign(law=table["law"].map(shorten), n=table["n"])


def check_epsilon(probes: pd.DataFrame, logs: Logs) -> list[Finding]:
    """Find runs whose finite differences at their own eps are, at any of their probed weights, far from the
    exact slopes.
    """
    found = []
    for run, rows in probes[probes["quantity"] == "slope_error"].groupby("run"):
        own = logs.specs[run].get("epsilon")
        errors = rows.groupby(["epsilon", "at"])["value"].mean().unstack()
        if not own or own not in errors.index or not errors.loc[own].max() > BAD_SLOPE:
            continue
        at = errors.loc[own].idxmax()
        found.append(
            Finding(
                "epsilon",
                run,
                f"at its eps of {own:g} a finite difference is wrong by {errors.loc[own, at]:.0%} of the "
                f"slopes' RMS {name_place(at)}",
                f"the error is least at eps {errors[at].idxmin():g}, {errors[at].min():.1%}",
            )
        )
    return found


def name_place(at: str) -> str:
    """Say at which weights a probe was made: 'at the start', 'at step 100', 'at the end'."""
    return f"at step {at}" if at.isdecimal() else f"at the {at}"


def _order_place(at: str) -> float:
    return int(at) if at.isdecimal() else {"start": 0}.get(at, np.inf)


def conclude(table: pd.DataFrame) -> list[str]:
    """Say, for each scope, how the measured cosines and lengths stand to their laws, with n and interval."""
    said, compared = [], False
    for (at, scope, mode), rows in table.groupby(["at", "scope", "mode"], sort=False):
        parts = []
        for quantity in LAWS:
            own = rows[(rows["quantity"] == quantity) & rows["law"].notna() & rows["measured"].notna()]
            if len(own):
                parts.append(f"{NAMES[quantity]} is {_state_ratio(own)}")
        compared |= bool(parts)
        slopes = rows[rows["quantity"] == "slope_error"]
        if len(slopes):
            best = slopes.loc[slopes["measured"].idxmin()]
            error = f"an error of {100 * best['measured']:.2g} %, n = {best['n']}"
            parts.append(f"slopes are most exact at eps {best['epsilon']:g} ({error})")
        if parts:
            said.append(f"{scope}, {mode}'s weights {name_place(at)}: {'; '.join(parts)}.")
    return said + [RATIOS] * compared


def _state_ratio(own: pd.DataFrame) -> str:
    """Say how far a quantity is from its law, and at how many q its interval excludes the law.

    `own`: its rows of `measure_probes`, one for each q.
    """
    ratio = own[["measured", "low", "high"]].div(own["law"], axis=0)
    far = (ratio["measured"] - 1).abs().idxmax()
    mean, low, high = ratio.loc[far]
    ends = "no interval" if pd.isna(low) else f"{low:.3f} to {high:.3f}"
    words = f"{mean:.3f} times its law ({ends}, n = {own.loc[far, 'n']}, q = {own.loc[far, 'q']})"
    outside = int(((ratio["low"] > 1) | (ratio["high"] < 1)).sum())
    return words + f", which the interval excludes at {outside} of {len(own)} q" * (outside > 0)
