"""What stands in place of a summary: runs without an outcome, probes that failed, the rest."""

from pathlib import Path

import pytest
from made_runs import write_beside, write_run

from zo.study import load_study
from zo.sweep.partial import write_partial_summary

STUDY = {"study": "default", "modes": "ZO", "learning_rates": [1e-4, 1e-3], "batch_sizes": 4, "max_steps": 9}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two finished runs, of which one is to be probed."""
    monkeypatch.chdir(tmp_path)
    study = load_study(STUDY | {"probe": "ZO_*lr1e-03"})
    for name, spec in study.runs.items():
        write_run(Path("results/csv_logs"), "ZO", lr=spec.learning_rate, spec=spec.model_dump())
        write_beside(Path("results/csv_logs"), name, "outcome.json", {"run": name, "status": "done"})
    Path("results/probes").mkdir()
    return study


def test_a_sweep_that_lacks_nothing_or_has_not_probed_yet_gets_none(study):
    assert write_partial_summary(study) is None
    [run] = study.probed()
    (Path("results/probes") / f"{run}.csv").touch()
    (Path("results/probes") / f"{run}.log").touch()
    assert write_partial_summary(study) is None
    assert not list(Path("results").glob("summary*"))


def test_a_failed_probe_is_named_with_its_log_before_the_summary_of_the_runs(study):
    [run] = study.probed()
    (Path("results/probes") / f"{run}.log").write_text("zo probe: no room\n")
    text = write_partial_summary(study).read_text()
    assert text.startswith("PARTIAL: ")
    assert f"no probe of {run} (log: results/probes/{run}.log)\n    zo probe: no room\n" in text
    assert "2 done" in text
    assert [path.name for path in Path("results").glob("summary*")] == ["summary.partial.txt"]


def test_a_run_without_an_outcome_is_named_beside_it(study):
    probed, other = study.probed()[0], next(iter(study.runs))
    (Path("results/probes") / f"{probed}.log").touch()
    (Path("results/csv_logs") / f"{other}.csv").unlink()
    (Path("results/runs") / other / "outcome.json").unlink()
    text = write_partial_summary(study).read_text()
    assert f"no probe of {probed}" in text
    assert "PARTIAL: no outcome of 1 of the runs" in text
    assert other in text
