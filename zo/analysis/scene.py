"""What guards look at, one context of a study with its runs and their logs, and what they find there."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from zo.analysis import stats
from zo.analysis.runs import Logs, spell_lr


class Finding(NamedTuple):
    """One raised guard. `withholds`: the methods (modes) whose verdict against FO it takes away."""

    guard: str
    where: str
    message: str
    remedy: str
    withholds: tuple[str, ...] = ()


class Scene(NamedTuple):
    """One context: its name, its rows of `compare_methods`, its runs, all runs (for naming), and the logs."""

    where: str
    answer: pd.DataFrame
    runs: pd.DataFrame
    study: pd.DataFrame
    logs: Logs
    backward_cost: float

    @property
    def trained(self) -> pd.DataFrame:
        """The rows of methods that train, the controls left out."""
        return self.answer[~self.answer["mode"].isin(stats.CONTROLS)]

    @property
    def compared(self) -> tuple[str, ...]:
        """The methods that get a verdict against FO."""
        return tuple(mode for mode in self.trained["mode"] if mode != "FO")

    @property
    def leads(self) -> tuple[str, ...]:
        """The methods that end lower than FO, which must not stand without controls."""
        return tuple(row["mode"] for _, row in self.trained.iterrows() if find_leader(row) == row["mode"])

    def find_cost(self, mode: str) -> tuple[str, ...]:
        """The verdicts that a fault of one method takes away: of FO all, of a control leads, else its own."""
        if mode in stats.CONTROLS:
            return self.leads
        return self.compared if mode == "FO" else (mode,)

    def name_cell(self, row: pd.Series) -> str:
        """Name a method at its chosen settings: 'ZO q=8, lr 1e-03'."""
        return f"{stats.name_method(row, self.study)}, lr {spell_lr(row['lr'])}"

    def select_runs(self, row: pd.Series) -> pd.DataFrame:
        """The finished runs that a row of the answer is made of."""
        return stats.select_runs(self.runs, row)

    def find_fo(self) -> pd.Series | None:
        """The row of FO, if it has one."""
        return next((row for _, row in self.answer.iterrows() if row["mode"] == "FO"), None)


def find_leader(row: pd.Series) -> str | None:
    """Who ends lower, of FO and a row's method, by the difference's own interval; None where it holds 0."""
    if row["minus_FO_low"] > 0:
        return "FO"
    return row["mode"] if row["minus_FO_high"] < 0 else None


def set_scenes(logs: Logs, runs: pd.DataFrame, answer: pd.DataFrame, backward_cost: float) -> Iterator[Scene]:
    """Cut the runs and the answer by context."""
    keys = stats.list_context(runs)

    def cut(frame: pd.DataFrame) -> dict:
        if frame.empty:
            return {}
        groups = frame.groupby(keys, dropna=False, sort=False)
        return {stats.name_context(group.iloc[0], runs): group for _, group in groups}

    answers = cut(answer)
    for where, group in cut(runs).items():
        yield Scene(where, answers.get(where, answer.iloc[:0]), group, runs, logs, backward_cost)
