"""Guards: the mistakes by which a comparison of methods wins falsely, looked for in the runs themselves.

Each guard is one function of a `Scene`, what one context shows, and yields a `Finding` for each time that it
is raised: what is wrong, what to do about it, and the methods whose verdict against FO it takes away. Those
on single runs that were mixed up are in mixups.py.
"""

from collections.abc import Callable, Iterator

import pandas as pd

from zo.analysis import stats
from zo.analysis.mixups import MIXUPS, TOLERANCE, sum_costs
from zo.analysis.runs import Logs, spell_lr
from zo.analysis.scene import Finding, Scene, find_leader, set_scenes

PASSES = "forward-pass equivalents"
UNEVEN = 2
"""A method chosen as the best of so many times more settings than FO had more luck."""


def raise_guards(
    logs: Logs, runs: pd.DataFrame, answer: pd.DataFrame, backward_cost: float = 2.0
) -> list[Finding]:
    """Look at every context with every guard; those that take a verdict away come first."""
    found = []
    for scene in set_scenes(logs, runs, answer, backward_cost):
        if not scene.answer.empty:
            found += [finding for guard in GUARDS for finding in guard(scene)]
    return sorted(found, key=lambda finding: not finding.withholds)


def check_tuning(scene: Scene) -> Iterator[Finding]:
    """A best learning rate on the edge of its grid, or the only one: the method may be better than shown."""
    sides = {"low edge": "lowest", "high edge": "highest", "single value": "only"}
    for _, row in scene.trained.iterrows():
        if side := sides.get(row["edge"]):
            name, mode = stats.name_method(row, scene.study), row["mode"]
            message = f"{name}: its best learning rate, {spell_lr(row['lr'])}, is the {side} one tried"
            message += f" in as many seeds: {row['tried']}" * (stats.FEWER in row["tried"])
            wanted = {"lowest": "lower ones", "highest": "higher ones"}.get(side, "lower and higher ones")
            remedy = f"add {wanted} to learning_rates of {mode}, until the best lies inside"
            yield Finding("not tuned", scene.where, message, remedy, scene.find_cost(mode))


def check_seeds(scene: Scene) -> Iterator[Finding]:
    """Fewer than two seeds in common with FO: no interval, so no verdict."""
    few = [row for row in scene.trained.to_dict("records") if row["mode"] != "FO" and row["minus_FO_n"] < 2]
    if not few or "FO" not in set(scene.answer["mode"]):
        return
    for pairs, words in {1: "n = 1", 0: "no seed in common"}.items():
        modes = tuple(row["mode"] for row in few if row["minus_FO_n"] == pairs)
        if modes:
            message = f"{', '.join(modes)} and FO: {words}, so there is no interval and no verdict"
            yield Finding(words, scene.where, message, "run the same seeds of both: seed: [0, 1, 2]", modes)


def check_repeats(scene: Scene) -> Iterator[Finding]:
    """Runs of the same settings with one seed, or with none: they are counted as n, but may be one draw."""
    for _, row in scene.trained.iterrows():
        seeds = scene.select_runs(row)["seed"]
        if len(seeds) > 1 and (seeds.isna().any() or seeds.duplicated().any()):
            message = f"{scene.name_cell(row)}: n = {len(seeds)} "
            message += "counts runs whose seeds are unknown or the same"
            remedy = "log each run's seed and the setting in which they differ, or remove the repeats"
            yield Finding("seeds not distinct", scene.where, message, remedy, scene.find_cost(row["mode"]))


def check_lost_seeds(scene: Scene) -> Iterator[Finding]:
    """A best cell that lacks seeds: the mean of those that survived flatters it."""
    for _, row in scene.trained.iterrows():
        mine = scene.runs[scene.runs["mode"] == row["mode"]]
        planned = mine["seed"].nunique()
        if 0 < row["n"] < planned:
            message = f"{scene.name_cell(row)}: {row['n']} of {planned} seeds have a result; "
            message += "its mean is that of the survivors"
            remedy = "run the missing seeds (`snakemake` repeats crashed runs)"
            yield Finding("seeds missing", scene.where, message, remedy, scene.find_cost(row["mode"]))


def check_unshared_seeds(scene: Scene) -> Iterator[Finding]:
    """Seeds that only one side of a comparison has: its loss is their mean too, the difference is not."""
    n = dict(zip(scene.answer["mode"], scene.answer["n"], strict=True))
    for row in scene.trained.to_dict("records"):
        shared = row["minus_FO_n"]
        if row["mode"] != "FO" and 2 <= shared < max(row["n"], n["FO"]):
            name = stats.name_method(row, scene.study)
            message = f"{name} has n = {row['n']} and FO n = {n['FO']}, but they share {shared}: a loss is "
            message += "the mean of all its own, the difference that of the shared ones"
            yield Finding("seeds differ", scene.where, message, "run the same seeds of both")


