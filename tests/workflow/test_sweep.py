"""The sweep as people run it: real snakemake processes on a study of four short runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from browser import WIDTHS, find_overflow, find_overlaps, open_browser, read_console, show
from real_sweep import ROOT, STUDY, Sweep, runs_of

FO = "FO_full_bs2_q0_lr1e-01_block16"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    """A sweep in which one run crashed, by a folder that stands where its spec must be written."""
    sweep = Sweep(tmp_path_factory.mktemp("sweep"))
    (sweep.results / "runs" / FO / "spec.json").mkdir(parents=True)
    sweep.first = sweep.run("--resources", "gpu=4")
    return sweep


@pytest.fixture(scope="module")
def finished(sweep) -> Sweep:
    """The same sweep with every run done, whichever tests ran before."""
    if sweep.outcome(FO)["status"] == "crashed":
        (sweep.results / "runs" / FO / "spec.json").rmdir()
        assert sweep.run().returncode == 0
    return sweep


@pytest.fixture(autouse=True)
def restored(request):
    """The study of the shared sweep is STUDY again when a test has ended, also when it has failed."""
    shared = request.getfixturevalue("sweep") if "sweep" in request.fixturenames else None
    yield
    if shared:
        shared.write(STUDY)


def test_one_crashed_run_costs_only_itself(sweep):
    assert sweep.first.returncode != 0
    assert sweep.outcome(FO)["status"] == "crashed"
    assert "IsADirectoryError" in sweep.outcome(FO)["reason"]
    others = [path.stem for path in (sweep.results / "csv_logs").glob("*.csv") if path.stem != FO]
    assert len(others) == 3
    assert {sweep.outcome(run)["status"] for run in others} == {"done"}
    summary = (sweep.results / "summary.txt").read_text()
    assert re.search(rf"^crashed {FO}: exit status 1: IsADirectoryError", summary, re.M)
    assert len(list((sweep.results / "plots").glob("*.png"))) >= 5


def test_the_report_of_a_crashed_sweep_says_so_and_how_to_make_each_row(sweep):
    page = (sweep.results / "report.html").read_text()
    assert "3 done, 1 crashed" in page
    assert "IsADirectoryError" in page
    assert "No control" in page  # no Random in this study
    assert page.count("python -m zo train --spec results/tiny/runs/") >= 3


def test_the_cache_was_built_exactly_once(sweep):
    assert sweep.first.stdout.count("rule cache:") == 1
    assert sum((path / "train.bin").exists() for path in (sweep.results / "cache").iterdir()) == 1


def test_the_summary_of_a_crashed_sweep_is_no_error(sweep):
    assert sweep.run("results/tiny/summary.txt", "--rerun-triggers", "mtime").returncode == 0


def test_only_the_crashed_run_is_repeated_and_then_nothing(sweep):
    """A dry run in between says so and changes nothing."""
    assert runs_of(sweep.planned()) == [FO]
    assert runs_of(sweep.planned()) == [FO]
    (sweep.results / "runs" / FO / "spec.json").rmdir()
    again = sweep.run()
    assert again.returncode == 0, again.stdout
    assert runs_of(re.findall(r"wildcards: run=(\S+)", again.stdout)) == [FO]
    assert sweep.outcome(FO)["status"] == "done"
    assert "crashed " not in (sweep.results / "summary.txt").read_text()
    assert "Nothing to be done" in sweep.run().stdout


def test_changing_one_learning_rate_reruns_that_run_and_the_aggregates(finished):
    rates = STUDY["learning_rates"]
    finished.write(STUDY | {"learning_rates": rates | {"ZO": ["1e-3", "5e-3"]}})
    jobs = finished.planned()
    assert runs_of(jobs) == ["ZO_full_bs2_q2_lr5e-03_block16"]
    assert {"summary", "plots", "report", "complete", "all"} < set(jobs)
    assert "cache" not in jobs


def test_reordering_keys_and_spelling_numbers_otherwise_reruns_nothing(finished):
    rates = {"Frozen": 0.001, "ZO": [0.001, "0.003"], "FO": 0.1}
    finished.write(dict(reversed(STUDY.items())) | {"learning_rates": rates})
    jobs = finished.planned()
    assert runs_of(jobs) == []


def test_another_word_on_what_is_kept_reruns_no_run(finished):
    for keep in ("weights", "nothing"):
        finished.write(STUDY | {"keep": keep, "retries": 3})
        assert runs_of(finished.planned()) == []


def test_a_second_seed_or_optimizer_runs_only_the_new_cells(finished):
    finished.write(STUDY | {"seed": [0, 1]})
    seeds = runs_of(finished.planned())
    finished.write(STUDY | {"optimizer": ["sgd", "adamw"]})
    optimizers = runs_of(finished.planned())
    assert len(seeds) == 4
    assert all(run.endswith("_seed1_block16") for run in seeds)
    assert len(optimizers) == 3  # Frozen has no optimizer
    assert all("_optadamw_" in run for run in optimizers)


def test_a_changed_setting_reruns_every_run(finished):
    finished.write(STUDY | {"max_steps": 6})
    jobs = runs_of(finished.planned())
    assert len(jobs) == 4


def test_a_study_file_is_not_merged_with_config_yaml(finished):
    finished.write({key: value for key, value in STUDY.items() if key != "learning_rates"})
    refused = finished.run("-n")
    assert refused.returncode != 0
    assert "'learning_rates' is missing" in refused.stdout


def test_a_cell_outside_the_grid_runs_and_stays_out_of_the_summary(finished):
    outside = "ZO_reduced_bs2_q3_lr3e-04_block16"
    ran = finished.run(f"results/tiny/csv_logs/{outside}.csv")
    assert ran.returncode == 0, ran.stdout
    assert finished.outcome(outside)["status"] == "done"
    assert len((finished.results / "csv_logs" / f"{outside}.csv").read_text().splitlines()) == 4
    assert outside not in (finished.results / "summary.txt").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ZO_full_bs2_q2_lr1e-3_block16", "is spelled 'ZO_full_bs2_q2_lr1e-03_block16'"),
        ("ZO_ful_bs2_q2_lr1e-03_block16", "did you mean 'full'?"),
        ("nonsense", "does not parse"),
    ],
)
def test_a_misspelt_run_is_one_line_that_says_how(finished, name, words):
    refused = finished.run(f"results/tiny/csv_logs/{name}.csv")
    assert refused.returncode != 0
    lines = [line for line in refused.stdout.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in refused.stdout


def test_a_bad_config_value_is_one_line_before_any_job(finished):
    finished.write(STUDY | {"learning_rates": -1})
    refused = finished.run()
    assert refused.returncode != 0
    assert "Error in the study: learning_rate: -1 is not allowed" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_a_key_that_stands_twice_in_the_study_is_one_line_before_any_job(finished):
    path = finished.folder / "study.yaml"
    path.write_text(path.read_text() + "max_steps: 5\n")
    refused = finished.run("-n")
    assert refused.returncode != 0
    [line] = [line for line in refused.stdout.splitlines() if line.startswith("Error")]
    assert "key 'max_steps' stands here and in line" in line
    assert "Traceback" not in refused.stdout


def test_a_corpus_that_cannot_be_read_is_one_line_before_any_job(finished):
    (finished.folder / "bad.txt").write_bytes(b"good\n\nbad \xff\n")
    finished.write(STUDY | {"dataset": "bad.txt"})
    refused = finished.run()
    assert refused.returncode != 0
    assert "Error in the study: dataset file 'bad.txt': not UTF-8 text (at byte 10)" in refused.stdout
    assert "rule cache" not in refused.stdout


def test_blocks_longer_than_the_corpus_fail_once_and_say_so(finished):
    (finished.folder / "short.txt").write_text("A short text.\n\nOf two parts, and no more.")
    finished.write(STUDY | {"dataset": "short.txt"})
    refused = finished.run()
    assert refused.returncode != 0
    assert "text has" in refused.stdout
    assert "the longest batch needs" in refused.stdout
    assert refused.stdout.count("Trying to restart job") == 1  # a cache's retries ask for no cause
    assert "rule train" not in refused.stdout


def test_a_results_folder_that_is_a_file_is_one_line(finished, tmp_path):
    other = Sweep(tmp_path)
    (tmp_path / "results").write_text("in the way")
    refused = other.run()
    assert refused.returncode != 0
    assert "Error in the study: results folder results/tiny cannot be made" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_without_a_limit_the_studys_slots_are_the_limit(finished):
    """Pretended ids; each run must see exactly one of the study's, and gpu=0 must see none."""
    given = {"ZO_GPU_LOCKS": str(finished.folder), "CUDA_VISIBLE_DEVICES": "0,1,GPU-7a"}
    finished.write(STUDY | {"seed": 7, "gpus": [1, "GPU-7a"], "jobs_per_gpu": 2})
    ran = finished.run(**given)
    cpu = finished.run("--resources", "gpu=0", "--forcerun", "train", **given)
    assert re.search(r"Provided resources: gpu=\D*4\b", ran.stdout)
    assert cpu.returncode == ran.returncode == 0
    log = (finished.results / "job_logs" / "ZO_full_bs2_q2_lr1e-03_seed7_block16.log").read_text()
    first, second = re.findall(r"GPUs: (\S+)", log)
    assert first in ("1", "GPU-7a")
    assert second == "none"
    locks = {path.name for path in (finished.folder / "zo-gpus-local").iterdir()}
    assert locks <= {f"gpu-{name}{slot}" for name in ("1", "GPU-7a") for slot in ("", "-slot-0", "-slot-1")}
    assert "gpu-1-slot-0" in locks


