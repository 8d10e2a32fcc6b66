"""What a sweep's results must show: ``python tests/check_sweep.py results``; CI runs it after `make sweep`.

Read from summary.csv, so that it checks what people are given. Prints each finding; exits 1 if one fails.
"""

import sys
from pathlib import Path

import pandas as pd

GAP = 0.2
"""Nats of validation loss that full-scope ZO must win over the controls."""


def find_failures(results: Path) -> list[str]:
    """Compare the final validation losses of the full scope; a line for each claim that does not hold."""
    runs = pd.read_csv(results / "summary.csv")
    full = runs[(runs["scope"] == "full") & (runs["status"] == "done")]
    best = full.groupby(["mode", "q"])["final_val_loss"].min()
    zo = best["ZO"].min()
    claims = {
        f"every run ended as done or diverged: {dict(runs['status'].value_counts())}": set(runs["status"])
        <= {"done", "diverged"},
        f"FO learns: {best['FO'].min():.3f} is a nat below the untrained model": best["FO"].min()
        < full["initial_val_loss"].max() - 1,
        f"ZO q=8 ({best['ZO', 8]:.3f}) ends below q=1 ({best['ZO', 1]:.3f}) at equal steps": best["ZO", 8]
        < best["ZO", 1],
        "all ZO runs compared made as many steps": full.loc[full["mode"] == "ZO", "steps"].nunique() == 1,
        "summary.txt states n": "n = " in (results / "summary.txt").read_text(),
    }
    for control in ("Frozen", "Random"):
        if control in best:
            loss = best[control].min()
            claims[f"best ZO ({zo:.3f}) ends {GAP} nats below {control} ({loss:.3f})"] = zo <= loss - GAP
    for claim, holds in claims.items():
        print("holds " if holds else "FAILS ", claim)
    return [claim for claim, holds in claims.items() if not holds]


if __name__ == "__main__":
    sys.exit(bool(find_failures(Path(sys.argv[1]))))