def check_divergence(scene: Scene) -> Iterator[Finding]:
    """A learning rate that diverged in some seeds only: averaging the others would hide it."""
    axes = ["mode", "q", *stats.list_knobs(scene.study), "lr"]
    for _, cell in scene.runs.groupby(axes, dropna=False, sort=False):
        gone, left = (cell["status"] == "diverged").sum(), (cell["status"] == "done").sum()
        if gone and left:
            name = f"{stats.name_method(cell.iloc[0], scene.study)}, lr {spell_lr(cell['lr'].iloc[0])}"
            message = f"{name}: {gone} of {gone + left} seeds diverged; this rate was not used"
            remedy = "read that rate as too high; the mean of its survivors is no result"
            yield Finding("diverged in part", scene.where, message, remedy)


def check_learning(scene: Scene) -> Iterator[Finding]:
    """A method that ends no better than no training, or than noise of its own length: is its sign right?"""
    for _, row in scene.trained.iterrows():
        for control in ("Frozen", "Random"):
            gap = row[f"minus_{control}"]
            if gap >= 0:
                than = "the untrained model" if control == "Frozen" else "the Random control"
                name = stats.name_method(row, scene.study)
                message = f"{name} ends {gap:.3f} nats above {than}: at its best settings it did not learn"
                remedy = "check the sign and the size of the update; try lower learning rates, more steps"
                # That FO is ahead of it stands; a lead would need an FO that did not learn either.
                cost = scene.find_cost("FO") if row["mode"] == "FO" else ()
                yield Finding("did not learn", scene.where, message, remedy, cost)
                break


def check_controls(scene: Scene) -> Iterator[Finding]:
    """Without controls a falling loss does not show that the estimate's direction was what did it.

    A lead over FO does not stand without them; that FO is ahead needs none.
    """
    if not set(scene.compared) - set(stats.CONTROLS):
        return
    there = set(scene.answer["mode"])
    wanted = ("Random", "Frozen") + ("LayerwiseFrozen",) * bool(there & {"LayerwiseFO", "LayerwiseZO"})
    missing = {mode: scene.runs[scene.runs["mode"] == mode] for mode in wanted if mode not in there}
    if missing:
        absent = [mode for mode, runs in missing.items() if runs.empty]
        lost = {mode: runs for mode, runs in missing.items() if not runs.empty}
        told = [f"no {' and no '.join(absent)} run"] * bool(absent) + list(map(_tell_lost, lost.values()))
        message = f"{'; '.join(told)}: nothing here shows what no training, or noise of the estimate's "
        message += "length, would have reached"
        remedies = [f"add {' and '.join(absent)} to modes"] * bool(absent)
        remedies += [f"run {' and '.join(lost)} at a lower learning rate"] * bool(lost)
        yield Finding("no control", scene.where, message, ", ".join(remedies), scene.leads)


def _tell_lost(runs: pd.DataFrame) -> str:
    """Say of a control without a result at which rates it diverged, and how; or that it crashed."""
    mode, gone = runs["mode"].iloc[0], runs[runs["status"] == "diverged"]
    if gone.empty:
        return f"no {mode} run finished"
    rates = [spell_lr(rate) for rate in sorted(gone["lr"].unique())]
    where = f"the only rate tried: {rates[0]}" if len(rates) == 1 else f"every rate tried: {', '.join(rates)}"
    return f"{mode} diverged at {where} ({len(gone)} of {len(runs)} runs; {gone['reason'].iloc[0]})"


def check_budgets(scene: Scene) -> Iterator[Finding]:
    """Final losses compared that cost different amounts.

    No verdict where no budget is equal, nor where the one that is ahead took more passes than the other: at
    equal steps any estimate gets better by more queries.
    """
    fo = scene.answer[scene.answer["mode"] == "FO"]
    theirs = _sum_costs(scene, fo.iloc[0]) if len(fo) else {}
    alike: dict[tuple, list] = {}  # methods that differ from FO in the same budgets share a finding
    for _, row in scene.trained[scene.trained["mode"] != "FO"].iterrows():
        mine = _sum_costs(scene, row)
        known = [kind for kind in theirs if pd.notna(mine[kind] + theirs[kind])]
        unequal = tuple(kind for kind in known if abs(mine[kind] - theirs[kind]) > TOLERANCE * theirs[kind])
        if unequal:
            equal = tuple(kind for kind in known if kind not in unequal)
            alike.setdefault((equal, unequal), []).append((row, mine))
    remedy = "read the table of equal budgets; give both the same max_steps, max_tokens or max_forwards"
    for (equal, unequal), arms in alike.items():
        bought = [(row["mode"], leader) for row, mine in arms if (leader := _find_buyer(row, mine, theirs))]
        message = _tell_costs(scene, theirs, equal, unequal, arms)
        if bought:
            over = [f"{leader} over {mode if leader == 'FO' else 'FO'}" for mode, leader in bought]
            message += f"; ahead with more passes: {', '.join(over)}"
        cost = [mode for mode, _ in bought] if equal else [row["mode"] for row, _ in arms]
        yield Finding("unequal budget", scene.where, message, remedy, tuple(cost))


