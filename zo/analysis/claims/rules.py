"""The paper's claims C1 to C8 as comparisons of arms, with the region that each effect must lie in.

Thresholds and regions were fixed before the runs, doubts and what counts as diverged were added since:
docs/claims.md tells all of them in words. Every threshold is our choice.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy

from zo.analysis.claims.arms import Arm, Budget, Choice, Evidence, Lacking
from zo.analysis.claims.compare import (
    ABOVE_0,
    BELOW_0,
    Comparison,
    Region,
    doubt_settings,
    hold_contest,
    oppose,
    show_share,
    subtract,
    subtract_shares,
)
from zo.analysis.claims.cosines import compare_cosines
from zo.analysis.curves import BUDGETS, SLACK
from zo.analysis.intervals import Interval, difference_interval, mean_interval
from zo.analysis.runs import read_settings
from zo.engine.laws import best_rate_ratio
from zo.methods import UPDATE

VARIANCE_MARGIN = 0.05
"""C6 [nats]: by how much one query a step may be worse than many and still not be at a disadvantage."""
MEMORY_SETTINGS = ("optimizer", "momentum", "block_size", "precision", "weights", "ranks")
"""C8: what memory depends on and FO and ZO both read; FO's least is taken over its own further settings."""
EMBEDDING = ("bp_learning_rate", "embedding_parts", *sorted(UPDATE))
"""C4: what the embedding's phase depends on."""
STEPS, TOKENS, PASSES, SECONDS = BUDGETS
TRIO = ("Frozen", "ZO", "FO")


class Claim(NamedTuple):
    """A claim of the paper and the comparisons that it rests on.

    `compare` raises Lacking where an arm is not there; `over`: what its n counts, seeds or estimates.
    `largest`: it looks at the largest model of the study, not at the main context.
    """

    name: str
    statement: str
    compare: Callable[[Evidence], Iterator[Comparison]]
    over: str = "seeds"
    largest: bool = False


def compare_full_scope(evidence: Evidence) -> Iterator[Comparison]:
    """C1: ZO at its best q minus FO, scope full, > 0 at equal steps, tokens and passes; seconds are shown.

    Where every run reads as many tokens a step, equal tokens are equal steps, and one comparison with them.
    """
    steps, tokens, passes = (
        oppose(evidence, Arm("ZO"), Arm("FO"), kind, ABOVE_0) for kind in (STEPS, TOKENS, PASSES)
    )
    alike = np.allclose(steps.measure(0.95), tokens.measure(0.95), equal_nan=True)
    yield from (steps, tokens._replace(stands_for=int(not alike)), passes)
    with suppress(Lacking):
        yield oppose(evidence, Arm("ZO"), Arm("FO"), SECONDS)


def compare_scopes(evidence: Evidence) -> Iterator[Comparison]:
    """C3: the share of FO's gain over Frozen that ZO reaches is larger in scope reduced than in full."""
    arms = {scope: [Arm(mode, scope) for mode in TRIO] for scope in ("reduced", "full")}
    budget = evidence.share_budget(PASSES, *arms["reduced"], *arms["full"])
    reduced, full = (hold_contest(evidence, scope, budget, *own) for scope, own in arms.items())
    yield subtract_shares(reduced, full)
    for contest in (reduced, full):
        yield show_share(contest)
        yield subtract(contest.zo, contest.fo, f"ZO minus FO, {contest.way}", budget)
    yield subtract(reduced.zo, full.zo, "ZO, reduced minus full", budget)


def compare_layerwise(evidence: Evidence) -> Iterator[Comparison]:
    """C4: ZO's share of FO's gain is larger layer by layer than in scope full, at equal steps.

    LayerwiseFrozen is the floor there: its blocks are never trained. That ZO's phases end below it is
    judged too, for a share of nothing is no share.
    """
    layers, plain = [Arm(f"Layerwise{mode}") for mode in TRIO], [Arm(mode) for mode in TRIO]
    budget = evidence.share_budget(STEPS, *layers, *plain)
    by_layer = hold_contest(evidence, "layer-wise", budget, *layers)
    full = hold_contest(evidence, "full", budget, *plain)
    chosen = (by_layer.floor, by_layer.zo, by_layer.fo)
    yield subtract_shares(by_layer, full, _doubt_schedules(evidence, chosen, budget))
    what = "what ZO's phases add, LayerwiseZO minus LayerwiseFrozen"
    yield subtract(by_layer.zo, by_layer.floor, what, budget, BELOW_0)
    for contest in (by_layer, full):
        yield show_share(contest)
    for choice, arm in zip(chosen, layers, strict=True):
        yield subtract(choice, full.fo, f"{arm.mode} minus FO", budget)


def compare_queries(evidence: Evidence) -> Iterator[Comparison]:
    """C5: the most queries minus the fewest, at equal steps, < 0; neighbours and equal passes are shown."""
    arms = _list_queries(evidence)
    yield oppose(evidence, arms[-1], arms[0], STEPS, BELOW_0)
    for fewer, more in pairwise(arms) if len(arms) > 2 else ():
        with suppress(Lacking):
            yield oppose(evidence, more, fewer, STEPS)
    with suppress(Lacking):
        yield oppose(evidence, arms[-1], arms[0], PASSES)


