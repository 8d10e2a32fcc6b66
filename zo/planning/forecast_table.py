"""A forecast for people and for programs: tables as text or Markdown, its runs as CSV, all of it as JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas as pd
from rich.filesize import decimal

from zo.errors import unknown
from zo.layout import render, section, shorten, write_lines
from zo.planning.footprint import PROCESS_BYTES
from zo.planning.forecast import Forecast, RunForecast
from zo.units import spell_seconds

FORMATS = ("text", "md", "csv", "json")
SUMS = ("tokens", "forward_passes", "backward_passes", "flops")
NOT_COUNTED = (
    "not counted: building token caches, downloads, probes, plots, the report, waiting for a cluster"
)
HINTS = {
    "measured here": "steps timed on this machine just now, one run alone on it",
    "finished runs like it": "the seconds a step of finished runs of these settings in the results folder",
    "finished runs of other settings": "finished runs, scaled by passes x tokens x parameters",
    "FLOP/s given": "2 FLOPs a token and parameter of a forward pass, a backward pass as two, at the FLOP/s "
    "given; on a GPU the longer time adds 10 ms a launched pass",
    "assumed": "no measurement (docs/planning.md): --measure on the machine meant, or --tflops, is better",
}


def check_format(name: str) -> str:
    """Raises UserError unless ``name`` is one of FORMATS."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return name


def present(plan: Forecast, format: str) -> str:
    """The forecast in one of FORMATS."""
    if format == "json":
        return json.dumps(asdict(plan) | {"notes": list(_notes(plan))}, indent=2) + "\n"
    runs = pd.DataFrame([asdict(run) for run in plan.runs])
    if format == "csv":
        return runs.to_csv(index=False)
    parts = [write_lines(list(_head(plan)), format)]
    if plan.left:
        parts += [
            section("Left to do", render(_groups(plan), format), format),
            section("Time", render(_walls(plan), format), format),
        ]
    parts.append(section("Disk", render(_disk(plan), format), format))
    return "\n\n".join([*parts, section("Notes", write_lines(list(_notes(plan)), format), format)]) + "\n"


def _head(plan: Forecast) -> Iterable[str]:
    states = Counter(run.state for run in plan.runs)
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield f"{plan.study}: {len(plan.runs)} runs ({listed}), results in {plan.results}/"
    known = [run for run in plan.left if run.steps]
    if known:
        longest = max(known, key=lambda run: run.seconds_high)
        span = _span(longest.seconds_low, longest.seconds_high)
        yield f"longest run: {longest.run}: {span} ({longest.basis})"
    if plan.left:
        largest = max(plan.left, key=lambda run: run.memory_bytes)
        size, python = decimal(largest.memory_bytes), decimal(PROCESS_BYTES)
        yield f"largest run: {largest.run}: about {size} a process, of which {python} is Python itself"


def _groups(plan: Forecast) -> pd.DataFrame:
    """A row for each mode, scope and size, and one for all."""
    groups: dict[tuple, list[RunForecast]] = {}
    for run in plan.left:
        groups.setdefault((run.mode, run.scope, run.model_size), []).append(run)
    rows = [_group_row(names, runs, plan.unit) for names, runs in groups.items()]
    rows += [_group_row(("all", "", ""), plan.left, plan.unit)] if len(groups) > 1 else []
    return pd.DataFrame(rows)


def _group_row(names: Sequence[str], runs: Sequence[RunForecast], unit: str) -> dict[str, str]:
    """Sums of the runs whose length is known; '-' where that is none."""
    known = [run for run in runs if run.steps is not None]
    sums = {key: sum(getattr(run, key) for run in known) if known else None for key in SUMS}
    row = dict(zip(("mode", "scope", "size"), names, strict=True)) | {"runs": str(len(runs))}
    row |= {"tokens": shorten(sums["tokens"]), "fwd": shorten(sums["forward_passes"])}
    row |= {"bwd": shorten(sums["backward_passes"])}
    row |= {"FLOPs": f"{sums['flops']:.1e}" if known else "-"}
    hours = [
        sum(getattr(run, f"seconds_{end}") * run.devices for run in known) / 3600 for end in ("low", "high")
    ]
    return row | {unit: _hours(*hours) if known else "-"}


def _walls(plan: Forecast) -> pd.DataFrame:
    least = "more than " if plan.unknown else ""
    return pd.DataFrame(
        {
            "on": f"{wall.gpus} GPU{'s' * (wall.gpus != 1)}" if wall.gpus else "CPU",
            "runs at once": wall.at_once,
            "wall clock": least + _span(wall.low, wall.high),
            plan.unit: least + _hours(wall.device_hours_low, wall.device_hours_high),
        }
        for wall in plan.walls
    )


def _disk(plan: Forecast) -> pd.DataFrame:
    rows = [(each.kind, each.bytes, each.how) for each in plan.disk]
    known = sum(each.bytes for each in plan.disk if each.bytes is not None)
    rows.append(("all that is known", known, ""))
    return pd.DataFrame(
        {"kind": kind, "size": "?" if size is None else decimal(round(size)), "how": how}
        for kind, size, how in rows
    )


def _notes(plan: Forecast) -> Iterable[str]:
    bases = Counter(run.basis for run in plan.left if run.basis)
    for basis, count in bases.items():
        yield f"time of {count} of {len(plan.left)} runs: {basis}: {HINTS[basis]}"
    if plan.unknown:
        yield (
            f"{len(plan.unknown)} runs are in no sum but those of runs and of kept weights: "
            "how long an epoch is, is unknown until the token cache is built: give --corpus-tokens N"
        )
    if plan.cores is None:
        yield "the machine's cores are not known, and taken to be enough for its GPUs: give --cores N"
    if any(wall.gpus and wall.at_once > wall.gpus for wall in plan.walls):
        yield "runs that share a GPU: the shorter time is without any hindrance, the longer without any gain"
    yield NOT_COUNTED


def _span(low: float, high: float) -> str:
    first, last = spell_seconds(low), spell_seconds(high)
    return first if first == last else f"{first} to {last}"


def _hours(low: float, high: float) -> str:
    first, last = (f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" for hours in (low, high))
    return first if first == last else f"{first} to {last}"
