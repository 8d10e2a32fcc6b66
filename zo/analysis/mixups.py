"""Guards against runs that are no fair draw of their arm: cut short, copied, otherwise set or begun.

They are raised by guards.py. What honest arms share is exact, so these look for what one of them lacks.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations

import pandas as pd

from zo.analysis import stats
from zo.analysis.alike import gather_settings, tell_apart
from zo.analysis.curves import BUDGETS, count_equivalents
from zo.analysis.intervals import pair_seeds
from zo.analysis.runs import LOGGED_AXES
from zo.analysis.scene import Finding, Scene
from zo.methods import METHODS

TOLERANCE = 0.05
"""Budgets within a twentieth of each other count as equal."""
START_TOLERANCE = 0.01
"""Untrained losses of one seed are equal to the last bit in fp32; by more than this is no rounding."""
COPIED_POINTS = 2
"""Losses after step 0 that two seeds have equal to the last digit, where they have no other: no chance."""


def sum_costs(scene: Scene, runs: pd.DataFrame) -> pd.DataFrame:
    """What each run had spent at its end, a column for each kind of budget; NaN where it was not logged."""
    spent = runs.assign(step=runs["steps"], equivalents=count_equivalents(runs, scene.backward_cost))
    kinds = {kind: column for kind, column in BUDGETS.items() if kind != "seconds"}
    return pd.DataFrame({kind: spent[column].astype(float) for kind, column in kinds.items()})


def check_ends(scene: Scene) -> Iterator[Finding]:
    """Seeds of a chosen cell that ended before the others: its loss is a mean over unequal lengths."""
    for _, row in scene.trained.iterrows():
        mine = scene.select_runs(row)
        spent = sum_costs(scene, mine)
        short = spent < (1 - TOLERANCE) * spent.max()
        if short.any(axis=None):
            kind = short.any().idxmax()
            names = [
                f"{run} at {spent.loc[i, kind]:.4g}" for i, run in mine["run"].items() if short.loc[i, kind]
            ]
            message = f"{scene.name_cell(row)}: runs that ended before the others, these at "
            message += f"{spent[kind].max():.4g} {kind}: {', '.join(names)}"
            remedy = "run them to their end: delete their CSV, then `snakemake`"
            yield Finding("cut short", scene.where, message, remedy, scene.find_cost(row["mode"]))


def check_starts(scene: Scene) -> Iterator[Finding]:
    """An untrained loss that is not FO's of the same seed: other weights, or measured otherwise."""
    losses = {
        row["mode"]: stats.index_by_seed(scene.select_runs(row), "initial_val_loss").dropna()
        for _, row in scene.answer.iterrows()
    }
    fo, told = losses.pop("FO", pd.Series(dtype=float)), {}
    for mode, own in losses.items():
        seeds = pair_seeds(own, fo)
        mine, theirs = own[seeds].to_numpy(), fo[seeds].to_numpy()
        apart = seeds[abs(mine - theirs) > START_TOLERANCE * theirs]
        if len(apart):
            told[mode] = f"{mode} {own[apart[0]]:.4g} and FO {fo[apart[0]]:.4g} in seed {apart[0]}"
    if told:
        message = f"the untrained models of one seed lose not the same: {'; '.join(told.values())}"
        remedy = "run all from the same weights, measured on the same validation blocks"
        yield Finding("other start", scene.where, message, remedy, _sum_up(scene, told))


def _sum_up(scene: Scene, modes: Iterable[str]) -> tuple[str, ...]:
    """The verdicts that faults of several methods take away together."""
    return tuple(dict.fromkeys(cost for mode in modes for cost in scene.find_cost(mode)))


def check_copies(scene: Scene) -> Iterator[Finding]:
    """Two seeds of a chosen cell with one curve: one is a copy, and n counts it as a draw."""
    for _, row in scene.trained.iterrows():
        mine = scene.select_runs(row)
        pairs = combinations(zip(mine["run"], mine["seed"], strict=True), 2)
        twins = [(a, b) for (a, one), (b, two) in pairs if one != two and _is_copy(scene, a, b)]
        if twins:
            told = ", ".join(f"{a} and {b}" for a, b in twins)
            message = f"{scene.name_cell(row)}: equal to the last digit wherever both have a loss: {told}"
            remedy = "remove the copy and run its seed"
            yield Finding("copied run", scene.where, message, remedy, scene.find_cost(row["mode"]))


def _is_copy(scene: Scene, one: str, two: str) -> bool:
    """Whether two runs have the same losses wherever both have one."""
    frames = [scene.logs.frames[run].drop_duplicates("step").set_index("step") for run in (one, two)]
    first, second = (frame[["loss", "val_loss"]].stack() for frame in frames)
    shared = first.index.intersection(second.index)
    points = (shared.get_level_values("step") > 0).sum()
    return points >= COPIED_POINTS and first[shared].equals(second[shared])


