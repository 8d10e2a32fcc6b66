"""What a study will take: the arithmetic against cases made by hand, what is done, what is not known."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from zo.cli import main
from zo.errors import UserError
from zo.files import write_json
from zo.planning.footprint import checkpoint_bytes, count_parameters
from zo.planning.forecast import START_S, forecast, schedule
from zo.planning.pace import Paces, class_of
from zo.planning.storage import checkpoints_kept, scalar_bytes
from zo.study import load_study, read_study
from zo.training.record import RunFiles

ROOT = Path(__file__).resolve().parents[3]
STUDY = {
    "study": "small",
    "modes": ["FO", "ZO"],
    "scopes": "full",
    "batch_sizes": 4,
    "query_budgets": 8,
    "learning_rates": [0.1, 0.2],
    "max_steps": 500,
    "validation_interval": 100,
}
CPU, GIVEN = Paces(gpus=False), Paces(gpus=True, flops=(1e12, 1e12))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def plan(paces=CPU, machines=(0,), cores=2, corpus_tokens=None, **settings):
    cores = 64 if paces.gpus and cores == 2 else cores
    return forecast(load_study(STUDY | settings), paces, machines, cores, corpus_tokens)


def one(mode: str, **settings):
    """The first run of a mode, forecast."""
    return next(run for run in plan(**settings).runs if run.mode == mode)


# -- counting -------------------------------------------------------------------------------------


def test_passes_tokens_and_flops_are_those_of_the_run_to_its_end():
    fo, zo = one("FO"), one("ZO")
    assert (fo.steps, fo.tokens) == (zo.steps, zo.tokens) == (500, 500 * 4 * 64)
    assert (fo.forward_passes, fo.backward_passes) == (500, 500)
    assert (zo.forward_passes, zo.backward_passes) == (500 * 16, 0)
    parameters = 99_712  # what the manifest of such a run says
    assert fo.flops == 2 * fo.tokens * parameters * 3
    assert zo.flops == 2 * zo.tokens * parameters * 16


def test_an_embedding_beside_its_own_head_costs_no_flops():
    full, reduced = one("FO"), one("FO", scopes="reduced")
    assert reduced.flops == full.flops
    study = load_study(STUDY | {"scopes": "reduced"})
    assert count_parameters(next(iter(study.runs.values())))[0] == 99_712 + 512 * 48


def test_hybrids_count_their_backprop_steps():
    run = one("Calibrate", modes="Calibrate", bp_interval=10)
    assert (run.forward_passes, run.backward_passes) == (450 * 16 + 50, 50)


def test_the_paper_size_study_is_the_grid_counted_by_hand():
    study = read_study(ROOT / "workflow/studies/paper.yaml")
    runs = list(study.runs.values())
    # 2 scopes x 3 seeds of: 5 rates; 6 rates x 6 query budgets; one; one. Layer by layer 3 seeds of 4, 4, 1.
    plain = {"FO": 30, "ZO": 216, "Random": 6, "Frozen": 6}
    layers = {"LayerwiseFO": 12, "LayerwiseZO": 12, "LayerwiseFrozen": 3}
    assert Counter(spec.mode for spec in runs) == plain | layers
    assert {(spec.tokenizer, spec.vocab_size) for spec in runs} == {("bpe", 32_000)}
    assert {run.steps for run in forecast(study, GIVEN, [1], 1).runs} == {10**8 // (32 * 256)}


# -- what is there already ------------------------------------------------------------------------


def finish(study, run: str, status: str = "done") -> RunFiles:
    files = RunFiles(Path(study.results), run)
    files.make_folders()
    write_json(files.outcome, {"status": status})
    return files


def test_finished_runs_are_done_and_crashed_ones_are_not():
    study = load_study(STUDY)
    [first, second, third, _] = study.runs
    for run, status in ((first, "done"), (second, "diverged"), (third, "crashed")):
        finish(study, run, status)
    now = plan()
    assert [run.state for run in now.runs] == ["done", "done", "to do", "to do"]
    assert [run.steps for run in now.runs] == [0, 0, 500, 500]
    assert now.walls[0].low == pytest.approx(sum(run.seconds_low for run in now.left) / 2)
    kept = {each.kind: each.bytes for each in now.disk}["kept weights"]
    assert kept == 2 * checkpoint_bytes(study.runs[third])


def test_a_run_that_ended_at_another_length_is_to_do_again():
    study = load_study(STUDY)
    [first, second, *_] = study.runs
    for run in (first, second):
        write_json(
            finish(study, run).folder / "spec.json", study.runs[run].model_dump() | {"plan": "parallel"}
        )
    files = RunFiles(Path(study.results), second)
    files.outcome.unlink()
    files.checkpoints.mkdir()
    (files.checkpoints / "step-000000200.safetensors").touch()
    assert [(run.state, run.steps) for run in plan().runs[:2]] == [("done", 0), ("begun", 300)]
    longer = plan(max_steps=900)
    assert [(run.state, run.steps) for run in longer.runs[:2]] == [("to do", 900), ("to do", 900)]
    assert longer.walls[0].low > 0


def test_a_run_goes_on_from_its_newest_checkpoint():
    study = load_study(STUDY)
    files = RunFiles(Path(study.results), next(iter(study.runs)))
    files.checkpoints.mkdir(parents=True)
    for step in (200, 400):
        (files.checkpoints / f"step-{step:09d}.safetensors").touch()
    run = plan().runs[0]
    assert (run.state, run.steps, run.forward_passes) == ("begun", 100, 100)


def test_nothing_is_left_of_a_finished_study(capsys):
    study = load_study(STUDY)
    for run in study.runs:
        finish(study, run)
    now = plan()
    assert (now.walls[0].low, now.walls[0].high, now.left) == (0, 0, [])
    assert sum(each.bytes or 0 for each in now.disk) == 0


# -- lengths that a corpus decides ------------------------------------------------------------------


def test_epochs_are_unknown_until_there_is_a_cache_or_a_number():
    epochs = {"max_steps": None, "epochs": 2}
    unknown = plan(**epochs)
    assert len(unknown.unknown) == 4
    assert {run.flops for run in unknown.runs} == {None}
    assert one("FO", corpus_tokens=256 * 1000 + 1, **epochs).steps == 2000
    study = load_study(STUDY | epochs)
    [cache] = study.caches()
    folder = Path(study.results) / "cache" / cache
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(bytes(1000))
    (folder / "validation.bin").touch()
    write_json(folder / "meta.json", {"tokens": {"train": 256 * 10 + 1}})
    known = plan(corpus_tokens=10**9, **epochs)
    assert known.runs[0].steps == 20
    assert known.disk[0].bytes == 1000 + (folder / "meta.json").stat().st_size
    assert known.disk[0].how == "is built"


def test_a_cache_that_is_not_built_takes_its_tokens_width():
    assert plan().disk[0].bytes is None
    assert plan(corpus_tokens=95e6).disk[0].bytes == pytest.approx(200e6)
    assert plan(corpus_tokens=95e6, vocab_size=70_000).disk[0].bytes == pytest.approx(400e6)


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "slots", "wall"),
    [
        ([(5, 1, 5), (4, 1, 4), (3, 1, 3), (3, 1, 3), (3, 1, 3)], 2, 10),  # 5 + 3, 4 + 3 + 3
        (
            [(3, 1, 3), (3, 1, 3), (3, 1, 3), (4, 1, 4), (5, 1, 5)],
            2,
            10,
        ),  # in whichever order they are listed
        (
            [(5, 1, 1), (4, 1, 4), (3, 1, 3), (3, 1, 3), (3, 1, 3)],
            2,
            11,
        ),  # the longest was thought the shortest
        ([(4, 2, 9), (3, 1, 8), (2, 1, 7)], 2, 7),
        ([(3, 1, 9), (1, 1, 8), (4, 2, 7)], 2, 7),  # waits for both
        ([(1, 4, 1)], 2, 1),
        ([], 3, 0),
    ],
)
def test_the_longest_predicted_start_first_each_as_soon_as_it_has_its_slots(jobs, slots, wall):
    assert schedule(jobs, slots) == wall


def test_a_run_takes_its_steps_its_validations_and_its_start():
    """500 steps of 0.01 s, 6 validations of 64 x 64 tokens, which are 16 forward passes of the batch."""
    study = load_study(STUDY | {"modes": "FO", "learning_rates": 0.1})
    [spec] = study.runs.values()
    known = Paces(False, measured={class_of(spec): [0.01, 0.02]})
    [run] = forecast(study, known, [0], 1).runs
    assert run.seconds_low == pytest.approx(0.01 * (500 + 6 * 16 / 3) + START_S[0])
    assert run.seconds_high == pytest.approx(0.02 * (500 + 6 * 16 / 3) + START_S[1])
    assert run.basis == "measured here"


def test_more_gpus_shorten_the_wall_clock_and_leave_the_gpu_hours():
    walls = plan(GIVEN, (1, 2, 4)).walls
    assert [wall.at_once for wall in walls] == [1, 2, 4]
    assert walls[0].low > walls[1].low > walls[2].low
    assert len({wall.device_hours_low for wall in walls}) == 1
    assert walls[0].device_hours_high == pytest.approx(walls[0].high / 3600)


def test_runs_that_share_a_gpu_gain_everything_or_nothing():
    alone, shared = plan(GIVEN, (2,)).walls[0], plan(GIVEN, (2,), jobs_per_gpu=2).walls[0]
    assert shared.at_once == 4
    assert shared.low < alone.low
    assert shared.high >= alone.high
    assert shared.device_hours_low == pytest.approx(alone.device_hours_low / 2)
    assert shared.device_hours_high == pytest.approx(alone.device_hours_high)


def test_ranks_take_a_gpu_each_and_as_many_must_be_there():
    two = plan(GIVEN, (2,), ranks=2, modes="ZO")
    assert {run.slots for run in two.runs} == {2}
    assert two.walls[0].device_hours_low == pytest.approx(2 * two.walls[0].low / 3600)
    with pytest.raises(UserError, match="--gpus: 1 is not allowed: a run of the study takes 2"):
        plan(GIVEN, (1,), ranks=2, modes="ZO")


def test_on_a_cpu_cores_are_shared_out_by_the_threads_of_a_run():
    wall = plan(Paces(False, threads=2), cores=4, threads=2).walls[0]
    assert wall.at_once == 2
    assert wall.device_hours_high == pytest.approx(
        2 * sum(run.seconds_high for run in plan(Paces(False, 2)).runs) / 3600
    )


@pytest.mark.parametrize(
    ("cores", "threads", "ranks", "at_once"),
    [(8, 2, 1, 4), (8, 1, 1, 8), (8, 1, 2, 4), (8, 2, 2, 2), (1, 2, 1, 1)],
)
def test_gpus_wait_for_the_cores_that_their_runs_take(cores, threads, ranks, at_once):
    """8 GPUs, on which 8 runs would go at once."""
    study = load_study(STUDY | {"modes": "ZO", "threads": threads, "ranks": ranks, "seed": list(range(8))})
    [wall] = forecast(study, GIVEN, [8], cores).walls
    assert wall.at_once == at_once
    [free] = forecast(study, GIVEN, [8], None).walls
    assert free.at_once == 8 // ranks
    assert free.low <= wall.low


def test_a_run_of_several_gpus_takes_one_place_for_each_rank():
    study = load_study(STUDY | {"modes": "ZO", "gpus_per_run": 2})
    [wall] = forecast(study, GIVEN, [4], None).walls
    assert wall.at_once == 2
    with pytest.raises(UserError, match="--gpus: 1 is not allowed: a run of the study takes 2"):
        forecast(study, GIVEN, [1], None)


# -- disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "adam"), [("checkpoint", 3), ("weights", 1), ("nothing", 0)])
def test_what_is_kept_of_a_run_is_what_the_study_says(keep, adam):
    spec = next(iter(load_study(STUDY | {"optimizer": "adamw"}).runs.values()))
    assert checkpoints_kept(spec, keep) == adam * 4 * 99_712


def test_weights_kept_for_a_probe_are_planned_for():
    """Two ZO runs keep 0.4 MB at each of three steps."""
    plain, probed = (
        {each.kind: each for each in plan(**settings).disk}["kept weights"]
        for settings in ({}, {"probe": "ZO_*", "probe_steps": [1, 2, 3]})
    )
    assert probed.bytes - plain.bytes == 2 * 3 * 4 * 99_712
    assert probed.how == "keep: checkpoint, and 3 probe_steps"


def test_scalar_logs_grow_with_the_directions_and_backprop_has_none():
    runs = load_study(STUDY | {"modes": ["FO", "Frozen", "ZO", "Random"], "query_budgets": [1, 8]}).runs
    sizes = {(spec.mode, spec.query_budget_q): scalar_bytes(spec, 500) for spec in runs.values()}
    assert sizes["FO", 0] == sizes["Frozen", 0] == 0
    assert sizes["ZO", 8] == sizes["Random", 8] > 2 * sizes["ZO", 1]
    assert sizes["ZO", 8] == pytest.approx(109_827, rel=0.05)  # of such a run of the default sweep


# -- the command ----------------------------------------------------------------------------------


def write_study(**settings) -> str:
    Path("study.yaml").write_text(json.dumps(STUDY | settings))  # JSON is YAML
    return "study.yaml"


def test_the_formats_hold_the_same_runs(capsys):
    path = write_study()
    outputs = {}
    for format in ("text", "md", "csv", "json"):
        assert main(["plan", path, "--gpus", "1,4", "--tflops", "10", "--format", format]) == 0
        outputs[format] = capsys.readouterr().out
    told = json.loads(outputs["json"])
    assert [wall["gpus"] for wall in told["walls"]] == [1, 4]
    assert [line.split(",")[0] for line in outputs["csv"].splitlines()[1:]] == [
        run["run"] for run in told["runs"]
    ]
    assert "| 4 GPUs | 4 |" in outputs["md"]
    assert "small: 4 runs (4 to do)" in outputs["text"]
    assert "4 of 4 runs: FLOP/s given" in outputs["text"].replace("\n", " ")
    assert not any(math.isnan(run["seconds_low"]) for run in told["runs"])


def test_a_plan_writes_nothing_and_says_what_it_does_not_know(capsys):
    assert main(["plan", write_study(max_steps=None, epochs=1), "--format", "text"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "more than 0 s" in out
    assert "give --corpus-tokens N" in out
    assert "core-hours" in out
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus", "0,2"], "--gpus: '0,2' is not allowed"),
        (["--gpus", "two"], "--gpus: 'two' is not allowed: a whole number from 0"),
        (["--cores", "0"], "--cores: '0' is not allowed: a whole number from 1"),
        (["--tflops", "-3"], "--tflops: '-3' is not allowed: it must be a number above 0"),
        (["--tflops", "9", "--utilization", "1.5"], "--utilization: 1.5 is not allowed"),
        (["--utilization", "0.3"], "give that too"),
        (["--corpus-tokens", "many"], "--corpus-tokens: 'many' is not allowed"),
        (["--format", "html"], "unknown format 'html'"),
        (["--measure", "--gpus", "1"], "--measure: torch sees no GPU here"),
        (["--measure", "--steps", "0"], "--steps: '0' is not allowed"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(flags, words, capsys):
    assert main(["plan", write_study(), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_plan_for_other_gpus_asks_for_none_here_and_says_that_their_cores_are_not_known(capsys):
    path = write_study(gpus=[0, 1], threads=2)
    assert main(["plan", path, "--gpus", "8", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "| 8 GPUs | 8 |" in out
    assert "cores are not known" in out
    assert main(["plan", path, "--gpus", "8", "--cores", "4", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "| 8 GPUs | 2 |" in out
    assert "cores are not known" not in out


def test_a_study_that_is_not_there_is_one_line(capsys):
    assert main(["plan", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err
