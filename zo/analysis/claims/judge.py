"""Verdicts on the paper's claims: supported, not supported or undecided, each with its numbers.

Rules: docs/claims.md. What is compared: rules.py; at which settings: arms.py.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from zo.analysis.claims.arms import Evidence, Lacking
from zo.analysis.claims.compare import Comparison
from zo.analysis.claims.rules import CLAIMS, Claim
from zo.analysis.intervals import Interval
from zo.analysis.lost import find_unfinished, tell_partial
from zo.analysis.runs import Logs, read_logs, summarize_runs
from zo.analysis.summary import FORMATS, check_format
from zo.files import make_folder, write_aside
from zo.layout import render, section, shorten, write_lines

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
MIN_SEEDS = 3
LEVEL = 0.95
LEVELS = (
    "Intervals are Student's t at 95 % over seeds, paired by seed. Verdicts rest on the widened ones, which "
    "hold at 95 % for all judged comparisons over seeds at once (Bonferroni). C2's are over the probes' "
    "estimates: a family of their own, which holds at 95 % by itself."
)
COLUMNS = (
    "claim", "verdict", "reason", "statement", "role", "quantity", "effect", "unit", "low", "high",
    "wide_low", "wide_high", "n", "over", "region_low", "region_high", "compared",
)  # fmt: skip


def write_claims(
    folder: str | Path,
    out: str | Path,
    *,
    format: str = "text",
    only: Collection[str] | None = None,
    backward_cost: float = 2.0,
) -> str:
    """Judge the claims by a folder of CSV logs (of `only` these runs), write `out` (CSV); the text.

    `format`: of the text: text, md, csv, json or tex; those for people name the runs without an outcome.
    Raises UserError for a folder that holds no logs.
    """
    check_format(format, FORMATS)
    unfinished = find_unfinished(folder, only)
    logs = read_logs(folder, only)
    table = judge_claims(logs, summarize_runs(logs), backward_cost)
    make_folder(Path(out).parent)
    write_aside(Path(out), table.to_csv(index=False))
    return tell_claims(table, format, tell_partial(unfinished))


def judge_claims(logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0) -> pd.DataFrame:
    """Judge every claim: a row for each comparison, with the claim's verdict and its reason on all its rows.

    `effect` with `low` to `high`: 95 % by itself; `wide_low` to `wide_high`: so wide that all judged
    comparisons over seeds hold at once (Bonferroni), those over estimates being a family of their own. The
    verdict rests on these, for the rows whose `role` is judged and whose region stands beside them.
    """
    main, large = (Evidence(logs, runs, backward_cost, largest) for largest in (False, True))
    found = [(claim, *_compare(claim, large if claim.largest else main)) for claim in CLAIMS]
    counts = {over: count_comparisons(found, over) for over in ("seeds", "estimates")}
    rows = []
    for claim, comparisons, lacking in found:
        confidence = 1 - (1 - LEVEL) / max(1, counts[claim.over])
        wide = [comparison.measure(confidence) for comparison in comparisons]
        verdict, reason = reach_verdict(list(zip(comparisons, wide, strict=True)), lacking)
        own = {"claim": claim.name, "verdict": verdict, "reason": reason, "statement": claim.statement}
        rows += [own | {"over": claim.over} | _lay(*pair) for pair in zip(comparisons, wide, strict=True)]
        rows += [] if comparisons else [own]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64"})


def count_comparisons(found: Iterable[tuple], over: str) -> int:
    """Count the judged intervals over seeds or over estimates, those that one row stands for too."""
    judged = [c for claim, comparisons, _ in found if claim.over == over for c in comparisons if c.region]
    return sum(c.stands_for for c in judged if not np.isnan(c.measure(LEVEL).low))


def reach_verdict(judged: list[tuple[Comparison, Interval]], lacking: str | None) -> tuple[str, str]:
    """Return verdict and reason of one claim from its comparisons with their widened intervals.

    Supported: every judged interval lies in its region. Not supported: one lies outside. Undecided: anything
    else, an arm that is missing, fewer than MIN_SEEDS, or a doubt about how an arm was chosen.
    """
    judged = [(comparison, wide) for comparison, wide in judged if comparison.region]
    doubts = [lacking] if lacking else []
    for comparison, wide in judged:
        doubts += comparison.doubts
        doubts += [f"n = {wide.n} < {MIN_SEEDS}: {comparison.quantity}"] if wide.n < MIN_SEEDS else []
    if doubts:
        return UNDECIDED, "; ".join(dict.fromkeys(doubts))
    outside = [comparison.quantity for comparison, wide in judged if _is_outside(comparison, wide)]
    if outside:
        return NOT_SUPPORTED, f"the widened interval lies on the other side: {', '.join(outside)}"
    unclear = [comparison.quantity for comparison, wide in judged if not _is_inside(comparison, wide)]
    if unclear:
        return UNDECIDED, f"the widened interval holds the threshold: {', '.join(unclear)}"
    return SUPPORTED, ""


def tell_claims(table: pd.DataFrame, format: str = "text", partial: Iterable[str] = ()) -> str:
    """Tell the claims for people (text, md, tex), verdict first; or the table as csv or json.

    `partial`: lines for people on runs that are not there, before all else.
    """
    if format == "csv":
        return table.to_csv(index=False)
    if format == "json":
        return json.dumps(json.loads(table.to_json(orient="records")), indent=1) + "\n"
    parts = [write_lines([*partial, count_verdicts(table), LEVELS], format)]
    for card in lay_cards(table):
        tables = [render(card.shown, format)] * (len(card.shown) > 0)
        body = [write_lines([card.reason], format), *tables, write_lines(card.compared, format)]
        title = f"{card.name} {card.verdict.upper()}: {card.statement}"
        parts.append(section(title, "\n\n".join(part for part in body if part), format))
    return "\n\n".join(parts) + "\n"


class Card(NamedTuple):
    """One claim as people see it: `measured`, its judged effects in words, and `shown`, all effects."""

    name: str
    verdict: str
    statement: str
    reason: str
    measured: list[str]
    shown: pd.DataFrame
    compared: list[str]


def lay_cards(table: pd.DataFrame) -> list[Card]:
    """Lay out `judge_claims`' table for people, a card for each claim."""
    cards = []
    for name, rows in table.groupby("claim", sort=False):
        first, judged = rows.iloc[0], rows[rows["role"] == "judged"]
        measured = [_spell(row) for row in judged.itertuples()]
        words = (first[key] if pd.notna(first[key]) else "" for key in ("verdict", "statement", "reason"))
        cards.append(Card(name, *words, measured, show_claim(rows), list_compared(rows)))
    return cards