def check_passes(scene: Scene) -> Iterator[Finding]:
    """Passes that were not logged: at equal steps a lead may have been bought with many times as many."""
    rows = [row for _, row in scene.trained.iterrows()]
    unknown = {row["mode"]: row for row in rows if pd.isna(_sum_costs(scene, row)[PASSES])}
    hidden = scene.compared if "FO" in unknown else tuple(unknown)
    if hidden and "FO" in set(scene.answer["mode"]):
        names = ", ".join(stats.name_method(row, scene.study) for row in unknown.values())
        message = f"the passes of {names} were not logged: nothing shows what a lead cost"
        remedy = "log forward_passes, and of methods with backprop backward_passes too"
        leads = tuple(row["mode"] for row in rows if row["mode"] in hidden and find_leader(row))
        yield Finding("passes unknown", scene.where, message, remedy, leads)


def _tell_costs(scene: Scene, theirs: dict[str, float], equal: tuple, unequal: tuple, arms: list) -> str:
    """Name the budgets that are equal, and those that are not with what FO and each arm had spent."""
    costs = []
    for kind in unequal:
        each = [f"{stats.name_method(row, scene.study)} {mine[kind]:.4g}" for row, mine in arms]
        costs.append(f"{kind} (FO {theirs[kind]:.4g}, {', '.join(each)})")
    same = f"equal {' and '.join(equal)}" if equal else "NO equal budget"
    return f"final losses at {same}, but at unequal {' and '.join(costs)}"


def _find_buyer(row: pd.Series, mine: dict[str, float], theirs: dict[str, float]) -> str | None:
    """Who is ahead, of FO and a row's method, where it took more passes than the other one."""
    leader = find_leader(row)
    most, least = (theirs, mine) if leader == "FO" else (mine, theirs)
    return leader if most[PASSES] > (1 + TOLERANCE) * least[PASSES] else None


def _sum_costs(scene: Scene, cell: pd.Series) -> dict[str, float]:
    """Median over seeds of what a cell's runs had spent at their ends; NaN where it was not logged."""
    return sum_costs(scene, scene.select_runs(cell)).median().to_dict()


def check_validation(scene: Scene) -> Iterator[Finding]:
    """Training loss where validation loss is meant; or runs that measured none and so are not ranked."""
    done = scene.runs[scene.runs["status"] == "done"]
    remedy = "log val_loss: set validation_interval, or add the column"
    if stats.pick_score(scene.study) == "final_loss":
        message = (
            "no finished run measured a validation loss: these are TRAINING losses, each of its own batch"
        )
        yield Finding("no validation loss", scene.where, message, remedy, scene.compared)
    elif missing := done.loc[done["final_val_loss"].isna(), "run"].tolist():
        message = (
            f"{len(missing)} finished runs have no validation loss and are not ranked: {', '.join(missing)}"
        )
        yield Finding("no validation loss", scene.where, message, remedy)


def check_tries(scene: Scene) -> Iterator[Finding]:
    """Many more settings tried for one method than for FO: the best of more tries is luckier."""
    axes = ["q", *stats.list_knobs(scene.study), "lr"]
    tried = {mode: len(own[axes].drop_duplicates()) for mode, own in scene.runs.groupby("mode")}
    fo = tried.get("FO", 0)
    # A single setting, of either, is "not tuned" already.
    apart = [
        m for m in scene.compared if min(fo, tried[m]) > 1 and max(tried[m] / fo, fo / tried[m]) >= UNEVEN
    ]
    if apart:
        counts = ", ".join(f"{mode} of {tried[mode]}" for mode in ("FO", *apart))
        message = f"each is the best of so many settings, chosen by the loss that is shown: {counts}"
        remedy = "tune all over as many settings, or confirm the chosen ones with new seeds"
        yield Finding("uneven tuning", scene.where, message, remedy)


GUARDS: tuple[Callable[[Scene], Iterator[Finding]], ...] = (
    check_tuning,
    check_seeds,
    check_repeats,
    check_lost_seeds,
    check_unshared_seeds,
    check_validation,
    check_budgets,
    check_passes,
    check_learning,
    check_divergence,
    check_controls,
    check_tries,
    *MIXUPS,
)
