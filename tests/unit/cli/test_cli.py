"""The command line: flags, defaults, what each command starts; a mistake is one line and status 2."""

import csv
import errno
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from made_runs import write_run
from small_runs import fail

from zo import cli
from zo.cli import main
from zo.data.dataset import open_cache
from zo.distributed.ranks import ALONE
from zo.spec import AXES, RunSpec
from zo.study import PLURAL, Workflow, load_study, read_study
from zo.sweep import start as sweep

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "train",
    "sweep",
    "plan",
    "status",
    "pack",
    "prune",
    "cache",
    "analyze",
    "plot",
    "stats",
    "claims",
    "report",
    "bench",
)
COMMANDS += ("replay", "probe", "doctor", "crash")
SWEEP = (
    "--modes FO,ZO --scopes reduced,full --batch-sizes 2,4,8 --query-budgets 1,2,4,8 "
    "--learning-rates 1e-4,1e-5 --epochs 2 --parallel 4 --gpus 0,1,2,3 --log-interval 10"
)
S1_CONFIG = {
    "study": "sweep",
    "modes": ["FO", "ZO"],
    "scopes": ["reduced", "full"],
    "batch_sizes": [2, 4, 8],
    "query_budgets": [1, 2, 4, 8],
    "learning_rates": [1e-4, 1e-5],
    "epochs": 2,
    "log_interval": 10,
}
TRAIN = (
    "--mode ZO --scope reduced --batch_size 4 --query_budget_q 8 --learning_rate 1e-5 --epochs 1 "
    "--model_size 20M --optimizer sgd --log_interval 10 --parallel_q_computation --parallel_batch_size 4"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_logging():
    """What a command does to the process's logging ends with its test."""
    loggers = [logging.getLogger(name) for name in ("zo", "py.warnings")]
    before = [(logger, logger.handlers, logger.level) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, logger.handlers, level in before:
        logger.setLevel(level)


@pytest.fixture
def trained(monkeypatch):
    """What `train` hands on: (spec, results, keywords) of each call; nothing is trained."""
    calls = []

    def train(spec, results, **keywords):
        calls.append((spec, results, keywords))

    monkeypatch.setitem(sys.modules, "zo.training.train", SimpleNamespace(train=train))
    for library in ("OMP", "MKL", "OPENBLAS", "RAYON"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    return calls


@pytest.fixture
def started(monkeypatch):
    """What `sweep` becomes: (command, environment) of each call; nothing runs."""
    calls = []

    def execve(program, command, environment):
        assert program == command[0]
        calls.append((command, environment))

    monkeypatch.setattr(sweep, "os", SimpleNamespace(environ=os.environ, execve=execve))
    return calls


def spec_of(trained, flags: str) -> RunSpec:
    assert main(["train", *shlex.split(flags)]) == 0
    return trained.pop()[0]


def read_rows(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def run_zo(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "zo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- flags and defaults --------------------------------------------------------------------------


def test_the_defaults_of_a_run_by_hand_are_those_of_the_specification(trained):
    spec = spec_of(trained, "--mode ZO")
    assert (spec.scope, spec.query_budget_q, spec.learning_rate, spec.batch_size) == ("reduced", 1, 1e-5, 8)
    assert (spec.epochs, spec.max_steps, spec.optimizer, spec.log_interval) == (1, None, "sgd", 10)
    assert (spec.epsilon, spec.cosine_target, spec.dataset) == (1e-3, 0.9, "shakespeare")
    assert (spec.weight_decay, spec.seed, spec.plan) == (0, 0, "auto")


def test_every_flag_of_the_specifications_command_reaches_the_spec(trained):
    spec = spec_of(trained, TRAIN)
    cell = {"scope": "reduced", "batch_size": 4, "query_budget_q": 8, "model_size": "20M", "epochs": 1}
    assert spec == RunSpec.make(mode="ZO", plan="parallel", parallel_batch_size=4, **cell)


def test_flags_may_be_spelled_with_hyphens_or_underscores(trained):
    with_hyphens = " ".join(word.replace("_", "-") if word[0] == "-" else word for word in TRAIN.split())
    assert "_" not in with_hyphens
    assert spec_of(trained, TRAIN) == spec_of(trained, with_hyphens)
    assert spec_of(trained, "--mode=FO --batch_size=3").batch_size == 3
    assert spec_of(trained, "--mode=FO --dataset my_file-a.txt").dataset == "my_file-a.txt"


def test_one_flag_chooses_the_plan_by_hand(trained):
    assert spec_of(trained, "--mode ZO --no-parallel_q_computation").plan == "sequential"
    assert spec_of(trained, "--mode ZO --parallel-q-computation").plan == "parallel"


def test_a_length_replaces_the_default_of_one_epoch(trained):
    assert spec_of(trained, "--mode ZO --max-forwards 1e3").epochs is None


def test_a_run_by_hand_is_the_run_that_the_sweep_would_make(trained, tmp_path):
    by_hand = spec_of(trained, "--mode ZO --batch-size 4 --query-budget-q 2 --learning-rate 0.001 --seed 1")
    config = {"study": "t", "modes": "ZO", "batch_sizes": 4, "query_budgets": 2, "learning_rates": 1e-3}
    assert load_study(config | {"seed": [0, 1], "epochs": 1}).runs[by_hand.name] == by_hand
    (tmp_path / "spec.json").write_text(by_hand.to_json())
    assert spec_of(trained, "--spec spec.json") == by_hand
    assert spec_of(trained, f"--spec {shlex.quote(by_hand.to_json())}") == by_hand


def test_the_machines_flags_reach_the_run(trained, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    flags = ["--device", "cpu", "--threads", "3", "--gpus", "0", "--results", "out", "--keep-steps", "4,2"]
    assert main(["train", "--mode", "ZO", *flags]) == 0
    _, results, keywords = trained.pop()
    assert results == Path("out")
    assert keywords == {
        "device": "cpu",
        "threads": 3,
        "ranks": ALONE,
        "replace": False,
        "keep": "checkpoint",
        "keep_steps": (4, 2),
        "retry": False,
    }
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("3", "")


def test_what_is_kept_and_which_attempt_it_is_reach_the_run(trained):
    assert main(["train", "--mode", "ZO", "--keep", "nothing", "--attempt", "2"]) == 0
    *_, keywords = trained.pop()
    assert (keywords["keep"], keywords["retry"]) == ("nothing", True)


def test_a_full_disk_is_status_75_and_one_line(trained, monkeypatch, capsys):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "step-1.safetensors")

    monkeypatch.setattr(sys.modules["zo.training.train"], "train", fill)
    assert main(["train", "--mode", "ZO"]) == 75
    assert "step-1.safetensors" in capsys.readouterr().err
    (log,) = Path("results/job_logs").iterdir()
    assert "Traceback" not in log.read_text()


def test_a_run_that_breaks_is_status_1_with_its_traceback_in_the_log(trained, monkeypatch):
    def explode(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(sys.modules["zo.training.train"], "train", explode)
    assert main(["train", "--mode", "ZO"]) == 1
    (log,) = Path("results/job_logs").iterdir()
    assert log.read_text().splitlines()[-1] == "RuntimeError: boom"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_with_0(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: zo {command}" in capsys.readouterr().out


def test_the_commands_tested_here_are_all_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    listed = [line.split()[0] for line in printed.splitlines() if line.startswith("    ")]
    users = [name for name in COMMANDS if name != "crash"]  # which the workflow calls
    assert [word for word in listed if word != "COMMAND"] == users
    assert set(cli.COMMANDS) == set(COMMANDS)


def test_the_help_of_sweep_names_every_key_of_a_study_file(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    printed = capsys.readouterr().out
    assert [key for key in Workflow.model_fields if f"  --{key.replace('_', '-')}" not in printed] == []


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_names_every_setting(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    for key, info in RunSpec.model_fields.items():
        flag = "--" + (PLURAL.get(key, key) if command == "sweep" else key).replace("_", "-")
        assert f"  {flag}" in printed
        assert info.description in printed


# --- sweep ---------------------------------------------------------------------------------------


def test_a_dry_run_of_the_specifications_sweep_prints_its_60_runs(started, capsys):
    assert main(["sweep", "--dry-run", *SWEEP.split()]) == 0
    rates = ("1e-04", "1e-05")
    assert capsys.readouterr().out.split() == [
        f"{mode}_{scope}_bs{batch}_q{q}_lr{rate}"
        for mode, budgets in (("FO", [0]), ("ZO", [1, 2, 4, 8]))
        for scope in ("reduced", "full")
        for batch in (2, 4, 8)
        for q in budgets
        for rate in rates
    ]
    assert not started
    assert not Path("results").exists()


def test_the_study_file_that_a_sweep_writes_is_the_one_written_by_hand(started):
    assert main(["sweep", *SWEEP.split()]) == 0
    written, by_hand = read_study(Path("results/sweep/study.yaml")), load_study(S1_CONFIG)
    assert written.runs == by_hand.runs
    assert list(written.runs) == list(by_hand.runs)
    assert written.results == "results/sweep"


def test_snakemake_reads_the_command_as_it_is_meant(started):
    from snakemake.cli import get_argument_parser

    extra = ["--", "results/sweep/summary.txt", "--keep_going", "--set-resources", "train:mem_mb=5"]
    assert main(["sweep", *SWEEP.split(), "--threads", "2", *extra]) == 0
    ((command, environment),) = started
    assert command[:3] == [sys.executable, "-m", "snakemake"]
    read = get_argument_parser().parse_args(command[3:])
    assert (Path(read.snakefile), Path(read.workflow_profile)) == (
        ROOT / "Snakefile",
        ROOT / "profiles/default",
    )
    assert str(read.cores) == "8"
    assert read.targets == ["results/sweep/summary.txt"]
    assert read.keep_going
    assert command[-2:] == ["--configfile", "results/sweep/study.yaml"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@pytest.mark.parametrize(
    ("flag", "visible", "seen"),
    [
        ([], "5,6", "5,6"),
        (["--gpus", "3"], "", "3"),
        (["--gpus", "none"], "5,6", "none"),
        (["--gpus="], "5", ""),
    ],
)
def test_the_workflow_sees_the_gpus_of_the_flag_or_else_those_of_the_environment(
    flag, visible, seen, started, monkeypatch
):
    """It counts their slots itself (tests/workflow/test_sweep.py)."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert main(["sweep", "--modes", "FO", "--learning-rates", "1", *flag]) == 0
    ((command, environment),) = started
    assert environment["CUDA_VISIBLE_DEVICES"] == seen
    assert "--resources" not in command


@pytest.mark.parametrize(("ranks", "cores"), [("1", 8), ("1,3", 24)])
def test_cores_suffice_for_as_many_of_the_widest_runs_as_are_asked_for(ranks, cores, started):
    flags = ["--modes", "ZO", "--learning-rates", "1", "--ranks", ranks, "--parallel", "4", "--threads", "2"]
    assert main(["sweep", *flags]) == 0
    command = started[0][0]
    assert command[command.index("--cores") + 1] == str(cores)


def test_every_key_of_a_study_file_has_a_flag(started):
    flow = {"jobs_per_gpu": 3, "gpus_per_run": 1, "retries": 4, "keep": "weights", "plot_each_run": True}
    assert set(flow) <= set(Workflow.model_fields)
    flags = ["--jobs-per-gpu", "3", "--gpus-per-run", "1", "--retries", "4", "--keep", "weights"]
    flags += ["--plot-each-run", "--gpus", "0,1", "--study", "s", "--threads", "2"]
    assert main(["sweep", "--modes", "FO", "--learning-rates", "1", *flags]) == 0
    written = read_study(Path("results/s/study.yaml")).workflow
    assert written == Workflow(study="s", threads=2, **flow)


def test_four_runs_at_once_with_one_thread_each_are_the_default(started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["sweep", "--modes", "FO", "--learning-rates", "1"]) == 0
    command = started[0][0]
    assert command[command.index("--cores") + 1] == "4"
    config = yaml.safe_load(Path("results/sweep/study.yaml").read_text())
    assert (config["threads"], config["epochs"]) == (1, 1)


def test_quick_fills_in_only_what_no_flag_says(capsys):
    assert main(["sweep", "--quick", "--dry-run"]) == 0
    whole = capsys.readouterr().out.split()
    assert {run.split("_")[0] for run in whole} == {"FO", "ZO", "Frozen"}
    flags = ["--modes", "ZO", "--query-budgets", "2", "--study", "q"]
    assert main(["sweep", "--quick", "--dry-run", *flags]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["ZO_full_bs4_q2_lr1e-02"]
    assert "results/q/" in printed.err


def test_every_axis_takes_a_list_with_commas(capsys):
    values = {
        "optimizer": "sgd,adam",
        "seed": "0,1",
        "cosine_target": "0.5,0.9",
        "blend_bp_gradient": "true,false",
    }
    flags = [word for key, value in values.items() for word in (f"--{key}", value)]
    assert set(values) <= set(AXES)
    cell = ["--modes", "Instruct", "--bp-interval", "5", "--learning-rates", "1"]
    assert main(["sweep", "--dry-run", *cell, *flags]) == 0
    assert len(capsys.readouterr().out.split()) == 16


# --- cache, analysis -----------------------------------------------------------------------------


def test_cache_builds_what_a_run_of_the_same_flags_reads_and_prints_its_folder(capsys):
    Path("tiny.txt").write_text("one document\n\nand another\n" * 30)
    flags = ["--dataset", "tiny.txt", "--tokenizer", "bytes"]
    assert main(["cache", *flags, "--results", "out"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == Path("out/cache")
    assert open_cache(folder).vocab_size == 257
    ((name, wanted),) = load_study(S1_CONFIG | {"dataset": "tiny.txt", "tokenizer": "bytes"}).caches().items()
    assert name == folder.name
    assert main(["cache", "--spec", wanted.to_json(), "--results", "out"]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder


@pytest.fixture
def logs(tmp_path) -> Path:
    """Two runs of a study in a folder of logs, one of which the study below names."""
    folder = tmp_path / "results" / "csv_logs"
    write_run(folder, "ZO", q=1, lr=1e-4)
    write_run(folder, "ZO", q=8, lr=1e-4)
    config = {"study": "t", "modes": "ZO", "batch_sizes": 4, "query_budgets": 8, "learning_rates": 1e-4}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config | {"epochs": 1}))
    return folder


STUDY_RUN = "ZO_reduced_bs4_q8_lr1e-04"


def test_analyze_writes_the_summary_beside_the_folder_or_where_told_and_prints_it(logs, capsys):
    assert main(["analyze", str(logs)]) == 0
    assert capsys.readouterr().out == (logs.parent / "summary.txt").read_text()
    assert len(read_rows(logs.parent / "summary.csv")) == 2
    assert main(["analyze", str(logs), "--out", "elsewhere/deep", "--study", "study.yaml"]) == 0
    (row,) = read_rows(Path("elsewhere/deep/summary.csv"))
    assert row["run"] == STUDY_RUN


def test_stats_prints_the_format_asked_for_of_the_studys_runs_alone(logs, capsys):
    study = json.dumps(yaml.safe_load(Path("study.yaml").read_text()))
    assert main(["stats", str(logs), "--format", "json", "--study", study, "--targets", "5.5,5"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert {row["q"] for row in tables["convergence"]} == {8}
    assert main(["stats", str(logs)]) == 0
    assert capsys.readouterr().out


def test_plot_prints_the_figures_that_it_drew(logs, capsys):
    assert main(["plot", str(logs), "--study", "study.yaml", "--per-run"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths
    assert all(path.is_relative_to(logs.parent / "plots") and path.stat().st_size for path in paths)
    assert STUDY_RUN in {path.stem for path in paths}
    assert not any("_q1_" in path.name for path in paths)


def test_crash_records_the_last_attempt_and_a_bug_at_once_but_nothing_outside_the_grid(tmp_path):
    flags = ["crash", "--run", STUDY_RUN, "--results", "out", "--exit"]
    assert main([*flags, "75", "--last-attempt", "0"]) == 75
    assert main([*flags, "1", "--last-attempt", "1", "--record", "0"]) == 1
    assert not Path(f"out/runs/{STUDY_RUN}/crash1.json").exists()
    assert main([*flags, "75", "--last-attempt", "1"]) == 0
    assert main([*flags, "1", "--last-attempt", "0"]) == 0
    assert Path(f"out/runs/{STUDY_RUN}/crash2.json").exists()


# --- what bad input gets -------------------------------------------------------------------------

ZO = ("train", "--mode", "ZO")
GRID = ("sweep", "--dry-run", "--modes", "ZO", "--learning-rates", "1e-4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["--mode is missing"]),
        (["train", "--mode", "Zo"], ["unknown mode 'Zo'", "did you mean 'ZO'?"]),
        ([*ZO, "--learning-rate", "-1"], ["learning_rate", "'-1'", "greater than 0"]),
        ([*ZO, "--batch_size", "0"], ["batch_size", "'0'", "1"]),
        ([*ZO, "--max-steps", "1", "--epochs", "1"], ["exactly one of", "max_steps and epochs given"]),
        ([*ZO, "--block-size", "300"], ["block_size", "300", "256 positions"]),
        ([*ZO, "--threads", "0"], ["threads", "0", "1 or more"]),
        ([*ZO, "--gpus", "-1"], ["gpus", "-1", "0 or more"]),
        ([*ZO, "--spec", "{}"], ["--spec is a whole spec", "--mode"]),
        (["train", "--spec", "{}", "--parallel-q-computation"], ["--spec", "drop --parallel_q_computation"]),
        (["train", "--spec", "{broken"], ["not JSON", "column 2"]),
        (["train", "--spec", "none.json"], ["none.json", "cannot be read"]),
        (["train", "--mode", "FO", "--parallel_q_computation"], ["--parallel_q_computation", "mode FO"]),
        (["train", "--mode", "FO", "--no-parallel-q-computation"], ["--parallel_q_computation", "mode FO"]),
        (
            ["train", "--mode", "Frozen", "--parallel-batch-size", "2"],
            ["--parallel_batch_size", "mode Frozen"],
        ),
        ([*ZO, "--results", "file/results"], ["file/results", "cannot be made", "choose another"]),
        (["cache", "--results", "file"], ["file/cache", "cannot be made", "choose another"]),
        (["cache", "--dataset", "none.txt"], ["'none.txt'", "no such file", "shakespeare"]),
        (["cache", "--dataset", "shakespere"], ["'shakespere'", "did you mean 'shakespeare'?"]),
        (["cache", "--dataset", "empty.txt"], ["'empty.txt'", "the file is empty"]),
        (["cache", "--dataset", "latin.txt"], ["'latin.txt'", "not UTF-8"]),
        (["cache", "--tokenizer", "byte"], ["unknown tokenizer 'byte'", "did you mean 'bytes'?"]),
        ([*GRID, "--optimizer", "sgd,adm"], ["unknown optimizer 'adm'", "did you mean 'adam'?"]),
        ([*GRID, "--scopes", "reduced,"], ["unknown scope ''", "allowed: full, reduced"]),
        ([*GRID, "--study", "a/b"], ["study", "'a/b'", "letters, digits"]),
        (["sweep", "--dry-run", "--learning-rates", "1"], ["--modes missing: say what to compare"]),
        (
            ["sweep", "--modes", "FO", "--learning-rates", "1", "--parallel", "0"],
            ["parallel", "0", "1 or more"],
        ),
        (["analyze", "none/csv_logs"], ["none/csv_logs"]),
        (["analyze", ".", "--study", "{broken"], ["--study", "not JSON"]),
        (["stats", ".", "--study", "broken.yaml"], ["broken.yaml", "cannot be read"]),
        (["stats", ".", "--study", "list.yaml"], ["list.yaml", "a mapping of keys"]),
        (["stats", ".", "--targets", "5,x"], ["targets", "'5,x'", "numbers"]),
        (["plot", "file"], ["file"]),
        (["status", "none"], ["none", "no run was planned", "give the results folder"]),
        (["status", "--format", "yaml"], ["unknown format 'yaml'", "text, json"]),
        (["status", "--watch", "--format", "json"], ["--format json: --watch shows a table: drop one"]),
        (["pack", "file", "--out", "a.tar.gz"], ["file: no runs to pack"]),
        (["pack", "--out", "a.zip"], ["'a.zip'", "must end in .tar.gz"]),
        (["prune", "none"], ["none: no runs here"]),
        (["doctor", "--study", "broken.yaml"], ["broken.yaml", "cannot be read"]),
    ],
    ids=lambda part: " ".join(part[:5]) if isinstance(part, list) else "",
)
def test_a_mistake_is_one_line_that_names_it(arguments, words, trained, started, capsys):
    for name in ("file", "empty.txt"):
        Path(name).touch()
    Path("latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    Path("broken.yaml").write_text("a: [1,\nb: }")
    Path("list.yaml").write_text("- 1\n")
    line = fail(capsys, *arguments)
    for word in words:
        assert word in line
    assert not trained
    assert not started


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["--mode is missing"]),
        (["train", "--mode", "ZO", "--learning_rate", "nan"], ["learning_rate: 'nan' is not allowed"]),
        (["train", "--mode", "ZO", "--device", "cuda"], ["device: 'cuda'", "sees no GPU"]),
        (["train", "--mode", "ZO", "--device", "gpu"], ["device: 'gpu'", "auto, cpu, cuda"]),
        (
            ["train", "--mode", "ZO", "--dataset", "none.txt", "--max-steps", "1"],
            ["'none.txt'", "no such file"],
        ),
        (["train", "--mode", "FO", "--results", "/dev/null/x"], ["/dev/null/x", "cannot be made"]),
        (["sweep", "--modes", "Z", "--learning-rates", "1"], ["unknown mode 'Z'", "did you mean 'ZO'?"]),
    ],
    ids=str,
)
def test_in_a_process_of_its_own_a_mistake_is_status_2_and_one_line_without_a_traceback(
    arguments, words, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run_zo(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line


def test_a_block_longer_than_the_corpus_names_both_lengths():
    Path("tiny.txt").write_text("a few words\n\nand a few more\n")
    flags = ["--mode", "FO", "--max-steps", "1", "--dataset", "tiny.txt", "--tokenizer", "bytes"]
    done = run_zo("train", *flags, "--block-size", "128")
    assert (done.returncode, done.stdout) == (2, "")
    *progress, line = done.stderr.splitlines()
    assert line.startswith("zo train: batch_size 8 x block_size 128: longer than the training text")
    assert not any("Traceback" in before for before in progress)


EMPTY = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}


def test_an_empty_tokenizer_is_an_error_that_names_it(capsys):
    mark = {"id": 0, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False}
    mark |= {"rstrip": False, "normalized": False}
    Path("empty.json").write_text(json.dumps(EMPTY | {"added_tokens": [mark]}))
    assert "tokenizer 'empty.json' is empty" in fail(capsys, "cache", "--tokenizer", "empty.json")
    Path("empty.json").write_text(json.dumps(EMPTY))
    assert "tokenizer 'empty.json'" in fail(capsys, "cache", "--tokenizer", "empty.json")


def test_a_reader_that_goes_away_is_no_traceback(logs):
    command = [sys.executable, "-m", "zo", "stats", str(logs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait()


def test_a_run_that_is_given_a_gpu_and_finds_none_says_so_in_both_logs(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("ZO_GPU_LOCKS", str(tmp_path))
    monkeypatch.setattr("zo.sweep.gpus._held", [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for given in ("7", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert main(["train", "--mode", "FO", "--max-steps", "1", "--gpus", "1"]) == 0
        logs = [Path("results/sweep.log").read_text(), next(Path("results/job_logs").iterdir()).read_text()]
        assert [log.count("FO_reduced_bs8_q0_lr1e-05: GPU 7 is given, but torch") for log in logs] == [1, 1]
    assert len(trained) == 2


def test_a_run_by_hand_beside_a_gpu_that_torch_does_not_see_says_so_in_a_line(
    trained, monkeypatch, tmp_path, capsys
):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-a)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device, lines in (("auto", 1), ("cpu", 0)):
        assert main(["train", "--mode", "FO", "--max-steps", "1", "--device", device]) == 0
        assert capsys.readouterr().err.count("GPU 0 is listed by nvidia-smi, but torch") == lines