def compare_variance(evidence: Evidence) -> Iterator[Comparison]:
    """C6: the fewest queries (many steps) minus the most (few), at equal passes, < VARIANCE_MARGIN."""
    arms = _list_queries(evidence)
    yield oppose(evidence, arms[0], arms[-1], PASSES, (-np.inf, VARIANCE_MARGIN))


def compare_rates(evidence: Evidence) -> Iterator[Comparison]:
    """C7a: log10 of ZO's best learning rate over FO's, by seed, < 0 at every q, at equal steps."""
    yield from _compare_rates_at(evidence, STEPS, BELOW_0)
    with suppress(Lacking):
        yield from _compare_rates_at(evidence, PASSES)


def compare_rate_growth(evidence: Evidence) -> Iterator[Comparison]:
    """C7b: the slope of log10 of ZO's best learning rate against log10 q, by seed, > 0 at equal steps."""
    arms = _list_queries(evidence)
    yield _fit_rates_at(evidence, arms, STEPS, ABOVE_0)
    with suppress(Lacking):
        yield _fit_rates_at(evidence, arms, PASSES)
    yield from _show_law(evidence, [arm.q for arm in arms])


def compare_memory(evidence: Evidence) -> Iterator[Comparison]:
    """C8: FO's peak memory minus ZO's > 0 at the largest model; what each needs above Frozen is shown.

    By seed FO's least peak and ZO's largest, over learning rates and queries: against the claim. Only runs
    alike in MEMORY_SETTINGS are compared, each kind of them by itself.
    """
    fo, zo = (_read_peaks(evidence, mode) for mode in ("FO", "ZO"))
    alike = [settings for settings in fo if settings in zo]
    if not alike:
        ours, theirs = (next(iter(peaks)) for peaks in (fo, zo))
        apart = f"FO {_tell_settings(ours - theirs)}, ZO {_tell_settings(theirs - ours)}"
        raise Lacking(f"no FO and ZO, full, with the same settings: {apart}")
    size = evidence.runs["model_size"].iloc[0] if "model_size" in evidence.runs else "the only"
    where = f"scope full, model {size}, batch size {evidence.runs['batch_size'].iloc[0]}"
    frozen = {}
    with suppress(Lacking):
        frozen = _read_peaks(evidence, "Frozen")
    for settings in alike:
        told = _tell_settings(settings.difference(frozenset.intersection(*alike)), " of ")
        peaks = {"FO": fo[settings].min(), "ZO": zo[settings].max()}
        gap = partial(difference_interval, peaks["FO"], peaks["ZO"])
        yield Comparison(f"peak memory{told}, FO minus ZO", "MiB", gap, where, ABOVE_0)
        for inference in (own.mean() for fewer, own in frozen.items() if fewer <= settings):
            for mode, peak in peaks.items():
                above = partial(difference_interval, peak, inference)
                yield Comparison(f"peak memory{told}, {mode} above Frozen (inference)", "MiB", above, where)


CLAIMS = (
    Claim("C1", "Full-scope ZO falls behind FO", compare_full_scope),
    Claim(
        "C2", "Dimension is the obstacle: the cosine follows its law in d and q", compare_cosines, "estimates"
    ),
    Claim("C3", "With a reduced scope ZO comes closer to FO", compare_scopes),
    Claim("C4", "Layer by layer ZO comes closer to FO", compare_layerwise),
    Claim("C5", "At equal steps more queries lower the loss", compare_queries),
    Claim("C6", "Variance is not in itself a disadvantage", compare_variance),
    Claim("C7a", "ZO's best learning rate lies below FO's", compare_rates),
    Claim("C7b", "ZO's best learning rate grows with q", compare_rate_growth),
    Claim("C8", "ZO saves memory", compare_memory, largest=True),
)


def find_slope(queries: list[int], rates: pd.Series) -> float:
    """Return the least-squares slope of log10 rates against log10 q."""
    return float(np.polyfit(np.log10(queries), rates.to_numpy(float), 1)[0])


def _doubt_schedules(evidence: Evidence, chosen: Iterable[Choice], budget: Budget) -> tuple[str, ...]:
    """Doubt layer-wise arms that a budget reads before their end, or whose embedding was trained otherwise.

    The embedding is most of what they reach, so with another rate the floor is another one.
    """
    runs = [run for choice in chosen for run in choice.runs["run"]]
    end = Budget(STEPS, float(max(evidence.curves[run]["step"].max() for run in runs)))
    is_cut = budget.amount * SLACK < end.amount
    phases = [_read_embedding(spec) for run in runs if "learning_rate" in (spec := evidence.logs.specs[run])]
    apart = ", ".join(key for key in EMBEDDING if len({phase[key] for phase in phases}) > 1)
    doubts = (f"the layer-wise schedules of {end} are cut short",) * is_cut
    return doubts + (f"the layer-wise arms differ in how the embedding is trained: {apart}",) * bool(apart)


