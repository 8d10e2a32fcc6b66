"""Makes CSV logs of imaginary runs whose truth is known in closed form, and nothing else of zo's."""

import csv
import json
import math
import random
from pathlib import Path

COLUMNS = (
    "timestamp", "epoch", "step", "mode", "scope", "q", "lr", "current_lr", "batch_size", "block_size",
    "optimizer", "bp_interval", "epsilon", "loss", "val_loss", "grad_norm", "cosine", "tokens",
    "tokens_evaluated", "forward_passes", "backward_passes", "seconds", "tokens_per_second",
    "peak_memory_mb", "seed",
)  # fmt: skip
START = 6.0
BLOCK = 64
# What each mode would reach at its best learning rate: (loss at infinity, best learning rate).
TRUTH = {
    ("FO", 0): (2.5, 1e-2),
    ("ZO", 1): (4.8, 1e-4),
    ("ZO", 8): (4.0, 1e-3),
    ("Calibrate", 8): (3.2, 1e-3),
    ("Instruct", 8): (2.9, 1e-3),
    ("Random", 8): (5.95, 1e-5),
    ("Frozen", 0): (START, None),
}


def true_val_loss(mode: str, q: int, lr: float, step: int, seed: int = 0, rate: float = 0.03) -> float:
    """The noiseless validation loss: START at step 0, exponential to a floor, + 0.01 nats per seed."""
    floor, best = TRUTH.get((mode, q), (4.4, 1e-3))
    if best is None:
        return START
    end = floor + 0.5 * abs(math.log10(lr / best))
    return end + (START - end) * math.exp(-rate * step) + 0.01 * seed * (step > 0)


def costs_of_a_step(mode: str, q: int, step: int, bp_interval: int) -> tuple[float, float]:
    """(forward passes, backward passes) of step `step`."""
    if mode == "Frozen" or step == 0:
        return 0, 0
    if mode == "FO" or (mode == "Calibrate" and step % bp_interval == 0):
        return 1, 1
    guided = mode == "Instruct" and step % bp_interval == 0
    return 2 * q + guided, float(guided)


def name_run(mode: str, scope: str, batch_size: int, q: int, lr: float, seed: int = 0) -> str:
    mantissa, exponent = f"{lr:.3e}".split("e")
    spelled = f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return f"{mode}_{scope}_bs{batch_size}_q{q}_lr{spelled}" + (f"_seed{seed}" if seed else "")


def write_run(
    folder: Path,
    mode: str = "ZO",
    scope: str = "reduced",
    q: int = 1,
    lr: float = 1e-4,
    *,
    seed: int = 0,
    batch_size: int = 4,
    steps: int = 100,
    every: int = 5,
    diverges_at: int | None = None,
    spec: dict | None = None,
    name: str | None = None,
    **fields: object,
) -> str:
    """Write one finished (or diverged) run's CSV; `fields` overwrite columns. Returns its name."""
    run = name or name_run(mode, scope, batch_size, q, lr, seed)
    folder.mkdir(parents=True, exist_ok=True)
    interval = 10
    lines, forward, backward, seconds = [",".join(COLUMNS)], 0.0, 0.0, 0.0
    for step in range(steps + 1):
        now = costs_of_a_step(mode, q, step, interval)
        forward, backward = forward + now[0], backward + now[1]
        seconds += 0.01 * (now[0] + 2 * now[1])
        gone = diverges_at is not None and step >= diverges_at
        if step % every and not gone:
            continue
        loss = "nan" if gone else true_val_loss(mode, q, lr, step, seed) + 0.02 * math.sin(37 * step + seed)
        tokens = step * batch_size * BLOCK
        guided = mode == "Instruct" and step and step % interval == 0
        law = 0.9 / math.sqrt(0.81 + 0.19 / max(q, 1))  # Instruct's, at cosine_target 0.9
        cosine = law + 0.002 * math.sin(step) if guided else ""
        row = dict.fromkeys(COLUMNS, "") | {
            "timestamp": f"2026-01-01T00:{step // 60:02d}:{step % 60:02d}",
            "epoch": 0, "step": step, "mode": mode, "scope": scope, "q": q, "lr": lr, "current_lr": lr,
            "batch_size": batch_size, "block_size": BLOCK, "optimizer": "sgd",
            "bp_interval": interval if mode in ("Calibrate", "Instruct") else "",
            "epsilon": "" if mode in ("FO", "Frozen") else 1e-3,
            "loss": loss if step else "",
            "val_loss": true_val_loss(mode, q, lr, step, seed) if step % 10 == 0 and not gone else "",
            "grad_norm": 1.0 if step else "", "cosine": cosine, "tokens": tokens,
            "tokens_evaluated": int(forward * batch_size * BLOCK),
            "forward_passes": forward, "backward_passes": backward, "seconds": round(seconds, 6),
            "tokens_per_second": round(tokens / seconds, 3) if seconds else "",
            "peak_memory_mb": {"FO": 900.0, "Calibrate": 905.0, "Instruct": 910.0}.get(mode, 400.0 + 2 * q),
            "seed": seed,
        }  # fmt: skip
        lines.append(",".join(str((row | fields)[name]) for name in COLUMNS))
        if gone:
            break
    (folder / f"{run}.csv").write_text("\n".join(lines) + "\n")
    if spec is not None:
        write_beside(folder, run, "spec.json", spec)
    return run


