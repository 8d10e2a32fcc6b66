"""Verdicts: which method is shown to end lower, by intervals that hold for all comparisons at once.

A verdict is a statement about one difference from FO. It is withheld where a guard found a mistake that could
have made the difference, and undecided where the widened interval holds 0.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from zo.analysis.intervals import Interval, widen
from zo.analysis.scene import Finding
from zo.analysis.stats import CONTROLS, ENDS, name_context

UNDECIDED = "undecided"
WITHHELD = "withheld"
NOTHING_TO_SAY = ("FO", *CONTROLS)


def judge_methods(answer: pd.DataFrame, findings: Sequence[Finding], runs: pd.DataFrame) -> pd.DataFrame:
    """Add to `compare_methods`' table `comparisons`, `all_low`, `all_high` (nats) and `verdict`.

    `comparisons` counts the methods, over all contexts, that have an interval of their difference from FO;
    `all_low` to `all_high` is that interval widened so that all of them hold at once at 95 % (Bonferroni).
    FO and the controls get no verdict.
    """
    if answer.empty:
        return answer
    gaps = [Interval(*(row[f"minus_FO{end}"] for end in ENDS)) for _, row in answer.iterrows()]
    judged = ~answer["mode"].isin(NOTHING_TO_SAY)
    comparisons = sum(gap.n >= 2 and pd.notna(gap.low) for gap, own in zip(gaps, judged, strict=True) if own)
    wide = [widen(gap, comparisons) for gap in gaps]
    places = [name_context(row, runs) for _, row in answer.iterrows()]
    verdicts = [
        _judge(mode, gap, [f for f in findings if f.where == where and mode in f.withholds]) if own else ""
        for mode, gap, where, own in zip(answer["mode"], wide, places, judged, strict=True)
    ]
    ends = {"all_low": [gap.low for gap in wide], "all_high": [gap.high for gap in wide]}
    return answer.assign(comparisons=comparisons, **ends, verdict=verdicts)


def list_unjudged(answer: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Name the contexts, in their order, where no verdict on ZO stands: withheld, or nothing to judge."""
    stands: dict[str, bool] = {}
    for _, row in answer.iterrows():
        judged = row["mode"] == "ZO" and pd.notna(row["minus_FO"]) and not row["verdict"].startswith(WITHHELD)
        where = name_context(row, runs)
        stands[where] = stands.get(where, False) or judged
    return [where for where, judged in stands.items() if not judged]


def put_judged_first(
    answer: pd.DataFrame, findings: Sequence[Finding], runs: pd.DataFrame
) -> tuple[pd.DataFrame, list[Finding]]:
    """Order the table of `judge_methods`, and guards: contexts where a verdict on ZO stands come first."""
    last = set(list_unjudged(answer, runs))
    late = [name_context(row, runs) in last for _, row in answer.iterrows()]
    ordered = answer.iloc[np.argsort(late, kind="stable")].reset_index(drop=True)
    return ordered, sorted(findings, key=lambda finding: finding.where in last)


def _judge(mode: str, gap: Interval, against: Sequence[Finding]) -> str:
    if pd.isna(gap.mean) and not gap.n:
        return "no FO run to compare with"
    if against:
        return f"{WITHHELD}: " + ", ".join(dict.fromkeys(finding.guard for finding in against))
    if gap.low > 0:
        return "FO ahead"
    return f"{mode} ahead" if gap.high < 0 else UNDECIDED


def state_comparisons(answer: pd.DataFrame) -> str:
    """Say how many comparisons were made, and what that does to the intervals."""
    count = int(answer["comparisons"].max()) if len(answer) else 0
    if not count:
        return "No difference from FO has an interval, so there is no verdict."
    if count == 1:
        return "One comparison with FO has an interval: its verdict rests on that 95 % interval."
    level = 100 * (1 - 0.05 / count)
    return (
        f"{count} comparisons with FO were made. Each ± is a 95 % interval by itself; verdicts rest on "
        f"wider ones, {level:.3g} % each, so that all {count} hold together at 95 % (Bonferroni)."
    )
