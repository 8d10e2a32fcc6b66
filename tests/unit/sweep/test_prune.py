"""Prune: finished runs lose what they no longer need; unfinished ones and results lose nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import fail

from zo.cli import main
from zo.errors import UserError
from zo.files import try_hold, write_json
from zo.study import load_study
from zo.sweep.prune import KINDS, prune
from zo.sweep.sweep_record import begin_sweep, end_sweep
from zo.training.record import RunFiles

HOLDER = """
import sys, time
from pathlib import Path
from zo.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
OUTCOMES = {"done": "done", "diverged": "diverged", "crashed": "crashed", "unfinished": None}
GOES = {"checkpoints/step-000000002.safetensors", "attempt.log", ".spec.json.4711", "compiled/triton/kernel"}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """A run of each outcome, every one with all the files that a run can have."""
    monkeypatch.chdir(tmp_path)
    for run, outcome in OUTCOMES.items():
        files = RunFiles(Path("results"), run)
        files.make_folders()
        files.live_csv.write_text("step\n")
        for name in (*GOES, "final.safetensors", "scalars.jsonl", "spec.json", ".lock"):
            (files.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (files.folder / name).write_text("12345678")
        if outcome:
            files.write_outcome(outcome, None, 2)
    (Path("results/cache/c")).mkdir(parents=True)
    Path("results/cache/c/train.bin").write_text("tokens")
    return Path("results")


def files_of(results: Path) -> set[str]:
    return {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}


@pytest.fixture
def gone(results):
    """A function: the files that something deletes."""

    def measure(*arguments, **keywords) -> set[str]:
        before = files_of(results)
        prune(results, *arguments, **keywords)
        assert files_of(results) < before or files_of(results) == before
        return before - files_of(results)

    return measure


def test_finished_runs_lose_checkpoints_and_leftovers_and_all_else_stays(gone):
    assert gone() == {f"runs/{run}/{name}" for run in ("done", "diverged") for name in GOES}
    assert gone() == set()


def test_final_weights_go_on_request_alone(gone):
    gone()
    assert gone(also=["weights"]) == {f"runs/{run}/final.safetensors" for run in ("done", "diverged")}


def test_a_dry_run_lists_the_same_and_deletes_nothing(results):
    before = files_of(results)
    listed = prune(results, also=["weights"], dry_run=True)
    assert files_of(results) == before
    assert prune(results, also=["weights"]) == listed
    assert files_of(results) < before


def test_what_is_kept_is_named_by_kind_or_run(gone):
    kept = ["div*", "leftovers", "compiled"]
    assert gone(keep=kept) == {"runs/done/checkpoints/step-000000002.safetensors"}


def test_a_word_that_names_nothing_is_an_error_before_anything_goes(results):
    before = files_of(results)
    with pytest.raises(UserError, match=r"'checkpoint' is no kind and no run .* did you mean 'checkpoints'"):
        prune(results, keep=["checkpoint"])
    assert files_of(results) == before


def test_a_finished_run_that_is_trained_again_loses_nothing(results, gone):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "results/runs/done/.lock"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert not any("done" in name for name in gone(also=["weights"]))
    finally:
        holder.kill()
        holder.wait()
    assert any("done" in name for name in gone())


def test_a_runs_lock_is_opened_for_writing_without_which_nfs_gives_none(gone, monkeypatch):
    modes = []
    monkeypatch.setattr(
        "zo.sweep.prune.try_hold", lambda file: modes.append(file.writable()) or try_hold(file)
    )
    assert any("done" in name for name in gone())
    assert set(modes) == {True}


def test_a_lock_that_cannot_be_opened_is_one_line_and_not_a_run_that_trains(results, capsys):
    lock = results / "runs/crashed/.lock"
    lock.unlink()
    lock.mkdir()
    assert fail(capsys, "prune") == f"zo prune: {lock}: Is a directory"


def test_a_link_is_not_followed(results, gone, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    checkpoints = results / "runs/done/checkpoints"
    (checkpoints / "step-000000002.safetensors").unlink()
    checkpoints.rmdir()
    checkpoints.symlink_to(tmp_path / "precious")
    (results / "runs/linked").symlink_to(results.resolve() / "runs/diverged")
    gone()
    assert (tmp_path / "precious" / "file").exists()
    assert not any("linked" in each.path.as_posix() for each in prune(results, dry_run=True))


def test_caches_go_on_request_when_no_run_needs_them_any_more(results, gone):
    with pytest.raises(UserError, match="caches: crashed is not finished"):
        prune(results, also=["caches"])
    for run in ("crashed", "unfinished"):
        write_json(results / "runs" / run / "outcome.json", {"status": "done"})
    Path("results/cache/d").mkdir()
    for name in ("meta.json", "train.bin", "tokenizer.json"):
        (results / "cache/d" / name).touch()
    lost = {name for name in gone(also=["caches"]) if name.startswith("cache")}
    assert lost == {"cache/c/train.bin", "cache/d/train.bin", "cache/d/tokenizer.json"}


def test_caches_stay_while_a_sweep_is_at_work(results):
    for run in ("crashed", "unfinished"):
        write_json(results / "runs" / run / "outcome.json", {"status": "done"})
    study = {"study": "default", "modes": "FO", "learning_rates": 1, "max_steps": 1}
    begin_sweep(load_study(study), jobs=1)
    before = files_of(results)
    with pytest.raises(UserError, match="a sweep is at work in results"):
        prune(results, also=["caches"])
    assert files_of(results) == before
    end_sweep("results", succeeded=True)
    prune(results, also=["caches"])
    assert not (results / "cache/c").exists()


def test_the_help_names_every_kind_that_may_be_kept(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"kinds ({', '.join(KINDS)})" in text


def test_the_command_prints_what_goes_and_how_many_bytes(results, capsys):
    assert main(["prune", "--dry-run", "--keep", "leftovers,compiled,diverged"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.split() == ["8", "checkpoints", "results/runs/done/checkpoints"]
    assert total.split() == ["8", "bytes", "would", "be", "deleted"]
    assert main(["prune", "--weights", "--caches"]) == 2
    assert os.path.exists("results/runs/done/final.safetensors")
    assert main(["prune", "results/cache"]) == 2
    assert "no runs here" in capsys.readouterr().err