def show_claim(rows: pd.DataFrame) -> pd.DataFrame:
    """Lay out the comparisons of one claim for people."""
    rows = rows[rows["quantity"].notna()]
    frame = pd.DataFrame({"quantity": rows["quantity"]})
    frame["effect"] = [f"{shorten(row.effect)} {row.unit}" for row in rows.itertuples()]
    frame["95 %"] = [_span(row.low, row.high) for row in rows.itertuples()]
    wide = [_span(row.wide_low, row.wide_high) for row in rows.itertuples()]
    frame["widened"] = [
        "-" if role == "shown" else span for role, span in zip(rows["role"], wide, strict=True)
    ]
    frame["wanted"] = [_region(row.region_low, row.region_high) for row in rows.itertuples()]
    return frame.assign(n=rows["n"].astype(str))


def list_compared(rows: pd.DataFrame) -> list[str]:
    """Say what each comparison compared; the same words for several are said once."""
    groups = rows.groupby("compared", sort=False)["quantity"]
    return [f"{', '.join(quantities)}: {compared}." for compared, quantities in groups]


def count_verdicts(table: pd.DataFrame) -> str:
    """Say how many claims there are of each verdict."""
    verdicts = table.drop_duplicates("claim")["verdict"].value_counts()
    return (
        ", ".join(f"{verdicts.get(name, 0)} {name}" for name in (SUPPORTED, NOT_SUPPORTED, UNDECIDED)) + "."
    )


def _compare(claim: Claim, evidence: Evidence) -> tuple[list[Comparison], str | None]:
    """Collect a claim's comparisons, as far as there are runs for them, and say what is lacking."""
    found = []
    try:
        for comparison in claim.compare(evidence):
            found.append(comparison)
    except Lacking as lacking:
        return found, str(lacking)
    return found, None


def _lay(comparison: Comparison, wide: Interval) -> dict:
    """Lay out one comparison as a row."""
    plain, region = comparison.measure(LEVEL), comparison.region or (np.nan, np.nan)
    return {
        "role": "judged" if comparison.region else "shown",
        "quantity": comparison.quantity, "effect": plain.mean, "unit": comparison.unit,
        "low": plain.low, "high": plain.high,
        "wide_low": wide.low if comparison.region else np.nan,
        "wide_high": wide.high if comparison.region else np.nan,
        "n": plain.n, "region_low": region[0], "region_high": region[1], "compared": comparison.compared,
    }  # fmt: skip


def _is_inside(comparison: Comparison, wide: Interval) -> bool:
    low, high = comparison.region
    return low < wide.low and wide.high < high


def _is_outside(comparison: Comparison, wide: Interval) -> bool:
    low, high = comparison.region
    return wide.high < low or high < wide.low


def _spell(row) -> str:
    """Write 'ZO minus FO at equal steps: 1.06 nats (0.97 to 1.15), n = 3', with the widened interval."""
    span = _span(row.wide_low, row.wide_high)
    return f"{row.quantity}: {shorten(row.effect)} {row.unit} ({span}), n = {row.n}"


def _span(low: float, high: float) -> str:
    return "no interval" if pd.isna(low) else f"{shorten(low)} to {shorten(high)}"


def _region(low: float, high: float) -> str:
    """Write what the claim wants of an effect: '> 0', '< 0.05', '0.9 to 1.1'; '-' where it is not judged."""
    if pd.isna(low):
        return "-"
    if np.isinf(high):
        return f"> {low:g}"
    return f"< {high:g}" if np.isinf(low) else f"{low:g} to {high:g}"