@pytest.mark.parametrize(
    ("flags", "visible", "slots"),
    [(["--gpus", "0,1", "--jobs-per-gpu", "3"], "", 6), ([], "5,6", 2), (["--gpus", "none"], "5,6", 0)],
)
def test_a_sweep_by_flags_has_the_slots_of_its_gpus(tmp_path, flags, visible, slots):
    """No --resources says so: on a login node without GPUs that would take them from every job.

    A run that asks for more than the limit is shown with the limit.
    """
    Sweep(tmp_path)
    command = [sys.executable, "-m", "zo", "sweep", "--modes", "ZO", "--learning-rates", "1", *flags]
    command += ["--ranks", "9", "--dataset", "text.txt", "--vocab-size", "300", "--", "-n"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r" gpu=(\d+)", done.stdout + done.stderr)[1] == str(slots)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gpus": [0, 5]}, "gpus: '5' is not among the visible ones: 0, 1"),
        ({"gpus": [1], "gpus_per_run": 2}, "gpus_per_run is 2, but there are 1: 1"),
        ({"gpus": "both"}, "gpus: 'both' is not allowed: it must be auto, none or a list of ids"),
    ],
)
def test_gpus_that_cannot_be_had_are_one_line_before_any_job(finished, keys, words):
    finished.write(STUDY | keys)
    refused = finished.run("-n", CUDA_VISIBLE_DEVICES="0,1")
    assert refused.returncode != 0
    assert f"Error in the study: {words}" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_two_sweeps_in_one_folder_do_not_run_at_once(finished):
    import fcntl

    with open(finished.results / ".lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finished.write(STUDY | {"max_steps": 5})
        refused = finished.run()
    assert refused.returncode != 0
    assert "is working on results/tiny/" in refused.stdout


def test_chosen_runs_are_probed_and_no_run_is_repeated_for_it(finished):
    finished.write(STUDY | {"probe": "ZO_*lr1e-03*", "probe_scopes": ["full", "norms"]})
    jobs = finished.planned("--rerun-triggers", "mtime", "input", "params", "code")
    assert sorted(runs_of(jobs)) == ["ZO_full_bs2_q2_lr1e-03_block16"]  # the probe's, not the run's own
    assert "probe" in jobs
    assert "train" not in jobs
    done = finished.run()
    assert done.returncode == 0, done.stdout
    [path] = (finished.results / "probes").glob("*.csv")
    rows = path.read_text().splitlines()
    assert path.stem == "ZO_full_bs2_q2_lr1e-03_block16"
    assert {tuple(row.split(",")[2:5]) for row in rows[1:]} == {
        (at, step, scope) for at, step in (("start", "0"), ("end", "4")) for scope in ("full", "norms")
    }


def test_a_run_is_probed_at_chosen_steps_and_finished_ones_are_not_repeated_to_keep_them(finished):
    rates = STUDY["learning_rates"] | {"ZO": ["1e-3", "3e-3", "9e-3"]}
    steps = {"learning_rates": rates, "probe_steps": [2, 3]}
    finished.write(STUDY | steps | {"probe": "ZO_*"})
    new = "ZO_full_bs2_q2_lr9e-03_block16"
    assert runs_of(finished.planned("--until", "train")) == [new]
    finished.write(STUDY | steps | {"probe": new, "backward_cost": 3})
    done = finished.run()
    assert done.returncode == 0, done.stdout
    rows = (finished.results / "probes" / f"{new}.csv").read_text().splitlines()
    places = list(dict.fromkeys(tuple(row.split(",")[2:4]) for row in rows[1:]))
    assert places == [("start", "0"), ("2", "2"), ("3", "3"), ("end", "4")]
    for name in ("summary.txt", "report.html"):
        assert "backward pass counts 3" in " ".join((finished.results / name).read_text().split()), name


def test_a_probe_that_fails_is_tried_again_and_named_where_the_summary_would_be(finished):
    run = "ZO_full_bs2_q2_lr3e-03_block16"
    spec, aside = (finished.results / "runs" / run / name for name in ("spec.json", "spec.aside"))
    partial = finished.results / "summary.partial.txt"
    finished.write(STUDY | {"probe": run})
    spec.rename(aside)
    try:
        failed = finished.run()
    finally:
        aside.rename(spec)
    assert failed.returncode != 0
    assert failed.stdout.count("Trying to restart job") == 1
    text = partial.read_text()
    assert f"no probe of {run} (log: results/tiny/probes/{run}.log)" in text
    assert "it has no spec.json" in text
    assert "4 done" in text
    again = finished.run()
    assert again.returncode == 0, again.stdout
    assert not partial.exists()


def test_a_probe_that_fits_no_run_is_one_line(finished):
    finished.write(STUDY | {"probe": "ZO_half_*"})
    refused = finished.run("-n")
    assert refused.returncode != 0
    assert "Error in the study: probe: 'ZO_half_*' fits no run of the study" in refused.stdout


def test_snakemakes_own_report_holds_ours_with_captions(finished):
    made = finished.run("--report", "all.zip")
    assert made.returncode == 0, made.stdout
    with zipfile.ZipFile(finished.folder / "all.zip") as archive:
        index = archive.read("all/report.html")
        results = {Path(name).name: name for name in archive.namelist() if "/data/" in name}
        assert archive.read(results["report.html"]) == (finished.results / "report.html").read_bytes()
    assert {"summary.txt", "loss_vs_steps.png", "pareto_passes.png"} < set(results)
    assert b"one page that opens from disk" in index


def test_the_page_of_a_real_sweep_is_shown_without_a_fault(finished):
    with open_browser() as driver:
        for width in WIDTHS:
            show(driver, finished.results / "report.html", width)
            assert read_console(driver) + find_overflow(driver) + find_overlaps(driver) == []


def test_a_study_that_asks_for_its_claims_gets_them_judged_and_reported(finished):
    """No run is repeated for it; with one seed every claim is undecided, and the report says so."""
    assert "claims" not in finished.planned()
    finished.write(STUDY | {"claims": True})
    jobs = finished.planned()
    judged = finished.run()
    assert runs_of(jobs) == []
    assert {"claims", "report"} < set(jobs)
    assert judged.returncode == 0, judged.stdout
    table = pd.read_csv(finished.results / "claims.csv")
    assert set(table["verdict"]) == {"undecided"}
    assert table.loc[table["claim"] == "C1", "reason"].str.contains("n = 1 < 3").all()
    assert "0 supported, 0 not supported, 9 undecided" in (finished.results / "report.html").read_text()


def test_a_checkout_and_a_folder_whose_names_a_shell_would_take_apart(tmp_path):
    """Jobs find the checkout by PYTHONPATH, which their shell exports."""
    checkout, place = tmp_path / "my fork's $HOME", tmp_path / "my runs"
    place.mkdir()
    checkout.mkdir()
    for name in ("zo", "workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    sweep = Sweep(place, STUDY | {"modes": "FO", "max_steps": 1}, root=checkout)
    done = sweep.run("results/tiny/csv_logs/FO_full_bs2_q0_lr1e-01_block16.csv", PYTHONPATH=str(checkout))
    assert done.returncode == 0, done.stdout
    manifest = json.loads(next(sweep.results.glob("runs/*/manifest.json")).read_text())
    assert manifest["run"] == "FO_full_bs2_q0_lr1e-01_block16"
