"""A run goes on from what is its own alone, the same settings and the same text, and shows nothing else."""

import pytest
from small_runs import everything, small_spec, write_corpus

from zo.engine.probe import ProbeSettings
from zo.errors import UserError
from zo.files import read_json
from zo.training import train as train_module
from zo.training.checkpoint import read_checkpoint, write_checkpoint
from zo.training.crash import handle_crash
from zo.training.probe_run import probe_run
from zo.training.record import RunFiles
from zo.training.replay import replay
from zo.training.train import Run, train

QUICK = ProbeSettings(queries=(1,), epsilons=(1e-3,), directions=2)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


@pytest.fixture
def guide(tmp_path):
    (tmp_path / "guide").mkdir()
    return write_corpus(tmp_path / "guide")


def rewrite(path):
    path.write_text(path.read_text().replace("fox", "owl"))


def kill_in_step_6(spec, results, monkeypatch) -> RunFiles:
    """Checkpoints lie at 2 and 4."""
    take_step = Run.take_step

    def die(run):
        if run.ledger.step == 5:
            raise KeyboardInterrupt
        return take_step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "take_step", die)
        with pytest.raises(KeyboardInterrupt):
            train(spec, results, threads=1)
    return RunFiles(results, spec.name)


@pytest.mark.parametrize("changed", ["corpus", "guide"])
def test_a_run_whose_text_changed_starts_over(corpus, guide, tmp_path, monkeypatch, caplog, changed):
    """Its settings name the text by a path alone: old weights would go on with other tokens."""
    spec = small_spec(corpus, "Calibrate", bp_dataset=str(guide))
    kill_in_step_6(spec, tmp_path / "killed", monkeypatch)
    rewrite({"corpus": corpus, "guide": guide}[changed])
    with caplog.at_level("INFO", logger="zo"):
        assert train(spec, tmp_path / "killed", threads=1).status == "done"
    assert "the corpus or the tokenizer changed since step 4: starting over" in caplog.text
    train(spec, tmp_path / "calm", threads=1)
    assert everything(tmp_path / "killed", spec.name) == everything(tmp_path / "calm", spec.name)


@pytest.mark.parametrize("caches_named", [True, False])
def test_a_run_whose_text_is_the_same_goes_on_also_from_a_checkpoint_that_names_no_caches(
    corpus, tmp_path, monkeypatch, caplog, caches_named
):
    """The guide is the same text by another path: one cache."""
    spec = small_spec(corpus, "Calibrate", bp_dataset=f"{corpus.parent}/./{corpus.name}")
    files = kill_in_step_6(spec, tmp_path, monkeypatch)
    if not caches_named:
        for path in files.checkpoints.iterdir():
            checkpoint = read_checkpoint(path)
            del checkpoint.state["caches"]
            write_checkpoint(path, checkpoint)
    with caplog.at_level("INFO", logger="zo"):
        assert train(spec, tmp_path, threads=1).status == "done"
    assert "resumed at step 4" in caplog.text


def test_what_an_orphan_made_of_another_text_is_not_taken_over(corpus, tmp_path):
    """The job of a killed Snakemake lives on, and the next one's waits for it."""
    spec = small_spec(corpus, "FO")
    train(spec, tmp_path, threads=1)
    files = RunFiles(tmp_path, spec.name)
    assert train_module._ended_meanwhile({}, spec, files).status == "done"
    rewrite(corpus)
    assert train_module._ended_meanwhile({}, spec, files) is None


def test_an_orphan_that_took_its_outcome_with_it_has_not_ended(corpus, tmp_path):
    spec = small_spec(corpus, "FO")
    assert train_module._ended_meanwhile({"status": "done"}, spec, RunFiles(tmp_path, spec.name)) is None


def test_a_run_is_not_probed_on_another_text(corpus, tmp_path):
    spec = small_spec(corpus, "ZO")
    train(spec, tmp_path, threads=1)
    folder = RunFiles(tmp_path, spec.name).folder
    probe = {"settings": QUICK, "batches": 1, "device": "cpu", "threads": 1}
    probe_run(folder, **probe)
    rewrite(corpus)
    with pytest.raises(
        UserError, match=f"no longer that of the run, which read the caches {corpus.stem}-bytes-"
    ):
        probe_run(folder, **probe)


def crash_while_built(spec, results, monkeypatch) -> dict:
    """The outcome of a job that fails before its first row."""

    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "build_run", fail)
        with pytest.raises(ZeroDivisionError):
            train(spec, results, threads=1)
    assert handle_crash(results, spec.name, 1, last_attempt=True) == 0
    return read_json(RunFiles(results, spec.name).outcome)


def test_a_crash_before_the_first_row_publishes_no_curve_of_other_settings(corpus, tmp_path, monkeypatch):
    old, new = small_spec(corpus, "ZO"), small_spec(corpus, "ZO", validation_blocks=2)
    assert old.name == new.name
    train(old, tmp_path, threads=1)
    files = RunFiles(tmp_path, new.name)
    assert crash_while_built(new, tmp_path, monkeypatch)["step"] == 0
    assert files.csv.read_bytes() == b""
    assert not files.scalars.exists()


def test_a_crash_before_the_first_row_leaves_a_run_of_the_same_settings_its_logs(
    corpus, tmp_path, monkeypatch
):
    spec = small_spec(corpus, "ZO")
    train(spec, tmp_path, threads=1)
    assert crash_while_built(spec, tmp_path, monkeypatch)["step"] == 7


def test_a_finished_run_that_is_started_again_and_killed_is_no_longer_done(corpus, tmp_path, monkeypatch):
    spec = small_spec(corpus, "ZO")
    train(spec, tmp_path, threads=1)
    files = kill_in_step_6(spec, tmp_path, monkeypatch)
    assert not files.outcome.exists()
    with pytest.raises(UserError, match="not finished"):
        replay(files.folder)
    assert train(spec, tmp_path, threads=1).status == "done"
    assert replay(files.folder).equal
