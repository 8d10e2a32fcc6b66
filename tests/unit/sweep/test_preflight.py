"""The preflight of a study: what must fail in the night fails before it, in one line; doubts only warn."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from zo.cli import main
from zo.errors import UserError
from zo.files import write_json
from zo.study import load_study
from zo.sweep import preflight as module
from zo.sweep.preflight import Means, check_study, preflight
from zo.training.record import RunFiles

STUDY = {"study": "default", "modes": "FO", "learning_rates": [0.1, 0.2], "max_steps": 5, "scopes": "full"}
HUGE_BATCH = {"batch_sizes": 10**8}
FIND = """
import json, sys
from zo.sweep.preflight import Means, check_study
from zo.study import load_study
found = check_study(load_study(json.loads(sys.argv[1])), Means(jobs=1, gpus=0))
print(json.dumps([[each.level, each.what, each.text] for each in found]))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder on a machine of known size: what is free on the real one is other tests' doing."""
    memory = SimpleNamespace(total=64 * 10**9, available=32 * 10**9)
    disk = SimpleNamespace(total=2 * 10**12, free=10**12)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("shutil.disk_usage", lambda _: disk)
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()


def find(what: str, means=None, **settings) -> tuple[str, str]:
    """Level and text of the one finding about ``what``."""
    findings = check_study(load_study(STUDY | settings), means or Means(jobs=2, gpus=0))
    [found] = [each for each in findings if each.what.startswith(what)]
    return found.level, found.text


def test_a_small_study_on_this_machine_is_fine():
    findings = check_study(load_study(STUDY), Means(jobs=2, gpus=0))
    assert {each.what: each.level for each in findings} == dict.fromkeys(
        ("packages", "corpus shakespeare", "disk", "GPUs", "memory"), "ok"
    )


def test_fewer_gpus_than_a_run_takes_is_a_failure():
    assert find("GPUs", Means(2, gpus=2), gpus_per_run=3) == ("failure", "gpus_per_run is 3, but there are 2")
    assert find("GPUs", Means(2, gpus=3), gpus_per_run=3)[0] == "ok"


