"""Makes studies whose claims are true or false by construction: losses fall in straight lines."""

import math
import random
from pathlib import Path

import pandas as pd
from made_runs import START, write_probe, write_run

STEPS = 20
RATES = {"FO": (1e-2, 1e-1, 1e0), "ZO": (1e-4, 1e-3, 1e-2, 1e-1)}
# (mode, scope, q): the loss at the end with the best learning rate, and that rate.
TRUTH = {
    ("FO", "full", 0): (3.0, 0.2),
    ("ZO", "full", 1): (5.5, 1e-3),
    ("ZO", "full", 4): (5.0, 4e-3),
    ("Frozen", "full", 0): (START, None),
    ("FO", "reduced", 0): (4.0, 0.2),
    ("ZO", "reduced", 1): (5.0, 1e-3),
    ("ZO", "reduced", 4): (4.8, 4e-3),
    ("Frozen", "reduced", 0): (START, None),
    ("LayerwiseFO", "full", 0): (3.5, 0.2),
    ("LayerwiseZO", "full", 4): (4.0, 4e-3),
    ("LayerwiseFrozen", "full", 0): (5.0, None),
}
"""A study in which every claim is true: FO gains 3 nats in scope full and ZO 1 (0.5 with one query) ..."""
BEND = 0.2
"""Nats that a learning rate ten times off the best one costs at the end."""


def write_claims_study(
    folder: Path,
    truth: dict = TRUTH,
    seeds=(0, 1, 2),
    noise: float = 0.002,
    shift=0.02,
    rates: dict = RATES,
    **options,
) -> Path:
    """Write the runs of `truth` at every rate and seed; `noise` [nats] is a run's own, `shift` a seed's.

    The folder. A second call adds to it.
    """
    draw = random.Random(0)
    for (mode, scope, q), (end, best) in truth.items():
        own = [1e-4] if best is None else rates["FO" if "FO" in mode else "ZO"]
        for lr in own:
            for seed in seeds:
                loss = end + (0 if best is None else BEND * math.log10(lr / best) ** 2)
                moved = shift * seed + draw.gauss(0, noise)
                write_line(folder, mode, scope, q, lr, seed, loss + moved * (mode != "Frozen"), **options)
    return folder


def write_line(
    folder: Path, mode: str, scope: str, q: int, lr: float, seed: int, end: float, steps=STEPS, **options
) -> str:
    """Write a run whose losses lie on the line from START at step 0 to `end` at the last step. Its name."""
    options = {"steps": steps, "every": 2, **options}
    run = write_run(folder, mode, scope, q, lr, seed=seed, **options)
    path = folder / f"{run}.csv"
    frame = pd.read_csv(path)
    line = START + (end - START) * frame["step"] / steps
    for name in ("loss", "val_loss"):
        frame[name] = line.where(frame[name].notna())
    frame.to_csv(path, index=False)
    return run


def write_probes(folder: Path, cosine: float = 1.0, noise: float = 0.01) -> None:
    """Write the probes of two scopes, of a thousand and of a hundred numbers."""
    for scope, d in (("full", 1000), ("reduced", 100)):
        write_probe(folder, f"ZO_{scope}_bs4_q4_lr1e-02", cosine=cosine, scope=scope, d=d, noise=noise)
