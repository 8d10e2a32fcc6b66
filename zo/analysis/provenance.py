"""Where a study's numbers come from: settings, versions, machines, commits, and how to make a row again."""

import shlex
from collections import Counter
from typing import NamedTuple

from zo.analysis.runs import Logs
from zo.files import read_json

MACHINE = (
    "commit",
    "host",
    "platform",
    "cpus",
    "device",
    "visible_gpus",
    "threads",
    "parameters",
    "vocab_size",
)
SHOWN = 12
"""Different values of one setting that are written out; of more, how many there are."""


class Fact(NamedTuple):
    """A setting or a fact of machines: its name, its values in words, and whether runs differ in it."""

    name: str
    values: str
    differs: bool


def list_settings(logs: Logs) -> list[Fact]:
    """List every setting of the runs' specs. Empty for logs without specs."""
    return _gather([spec for spec in logs.specs.values() if spec])


def list_machines(logs: Logs) -> list[Fact]:
    """List versions, commit and hardware, as the runs' manifests have them."""
    manifests = [read_json(logs.folder.parent / "runs" / run / "manifest.json") for run in logs.frames]
    found = []
    for manifest in filter(None, manifests):
        versions = {f"version of {name}": value for name, value in manifest.get("versions", {}).items()}
        gpu = {f"GPU's {name}": value for name, value in (manifest.get("gpu") or {}).items()}
        found.append({name: manifest.get(name) for name in MACHINE} | gpu | versions)
    return _gather(found)


def state_commit(logs: Logs) -> str:
    """Say, after 'the checkout', at which commit the runs were made; nothing where none was recorded."""
    [commit] = [fact for fact in list_machines(logs) if fact.name == "commit"] or [None]
    if not commit or commit.values == "-":
        return ""
    return " at the commit of each run's manifest.json" if commit.differs else f" at commit {commit.values}"


def _gather(records: list[dict]) -> list[Fact]:
    """Gather each key's values over records; where they differ, with how many have each."""
    names = dict.fromkeys(name for record in records for name in record)
    facts = []
    for name in names:
        counts = Counter(_spell(record.get(name)) for record in records)
        values = f"{len(counts)} different values"
        if len(counts) == 1:
            values = next(iter(counts))
        elif len(counts) <= SHOWN:
            each = [f"{value} ({n} run{'s'[: n > 1]})" for value, n in sorted(counts.items())]
            values = ", ".join(each)
        facts.append(Fact(name, values, len(counts) > 1))
    return facts


def _spell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def tell_command(logs: Logs, run: str) -> str | None:
    """Give the command that makes a run again into another folder; None where its spec was not recorded."""
    folder = logs.folder.parent / "runs" / run
    spec = folder / "spec.json"
    if not spec.is_file():
        return None
    threads = read_json(folder / "manifest.json").get("threads")
    words = ["python", "-m", "zo", "train", "--spec", str(spec), "--results", "results/again"]
    return shlex.join([*words, *(["--threads", str(threads)] if threads else [])])


def name_target(logs: Logs, run: str) -> str:
    """Name a run's Snakemake target."""
    return (logs.folder / f"{run}.csv").as_posix()