def blow_up(folder: Path, run: str, peak: float = 1e5, end: float = START, at: int = 50) -> None:
    """Let a run's losses explode at step `at`, and stand at `end` after it."""
    path = folder / f"{run}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("loss", "val_loss"):
            if row[name] and int(row["step"]) >= at:
                row[name] = peak if int(row["step"]) == at else end
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_beside(folder: Path, run: str, name: str, content: dict) -> None:
    """Write `../runs/<run>/<name>` beside a folder of logs."""
    place = folder.parent / "runs" / run
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(json.dumps(content))


PROBED, ESTIMATES = 1000, 400
"""Numbers that the probed scope trains; estimates of each q."""
SETTLED = {1e-1: 0.9, 1e-3: 0.01, 1e-6: 0.5}
"""Error of the slopes by eps."""


def write_probe(
    folder: Path,
    run: str,
    errors: dict = SETTLED,
    cosine: float = 1.0,
    *,
    scope: str = "full",
    d: int = PROBED,
    noise: float = 0.0,
) -> None:
    """Write probes/<run>.csv: cosines are `cosine` times the law's, of either sign, lengths are the law's.

    `noise`: standard deviation of the cosines, in units of the law.
    """
    draw, rows = random.Random(1), []
    own = {"run": run, "mode": "ZO", "at": "end", "step": 100, "scope": scope, "d": d, "batch": 0}
    for q in (1, 4):
        for _ in range(ESTIMATES):
            law = math.sqrt(q / (q + d - 1))
            value = draw.choice([-1, 1]) * cosine * law
            value += draw.gauss(0, noise * law) if noise else 0
            rows.append(own | {"quantity": "cosine", "q": q, "value": value, "law": law})
            law = (d + q + 1) / q
            rows.append(
                own | {"quantity": "second_moment", "q": q, "value": law * draw.gauss(1, 0.1), "law": law}
            )
    rows += [own | {"quantity": "slope_error", "epsilon": eps, "value": e} for eps, e in errors.items()]
    rate = own | {"quantity": "best_rate", "q": 1, "law": 0.5}
    rows += [rate | {"value": value} for value in (0.4, 0.6, math.nan)]
    path = folder.parent / "probes" / f"{run}.csv"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*own, "quantity", "q", "epsilon", "value", "law"], restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_crash(folder: Path, run: str, log_lines: list[str], reason: str = "RuntimeError: boom") -> Path:
    """Write what a crashed run leaves: a CSV of zero bytes, an outcome, a job log. Returns the log's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run}.csv").write_text("")
    log = folder.parent / "job_logs" / f"{run}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(log_lines) + "\n")
    outcome = {"run": run, "status": "crashed", "reason": reason, "log": str(log), "step": 0}
    write_beside(folder, run, "outcome.json", outcome)
    return log


def write_sweep(folder: Path, seeds: tuple[int, ...] = (0,), scopes=("reduced", "full")) -> None:
    """Write the grid the project cares about: all modes, three learning rates, one divergence, one crash."""
    for seed in seeds:
        for scope in scopes:
            for lr in (1e-3, 1e-2, 1e-1):
                write_run(folder, "FO", scope, 0, lr, seed=seed, diverges_at=30 if lr == 1e-1 else None)
            for q in (1, 8):
                for lr in (1e-5, 1e-4, 1e-3):
                    write_run(folder, "ZO", scope, q, lr, seed=seed)
            for mode in ("Random", "Calibrate", "Instruct"):
                spec = {"cosine_target": 0.9} if mode == "Instruct" else None
                for lr in (1e-4, 1e-3):
                    write_run(folder, mode, scope, 8, lr, seed=seed, spec=spec)
            write_run(folder, "Frozen", scope, 0, 1e-5, seed=seed)
    write_crash(folder, "ZO_full_bs4_q8_lr1e-02", ["step 1", "Traceback (most recent call last):", "boom"])
