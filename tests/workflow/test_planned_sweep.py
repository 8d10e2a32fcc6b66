"""`zo plan` against a sweep that really ran, and the paper-size study as far as it goes without a hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from real_sweep import ROOT, STUDY, Sweep

from zo.planning.forecast import START_S

LONG_ENOUGH = {"max_steps": 40, "query_budgets": 8, "modes": ["FO", "ZO", "Instruct", "Frozen"]}
LONG_ENOUGH |= {"bp_interval": 1, "learning_rates": {"ZO": [1e-3, 3e-3], "default": 1e-3}}


def plan(folder: Path, *flags: str) -> dict:
    """What `zo plan` says, as JSON."""
    command = [sys.executable, "-m", "zo", "plan", "study.yaml", "--gpus", "0", "--format", "json", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A study, planned with steps timed here, made, and planned again."""
    sweep = Sweep(tmp_path_factory.mktemp("plan"), STUDY | LONG_ENOUGH)
    sweep.before = plan(sweep.folder, "--measure", "--corpus-tokens", "9000")
    done = sweep.run()
    assert done.returncode == 0, done.stdout
    return sweep


def size_of(results: Path, *patterns: str) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in results.glob(pattern))


def last_row(sweep: Sweep, run: str) -> dict[str, str]:
    lines = (sweep.results / "csv_logs" / f"{run}.csv").read_text().splitlines()
    return dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))


FILES = {
    "kept weights": ("runs/*/final.safetensors",),
    "scalar logs": ("runs/*/scalars.jsonl",),
    "CSV and job logs": (
        *("csv_logs/*.csv", "job_logs/[A-Z]*.log", "runs/*/log.csv", "runs/*/attempt.log"),
        *("runs/*/*.json", "runs/*/benchmark.tsv"),
    ),
    "figures and report": ("plots/*.png", "report.html", "summary.*"),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_disk_that_was_planned_is_within_a_factor_of_two_of_what_was_written(sweep, kind):
    [planned] = [each["bytes"] for each in sweep.before["disk"] if each["kind"] == kind]
    written = size_of(sweep.results, *FILES[kind])
    assert planned / 2 < written < 2 * planned


def test_the_token_cache_is_planned_by_its_tokens(sweep):
    [cache] = sweep.results.glob("cache/*/meta.json")
    tokens = json.loads(cache.read_text())["tokens"]
    known = plan(sweep.folder)["disk"][0]
    assert known["how"] == "is built"
    assert known["bytes"] >= 2 * sum(tokens.values())


def test_the_passes_that_were_planned_are_those_that_were_made(sweep):
    for run in sweep.before["runs"]:
        row = last_row(sweep, run["run"])
        made = [float(row[key]) for key in ("step", "tokens", "forward_passes", "backward_passes")]
        assert made == [run[key] for key in ("steps", "tokens", "forward_passes", "backward_passes")]


def test_a_made_study_has_nothing_left_and_its_runs_tell_the_time_of_the_next(sweep):
    after = plan(sweep.folder)
    assert {run["state"] for run in after["runs"]} == {"done"}
    assert after["walls"][0]["high"] == 0
    sweep.write(STUDY | LONG_ENOUGH | {"seed": [0, 1]})
    more = [run for run in plan(sweep.folder)["runs"] if run["state"] == "to do"]
    assert len(more) == len(after["runs"])
    assert {run["basis"] for run in more} == {"finished runs like it"}
    [fo] = [run for run in more if run["mode"] == "FO"]
    [twin] = [run["run"] for run in after["runs"] if run["mode"] == "FO"]
    seconds = float(last_row(sweep, twin)["seconds"])
    validations = 21 / 3  # of one batch's tokens each, where a step is three passes
    assert fo["seconds_low"] - START_S[0] == pytest.approx(seconds * (40 + validations) / 40)


def test_the_paper_size_study_plans_without_a_network(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    sweep = Sweep(tmp_path)
    (tmp_path / "study.yaml").write_text((ROOT / "workflow/studies/paper.yaml").read_text())
    told = plan(tmp_path)
    assert not (tmp_path / "results").exists()
    done = sweep.run("-n", "--quiet", "rules", **nowhere)
    assert done.returncode == 0, done.stdout
    assert f"train {len(told['runs'])}" in " ".join(done.stdout.split())
