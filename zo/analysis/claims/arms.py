"""The arms of a claim at a budget: which runs, at which learning rate, with what loss for each seed.

The rules stand in docs/claims.md. An arm is a method in a scope; its other settings are those that are best
at the budget.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from zo.analysis.alike import Settings, gather_settings
from zo.analysis.curves import BUDGETS, find_span, index_seeds, read_at, read_curves
from zo.analysis.probes import read_probes
from zo.analysis.runs import Logs, spell_lr
from zo.analysis.stats import (
    CONTROLS,
    EDGE_WARNINGS,
    flag_edge,
    list_context,
    list_knobs,
    name_method,
    pick_score,
    settle_rate,
)
from zo.layout import shorten
from zo.sizes import SIZES

ROUNDING = 1 - 1e-9
"""A budget is reached but for rounding."""


class Lacking(Exception):
    """What a claim compares is not among the runs; the message says what."""


class Arm(NamedTuple):
    """A method in a scope; `q` None: at its best number of queries."""

    mode: str
    scope: str = "full"
    q: int | None = None

    def __str__(self) -> str:
        return f"{self.mode}{'' if self.q is None else f' q={self.q}'}, {self.scope}"


class Budget(NamedTuple):
    """An amount of steps, tokens, forward-pass equivalents or seconds (the kinds of BUDGETS)."""

    kind: str
    amount: float

    @property
    def column(self) -> str:
        """The column of a curve that counts it."""
        return BUDGETS[self.kind]

    def __str__(self) -> str:
        return f"{shorten(self.amount)} {self.kind}"


class Cell(NamedTuple):
    """An arm's runs at one setting of all but learning rate and seed.

    `complete`: the runs of each learning rate with which every seed finished; `tried`: those rates, and the
    ones that diverged.
    """

    name: str
    q: int
    runs: pd.DataFrame
    complete: dict[float, pd.DataFrame]
    tried: list[float]


class Choice(NamedTuple):
    """An arm at the cell and the learning rate that are best at a budget: `runs`, `losses` (nats) by seed.

    `settings`: those that it must have alike with what it is compared with (alike.py). What speaks against a
    verdict on it: `untuned`, that its rate lies on the edge of those tried, and `faults`, whatever its rate.
    """

    cell: Cell
    runs: pd.DataFrame
    losses: pd.Series
    told: str
    settings: Settings
    untuned: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """All that speaks against a verdict."""
        return self.untuned + self.faults


class Evidence:
    """The runs of one context with their curves and probes.

    The main context: the smallest model size (`largest`: the largest), and of several batch sizes, data sets
    or the like the one with the most runs.
    """

    def __init__(self, logs: Logs, runs: pd.DataFrame, backward_cost: float = 2.0, largest: bool = False):
        self.logs, self.backward_cost = logs, backward_cost
        self.score = pick_score(runs)
        self.runs = keep_context(runs, largest)
        self._cells: dict[tuple[str, str], list[Cell]] = {}

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """The measured points of the finished runs, by run."""
        done = self.runs[self.runs["status"] == "done"]
        return read_curves(self.logs, done, self.score, self.backward_cost)

    @cached_property
    def probes(self) -> pd.DataFrame:
        """The rows of the runs' probes."""
        probes = read_probes(self.logs)
        return probes[probes["run"].isin(self.runs["run"])]

    def list_queries(self, scope: str) -> list[int]:
        """List the query budgets of ZO in a scope; 0 stands for one that was not logged."""
        return sorted(int(q) for q in self._select(Arm("ZO", scope))["q"].unique() if q)

    def share_budget(self, kind: str, *arms: Arm) -> Budget:
        """Find the largest budget that all arms reach; Frozen stays what it is at any."""
        return Budget(kind, min(self._reach(arm, kind) for arm in arms if arm.mode != "Frozen"))

    def choose(self, arm: Arm, budget: Budget) -> Choice:
        """Choose an arm's cell and learning rate: the lowest mean loss at `budget` of those that reach it.

        Raises Lacking where none does, or where its first measurement lies beyond.
        """
        best, lowest = None, np.inf
        for cell in self._list_cells(arm):
            start, end = self._find_span(cell, budget.kind)
            if arm.mode != "Frozen" and not start <= budget.amount <= end / ROUNDING:
                continue
            losses = {rate: self._read_losses(runs, budget) for rate, runs in cell.complete.items()}
            means = {rate: own.mean() for rate, own in losses.items()}
            rate = settle_rate(means, cell.tried)
            if means[rate] < lowest:
                best, lowest = (cell, rate, losses[rate]), means[rate]
        if best is None:
            raise Lacking(f"no {arm} that was measured around {budget}")
        return self._describe(arm, *best)

    def find_rates(self, choice: Choice, budget: Budget) -> tuple[pd.Series, tuple[str, ...]]:
        """Find log10 of each seed's best learning rate at `budget` in the cell of a choice, and doubts.

        Refined by `refine_minimum`; a run that diverged has an infinite loss. Raises Lacking where learning
        rates were not logged.
        """
        cell, found, edges = choice.cell, {}, {}
        if not (np.array(cell.tried) > 0).all():
            raise Lacking(f"{cell.name}: learning rates above 0 were not logged")
        for seed, own in cell.runs[cell.runs["lr"].isin(cell.tried)].groupby("seed"):
            done = own[(own["status"] == "done") & own["run"].isin(self.curves)]
            curves = {run: self.curves[run] for run in done["run"]}
            at = dict(zip(done["lr"], read_at(curves, done, budget.column, budget.amount), strict=True))
            rates = sorted(own["lr"].unique())
            losses = np.array([at.get(rate, np.inf) for rate in rates])
            if edge := flag_edge(settle_rate(dict(zip(rates, losses, strict=True)), rates), rates):
                edges.setdefault(edge, []).append(str(seed))
            found[seed] = refine_minimum(np.log10(rates), losses)
        doubts = [
            f"not tuned: {cell.name}, seed {' '.join(seeds)}: {EDGE_WARNINGS[edge]}"
            for edge, seeds in edges.items()
        ]
        return pd.Series(found, dtype=float), (*doubts, *choice.faults)

    def _select(self, arm: Arm) -> pd.DataFrame:
        same = (self.runs["mode"] == arm.mode) & (self.runs["scope"] == arm.scope)
        return self.runs[same & (self.runs["q"] == arm.q if arm.q is not None else True)]

    def _list_cells(self, arm: Arm) -> list[Cell]:
        """List the cells of an arm that have a learning rate with which every seed finished."""
        if arm[:2] not in self._cells:
            self._cells[arm[:2]] = list(self._cut_cells(arm._replace(q=None)))
        return [cell for cell in self._cells[arm[:2]] if arm.q in (None, cell.q)]

    def _cut_cells(self, arm: Arm) -> Iterator[Cell]:
        mine = self._select(arm)
        planned = set(mine["seed"].dropna())
        known = mine[mine["status"] != "crashed"]
        for (q, *_), cell in known.groupby(["q", *list_knobs(self.runs)], dropna=False):
            complete, tried = {}, []
            for rate, own in cell.groupby("lr", dropna=False):
                measured = own[(own["status"] == "done") & own["run"].isin(self.curves)]
                gone = (own["status"] == "diverged").any()
                if len(measured) and planned <= set(measured["seed"]):
                    complete[rate] = measured
                tried += [rate] if gone or rate in complete else []
            if complete:
                name = f"{name_method(cell.iloc[0], self.runs)}, {arm.scope}"
                yield Cell(name, int(q), cell, complete, tried)

    def _find_span(self, cell: Cell, kind: str) -> tuple[float, float]:
        """Find the budgets between which every run of a cell's complete rates was measured."""
        runs = [run for own in cell.complete.values() for run in own["run"]]
        return find_span([self.curves[run] for run in runs], BUDGETS[kind])

    def _reach(self, arm: Arm, kind: str) -> float:
        if self._select(arm).empty:
            raise Lacking(f"no {arm}")
        found = [self._find_span(cell, kind)[1] for cell in self._list_cells(arm)]
        if not found:
            raise Lacking(f"no learning rate of {arm} finished in every seed")
        if not np.isfinite(found).any():
            raise Lacking(f"{arm}: {kind} were not logged")
        return float(np.nanmax(found))

    def _read_losses(self, runs: pd.DataFrame, budget: Budget) -> pd.Series:
        """Read the losses of one rate's runs at a budget, by seed; Frozen's are what they are at its end."""
        curves = {run: self.curves[run] for run in runs["run"]}
        if runs["mode"].iloc[0] == "Frozen":
            return read_last(curves, runs)
        return read_at(curves, runs, budget.column, budget.amount)

    def _describe(self, arm: Arm, cell: Cell, rate: float, losses: pd.Series) -> Choice:
        """Say what was chosen, and what speaks against a verdict on it."""
        runs = cell.complete[rate]
        settings = gather_settings(self.logs, runs["run"])
        if arm.mode in CONTROLS:
            return Choice(cell, runs, losses, cell.name, settings)
        untuned, told = [], f"{cell.name} (lr {spell_lr(rate)} of {', '.join(map(spell_lr, cell.tried))})"
        if edge := flag_edge(rate, cell.tried):
            untuned.append(f"not tuned: {cell.name}, lr {spell_lr(rate)}: {EDGE_WARNINGS[edge]}")
        faults = tuple(self._find_faults(cell, runs, losses))
        return Choice(cell, runs, losses, told, settings, tuple(untuned), faults)

    def _find_faults(self, cell: Cell, runs: pd.DataFrame, losses: pd.Series) -> Iterator[str]:
        """Find what takes a verdict away at any learning rate: no validation, or nothing learned."""
        if self.score != "final_val_loss":
            yield "no validation loss was measured: these are training losses"
        elif runs["initial_val_loss"].isna().any():
            yield f"{cell.name}: no loss of the untrained model was logged, so nothing shows that it learned"
        elif losses.mean() >= runs["initial_val_loss"].mean():
            yield f"{cell.name} did not learn: it is no better than the untrained model"