def _read_embedding(spec: dict) -> dict:
    """Read how a layer-wise run trains its embedding; without a rate of its own by the run's."""
    rate = spec.get("bp_learning_rate") or spec["learning_rate"]
    return {key: spec.get(key) for key in EMBEDDING} | {"bp_learning_rate": rate}


def _list_queries(evidence: Evidence) -> list[Arm]:
    """List the arms of C5 to C7: ZO in scope full, fewest queries first; at least two."""
    queries = evidence.list_queries("full")
    if len(queries) < 2:
        raise Lacking("no second number of queries in ZO, full" if queries else "no ZO, full, with queries")
    return [Arm("ZO", q=q) for q in queries]


class Rates(NamedTuple):
    """Each seed's best log10 learning rate of an arm at a budget, with doubts, around the arm's choice."""

    by_seed: pd.Series
    doubts: tuple[str, ...]
    choice: Choice


def _find_rates(evidence: Evidence, arms: list[Arm], kind: str) -> tuple[dict[Arm, Rates], str]:
    """Find the best learning rates of each arm, and say the budget in words."""
    budget = evidence.share_budget(kind, *arms)
    chosen = {arm: evidence.choose(arm, budget) for arm in arms}
    found = {arm: Rates(*evidence.find_rates(choice, budget), choice) for arm, choice in chosen.items()}
    return found, f"at {budget}; each seed's best rate"


def _compare_rates_at(evidence: Evidence, kind: str, region: Region = None) -> Iterator[Comparison]:
    arms = [Arm("ZO", q=q) for q in evidence.list_queries("full")] or [Arm("ZO")]
    found, said = _find_rates(evidence, [Arm("FO"), *arms], kind)
    fo = found.pop(Arm("FO"))
    for arm, own in found.items():
        measure = partial(difference_interval, own.by_seed, fo.by_seed)
        quantity = f"log10 lr(ZO q={arm.q}) / lr(FO) at equal {kind}"
        doubts = fo.doubts + own.doubts + doubt_settings(fo.choice, own.choice)
        yield Comparison(quantity, "decades", measure, f"{arm} against FO {said}", region, doubts)


def _fit_rates_at(evidence: Evidence, arms: list[Arm], kind: str, region: Region = None) -> Comparison:
    found, said = _find_rates(evidence, arms, kind)
    queries = [arm.q for arm in arms]
    table = pd.DataFrame({arm.q: own.by_seed for arm, own in found.items()}).dropna()
    slopes = [find_slope(queries, row) for _, row in table.iterrows()]
    doubts = tuple(doubt for own in found.values() for doubt in own.doubts)
    doubts += doubt_settings(*(own.choice for own in found.values()))
    said = f"ZO, full, q = {', '.join(map(str, queries))}, {said}"
    quantity, unit = f"slope of log10 lr against log10 q at equal {kind}", "decades/decade"
    return Comparison(quantity, unit, partial(mean_interval, slopes), said, region, doubts)


def _show_law(evidence: Evidence, queries: list[int]) -> Iterator[Comparison]:
    """Show the slope that the quadratic law q/(q + 1 + r) has over the same q, for r = d."""
    facts = [evidence.logs.specs[run] for run in evidence.runs.query("scope == 'full'")["run"]]
    counts = [fact["trainable_parameters"] for fact in facts if "trainable_parameters" in fact]
    if counts:
        d = max(counts)
        law = pd.Series([np.log10(best_rate_ratio(q, d)) for q in queries])
        slope = Interval(find_slope(queries, law), np.nan, np.nan, 0)
        said = f"q/(q + 1 + r) with r = d = {d}: one SGD step on a quadratic"
        yield Comparison("the law's slope, for reference", "decades/decade", lambda _: slope, said)


def _read_peaks(evidence: Evidence, mode: str) -> dict[frozenset, SeriesGroupBy]:
    """Group the peak memory (MiB) of a method's finished runs in scope full: by settings, then by seed."""
    runs = evidence.runs
    mine = runs[(runs["mode"] == mode) & (runs["scope"] == "full") & (runs["status"] == "done")]
    mine = mine[mine["peak_memory_mb"].notna()]
    if mine.empty:
        raise Lacking(f"no finished {mode}, full, with a peak of memory at the largest model")
    known = [read_settings(evidence.logs, run) for run in mine["run"]]
    settings = [frozenset((key, own[key]) for key in MEMORY_SETTINGS if key in own) for own in known]
    groups = {key: mine[[own == key for own in settings]] for key in dict.fromkeys(settings)}
    return {key: group.groupby("seed")["peak_memory_mb"] for key, group in groups.items()}


def _tell_settings(settings: Iterable[tuple[str, object]], start: str = "") -> str:
    """Name settings in words, after `start` if there are any."""
    return start * bool(settings) + " ".join(f"{key} {value}" for key, value in sorted(settings))