def test_an_id_that_nvidia_smi_does_not_list_is_a_doubt(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-aa11)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for given, level in (("0", "ok"), ("0,7", "warning"), ("GPU-zz", "ok")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert find("GPUs", Means(2, gpus=2))[0] == level
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,7")
    assert "nvidia-smi -L does not list 7" in find("GPUs", Means(2, gpus=2))[1]


def test_a_large_model_without_gpus_is_a_doubt():
    level, text = find("GPUs", model_size="200M")
    assert level == "warning"
    assert "200 M parameters" in text
    assert find("GPUs", model_size="1M")[0] == "ok"


def test_checkpoints_that_the_disk_cannot_hold_are_a_failure():
    """2000 runs of 1B with Adam's state: 24 TB."""
    level, text = find("disk", model_size="1B", optimizer="adamw", seed=list(range(1000)))
    assert level == "failure"
    assert "checkpoints of 2000 runs take 24.5 TB" in text


def test_checkpoints_that_are_there_already_are_not_planned_for_again():
    [run, _] = load_study(STUDY).runs
    folder = RunFiles(Path("results"), run).checkpoints
    folder.mkdir(parents=True)
    assert "of 2 runs take 3.2 MB" in find("disk")[1]
    (folder / "step-000000004.safetensors").write_bytes(bytes(10**6))
    assert "of 2 runs take 2.2 MB" in find("disk")[1]


def test_the_disk_is_planned_for_what_the_study_keeps():
    """Two runs of 0.4 MB: three checkpoints each at work, and what is left of them."""
    assert "of 2 runs take 3.2 MB" in find("disk")[1]
    assert "of 2 runs take 2.4 MB" in find("disk", keep="nothing")[1]


def test_finished_runs_take_no_more_disk():
    study = load_study(STUDY)
    for run in study.runs:
        assert "of 0 runs" not in find("disk")[1]
        RunFiles(Path("results"), run).make_folders()
        write_json(RunFiles(Path("results"), run).folder / "outcome.json", {"status": "done"})
    assert "checkpoints of 0 runs take 0 bytes" in find("disk")[1]


def test_a_run_that_ended_by_other_settings_is_made_again_and_planned_for():
    [run, _] = load_study(STUDY).runs
    files = RunFiles(Path("results"), run)
    files.make_folders()
    write_json(files.outcome, {"status": "done"})
    stored = load_study(STUDY).runs[run].model_dump()
    write_json(files.folder / "spec.json", stored | {"plan": "parallel"})
    assert "checkpoints of 1 runs" in find("disk")[1]
    assert "checkpoints of 2 runs" in find("disk", max_steps=6)[1]


def test_a_run_that_cannot_fit_into_memory_is_a_failure_and_a_tight_one_a_doubt(monkeypatch):
    assert find("memory", **HUGE_BATCH)[0] == "failure"
    assert find("memory")[0] == "ok"
    monkeypatch.setattr(module, "TIGHT", 0.0)
    assert find("memory")[0] == "warning"


def test_on_a_cluster_the_submitting_machine_is_not_judged():
    findings = check_study(load_study(STUDY | HUGE_BATCH), Means(jobs=64, gpus=64, local=False))
    assert {each.what for each in findings} == {"packages", "corpus shakespeare", "disk"}


def test_failures_are_one_error_and_doubts_go_on_and_into_the_log(capsys):
    preflight(load_study(STUDY | {"model_size": "200M", "max_steps": 1, "batch_sizes": 1}), Means(1, 0))
    printed = capsys.readouterr().err
    assert "preflight  warning  GPUs: none used" in printed
    assert "preflight  ok       packages" in printed
    [line] = [line for line in Path("results/sweep.log").read_text().splitlines() if "GPUs" in line]
    assert "preflight warning GPUs: none used" in line
    with pytest.raises(UserError, match=r"memory: .* the largest takes") as caught:
        preflight(load_study(STUDY | HUGE_BATCH), Means(1, 0))
    assert "\n" not in str(caught.value)


# --- corpora -------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers for the one repository that it has, as the hub's API does."""

    def do_GET(self):
        known = "roneneldan/TinyStories" in self.path
        body = json.dumps({"id": "roneneldan/TinyStories", "siblings": []} if known else {}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub():
    """The address of a hub."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def find_corpus(dataset: str, **environment: str) -> tuple[str, str]:
    """The finding about a hub corpus, in a process of its own: the hub's library reads its address once."""
    config = json.dumps(STUDY | {"dataset": dataset, "max_samples": 10})
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ZO_"))}
    env |= {"HF_HOME": str(Path("hf").resolve())} | environment
    done = subprocess.run([sys.executable, "-c", FIND, config], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [found] = [each for each in json.loads(done.stdout) if each[1] == f"corpus {dataset}"]
    return found[0], found[2]


def test_a_hub_corpus_that_answers_is_fine_and_another_is_not(hub):
    assert find_corpus("tinystories", HF_ENDPOINT=hub)[0] == "ok"
    level, text = find_corpus("c4", HF_ENDPOINT=hub)
    assert level == "failure"
    assert "allenai/c4 can't be reached" in text


def test_without_the_hub_a_corpus_is_a_failure_unless_files_of_it_are_here():
    dead = "http://127.0.0.1:9"
    level, text = find_corpus("tinystories", HF_ENDPOINT=dead)
    assert (level, "is not on disk" in text) == ("failure", True)
    Path("hf/hub/datasets--roneneldan--TinyStories").mkdir(parents=True)
    assert find_corpus("tinystories", HF_ENDPOINT=dead)[0] == "warning"
    assert find_corpus("tinystories", HF_HUB_OFFLINE="1")[0] == "warning"


def test_copies_of_repositories_stand_in_for_the_hub():
    assert find_corpus("tinystories", ZO_HUB_ROOT="copies")[0] == "failure"
    Path("copies/roneneldan/TinyStories").mkdir(parents=True)
    assert find_corpus("tinystories", ZO_HUB_ROOT="copies")[0] == "ok"


def test_a_built_cache_needs_no_corpus():
    [folder] = load_study(STUDY | {"dataset": "tinystories"}).caches()
    path = Path("results/cache") / folder / "meta.json"
    path.parent.mkdir(parents=True)
    for name in ("meta.json", "train.bin", "validation.bin"):
        (path.parent / name).write_text("{}")
    assert find("corpus tinystories", dataset="tinystories") == ("ok", "its cache is built")


def test_a_pruned_cache_needs_its_corpus_again():
    [folder] = load_study(STUDY).caches()
    (Path("results/cache") / folder).mkdir(parents=True)
    (Path("results/cache") / folder / "meta.json").write_text("{}")
    assert find("corpus shakespeare") == ("ok", "embedded")


def test_a_local_corpus_is_named():
    Path("text.txt").write_text("one\n\ntwo\n")
    assert find("corpus text.txt", dataset="text.txt") == ("ok", "local: text.txt")


# --- the doctor ----------------------------------------------------------------------------------


def test_the_doctor_looks_at_a_study_too(capsys):
    Path("study.yaml").write_text(json.dumps(STUDY | HUGE_BATCH))
    assert main(["doctor", "--study", "study.yaml"]) == 1
    printed = capsys.readouterr().out
    assert "preflight  failure  memory: " in printed
    assert "missing    memory: " in printed
    Path("study.yaml").write_text(json.dumps(STUDY))
    assert main(["doctor", "--study", "study.yaml"]) == 0


def test_every_rank_of_a_run_takes_its_gpus_and_its_memory():
    ranks = {"modes": "ZO", "ranks": [1, 4]}
    words = "gpus_per_run is 1 for each of 4 ranks, but there are 2"
    assert find("GPUs", Means(2, gpus=2), **ranks) == ("failure", words)
    assert find("GPUs", Means(2, gpus=4), **ranks) == ("ok", "4 for runs that take up to 4 each")
    texts = [find("memory", Means(8, gpus=0), modes="ZO", ranks=n, learning_rates=0.1)[1] for n in (4, 8)]
    four, eight = (float(re.search(r"about ([\d.]+) GB", text)[1]) for text in texts)
    assert eight == pytest.approx(2 * four, rel=0.1)


def test_the_doctor_of_a_checkout_that_was_never_installed_says_so(capsys, monkeypatch):
    def refuse(extra=None):
        raise PackageNotFoundError("zo")

    monkeypatch.setattr("zo.sweep.doctor.required_packages", refuse)
    assert main(["doctor"]) == 0
    assert "zo runs from a checkout and is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cuda", "remedy"),
    [(None, "a build for CPUs: pip install"), ("12.9", "its CUDA 12.9 asks for a newer driver")],
)
def test_the_doctor_misses_gpus_that_torch_does_not_see(cuda, remedy, tmp_path, monkeypatch, capsys):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-a)'\necho 'GPU 1: two'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # NVML's, where the driver is too old
    monkeypatch.setattr("torch.version.cuda", cuda)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "gpus       0, 1\n" in printed
    assert re.search(rf"missing    torch \S+ sees none of the 2 GPUs: {remedy}", printed)