def keep_context(runs: pd.DataFrame, largest: bool = False) -> pd.DataFrame:
    """Keep the runs of the smallest (`largest`) model, and of its commonest batch size, data set ..."""
    if "model_size" in runs:
        sizes = [size for size in SIZES if size in set(runs["model_size"])]
        runs = runs[runs["model_size"] == sizes[-1 if largest else 0]] if sizes else runs
    others = [axis for axis in list_context(runs) if axis != "scope" and runs[axis].nunique() > 1]
    if not others:
        return runs
    groups = [group for _, group in runs.groupby(others, dropna=False)]
    return max(groups, key=len)


def read_last(curves: dict[str, pd.DataFrame], runs: pd.DataFrame) -> pd.Series:
    """Return each run's last loss, indexed by seed."""
    seeds = index_seeds(runs)
    return pd.Series({seeds[run]: curve["loss"].iloc[-1] for run, curve in curves.items()}, dtype=float)


def refine_minimum(x: np.ndarray, y: np.ndarray) -> float:
    """Return where the parabola through the lowest point and its two neighbours is lowest.

    `x` ascending. The lowest point itself at an end, or beside a value that is not finite.
    """
    i = int(np.argmin(y))
    near = slice(i - 1, i + 2)
    if i in (0, len(x) - 1) or not np.isfinite(y[near]).all():
        return float(x[i])
    square, linear, _ = np.polyfit(x[near] - x[i], y[near], 2)
    return float(x[i] if square <= 0 else np.clip(x[i] - linear / (2 * square), x[i - 1], x[i + 1]))