def check_changes(scene: Scene) -> Iterator[Finding]:
    """A setting that is not one value throughout a log: the run is named by its first row's."""
    known = scene.runs[scene.runs["status"] != "crashed"]
    for mode, own in known.groupby("mode", sort=False):
        rows = scene.logs.rows[scene.logs.rows["run"].isin(own["run"])]
        counts = rows.groupby("run")[list(LOGGED_AXES)].nunique()
        changed = counts[(counts > 1).any(axis=1)]
        if len(changed):
            told = [_tell_change(scene, run, row.index[row > 1]) for run, row in changed.iterrows()]
            message = f"settings that change within a log: {'; '.join(told)}"
            remedy = "run these again in one piece; log a schedule's rates in current_lr, their peak in lr"
            yield Finding("changed half-way", scene.where, message, remedy, scene.find_cost(mode))


def _tell_change(scene: Scene, run: str, axes: pd.Index) -> str:
    """Say from which row of its log a run has other settings."""
    frame = scene.logs.frames[run]
    told = []
    for axis in axes:
        values = frame[axis].dropna()
        at = values.index[values.ne(values.iloc[0])][0]
        told.append(f"{axis} {values.iloc[0]} to {values[at]} at row {at + 1} (step {frame['step'][at]:.0f})")
    return f"{run}: {', '.join(told)}"


def check_settings(scene: Scene) -> Iterator[Finding]:
    """A setting that is no method's own, and not FO's: the difference may be that setting's.

    A study may train its methods on blocks of different sizes, as long as all are measured on the same ones.
    """
    arms = {
        row["mode"]: gather_settings(scene.logs, scene.select_runs(row)["run"])
        for _, row in scene.answer.iterrows()
    }
    if "FO" not in arms:
        return
    measures = {settings.get("validation_block_size") for settings in arms.values()}
    free = {"block_size"} if len(measures) == 1 and None not in measures else set()
    apart = tell_apart(arms)
    others = [mode for mode in arms if tell_apart({"FO": arms["FO"], mode: arms[mode]}).keys() - free]
    if others:
        told = ", ".join(text for setting, text in apart.items() if setting not in free)
        message = f"more than the method differs: {told}"
        remedy = "run all with the same settings"
        yield Finding("settings differ", scene.where, message, remedy, _sum_up(scene, others))
    if free & apart.keys():
        message = f"the methods trained in contexts of different lengths: {apart['block_size']}"
        remedy = "give all one block_size, or say with the result that each has its own"
        yield Finding("block sizes differ", scene.where, message, remedy)


def check_noise(scene: Scene) -> Iterator[Finding]:
    """Random at other settings than ZO, or for another time: its noise comes to another length."""
    rows = {row["mode"]: row for _, row in scene.answer.iterrows()}
    if not {"ZO", "Random"} <= set(rows):
        return
    keys = ("q", "lr", *sorted((METHODS["ZO"].uses & METHODS["Random"].uses) - {"query_budget_q"}))
    names = {mode: scene.name_cell(rows[mode]) for mode in ("ZO", "Random")}
    zo, random = (
        gather_settings(scene.logs, scene.select_runs(rows[mode])["run"], keys) for mode in ("ZO", "Random")
    )
    tried = scene.runs[(scene.runs["mode"] == "Random") & (scene.runs["status"] == "done")]
    alike = [
        not tell_apart({"ZO": zo, "Random": gather_settings(scene.logs, [run], keys)}) for run in tried["run"]
    ]
    wanted, taken = scene.select_runs(rows["ZO"])["steps"].median(), tried["steps"][alike]
    if taken.empty:
        apart = ", ".join(tell_apart({"ZO": zo, "Random": random}).values())
        message = f"no Random run has the settings of {names['ZO']}; that of {names['Random']}, differs in "
        message += f"{apart}: its distance to ZO is not one of direction alone"
        remedy = "run Random at the q, the learning rate and the update's settings of the best ZO"
    elif not (abs(taken / wanted - 1) <= TOLERANCE).any():
        message = f"Random at the settings of {names['ZO']} took {taken.median():.4g} steps, "
        message += f"ZO {wanted:.4g}: its noise comes to another length"
        remedy = "run Random for as many steps as the best ZO"
    else:
        return
    yield Finding("control not alike", scene.where, message, remedy, scene.leads)


MIXUPS = (
    check_ends,
    check_starts,
    check_copies,
    check_changes,
    check_settings,
    check_noise,
)
