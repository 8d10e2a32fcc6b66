"""Seconds a step: on which basis, in which order, and what of a results folder may be read for it."""

import json

import pytest

from zo.files import write_json
from zo.planning.footprint import BACKWARD_COST, PASS_S, step_work
from zo.planning.pace import LEAST_STEPS, Paces, class_of, classes, given_flops, paces_of, read_finished
from zo.spec import RunSpec
from zo.training.record import COLUMNS, RunFiles


def make(mode="ZO", **settings) -> RunSpec:
    return RunSpec.make(mode=mode, **({"max_steps": 10, "scope": "full", "batch_size": 4} | settings))


def write_run(results, spec: RunSpec, seconds: float, step: int = 20, device="cpu", threads=1, status="done"):
    """What a finished run leaves of its time."""
    files = RunFiles(results, spec.name)
    files.make_folders()
    row = dict.fromkeys(COLUMNS, "") | {"step": str(step), "seconds": str(seconds)}
    lines = [",".join(COLUMNS), *[",".join(row[column] for column in COLUMNS)] * 2]
    files.live_csv.write_text("\n".join(lines) + "\n")
    write_json(files.folder / "spec.json", json.loads(spec.to_json()))
    write_json(files.folder / "manifest.json", {"device": device, "threads": threads})
    write_json(files.outcome, {"status": status})


@pytest.mark.parametrize(
    "changed", [{"learning_rate": 1.0}, {"seed": 3}, {"epsilon": 1e-2}, {"max_steps": 99}, {"dataset": "kjv"}]
)
def test_what_changes_no_step_makes_no_class(changed):
    assert class_of(make(**changed)) == class_of(make())


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": "Random"},
        {"scope": "reduced"},
        {"query_budget_q": 2},
        {"batch_size": 8},
        {"block_size": 32},
        {"model_size": "1M"},
        {"architecture": "llama"},
        {"vocab_size": 600},
        {"direction_family": "lowrank"},
        {"optimizer": "adamw"},
        {"precision": "bf16"},
        {"ranks": 2},
    ],
)
def test_what_changes_a_step_makes_a_class(changed):
    assert class_of(make(**changed)) != class_of(make())
    assert len(classes([make(), make(seed=1), make(**changed)])) == 2


def test_finished_runs_tell_the_time_of_their_like_and_scale_to_the_others(tmp_path):
    write_run(tmp_path, make(), 4.0)
    write_run(tmp_path, make(seed=1), 6.0)
    paces = paces_of(tmp_path, gpus=False, threads=1)
    assert paces.of(make(seed=2)) == (0.2, 0.3, "finished runs like it")
    other = make(query_budget_q=8)
    ratio = step_work(other) / step_work(make())
    assert ratio == 8
    assert paces.of(other) == (pytest.approx(1.6), pytest.approx(2.4), "finished runs of other settings")


@pytest.mark.parametrize(
    "elsewhere",
    [{"device": "cuda"}, {"threads": 2}, {"status": "crashed"}, {"step": 0}, {"seconds": "soon"}],
)
def test_runs_of_another_machine_or_without_an_end_tell_nothing(tmp_path, elsewhere):
    write_run(tmp_path, make(), **({"seconds": 2.0} | elsewhere))
    assert read_finished(tmp_path, gpus=False, threads=1) == {}


def test_a_run_that_diverged_within_its_first_steps_is_not_the_slow_end(tmp_path):
    write_run(tmp_path, make(), 4.0)
    write_run(tmp_path, make(learning_rate=9.0), 30.0, step=LEAST_STEPS - 1, status="diverged")
    assert paces_of(tmp_path, gpus=False, threads=1).of(make()) == (0.2, 0.2, "finished runs like it")


def test_on_a_gpu_only_runs_of_a_gpu_count(tmp_path):
    write_run(tmp_path, make(), 4.0, device="cuda:0", threads=4)
    assert len(read_finished(tmp_path, gpus=True, threads=1)) == 1


def test_steps_timed_here_come_first_then_what_the_user_says_then_finished_runs(tmp_path):
    write_run(tmp_path, make(), 4.0)
    key = class_of(make())
    order = [
        paces_of(tmp_path, False, 1, (1e9, 2e9), {key: [0.5, 0.7]}),
        paces_of(tmp_path, False, 1, (1e9, 2e9)),
        paces_of(tmp_path, False, 1),
        paces_of(tmp_path / "nothing", False, 1),
    ]
    bases = [paces.of(make()).basis for paces in order]
    assert bases == ["measured here", "FLOP/s given", "finished runs like it", "assumed"]
    assert order[0].of(make())[:2] == (0.5, 0.7)


def test_given_flops_are_work_over_rate_and_the_launches_of_passes():
    """FO: 3 passes of 2 x 256 tokens x 99,712 parameters; ZO, q = 8: 16, all in one launch."""
    paces = Paces(gpus=True, flops=given_flops(10, 0.5))
    for spec, passes, launches in ((make("FO"), 1 + BACKWARD_COST, 3), (make(query_budget_q=8), 16, 1)):
        pure = passes * 2 * 256 * 99_712 / 5e12
        assert paces.of(spec) == (
            pytest.approx(pure),
            pytest.approx(pure + launches * PASS_S),
            "FLOP/s given",
        )


def test_without_a_utilization_the_range_is_the_documented_one():
    assert given_flops(100, None) == (pytest.approx(10e12), pytest.approx(40e12))
    assert given_flops(None, None) is None


@pytest.mark.parametrize("gpus", [False, True])
@pytest.mark.parametrize("size", ["100k", "20M-32k"])
def test_an_assumption_is_a_range_and_grows_with_the_model(gpus, size):
    low, high, basis = Paces(gpus).of(make(model_size=size))
    assert 0 < low < high
    assert basis == "assumed"
    assert Paces(gpus).of(make(model_size="200M")).low > low


def test_more_threads_are_assumed_to_take_less_time():
    one, four = Paces(False, threads=1).of(make()), Paces(False, threads=4).of(make())
    assert four.low == pytest.approx(one.low / 4)
