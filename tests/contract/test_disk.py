"""A disk that is full costs the steps since the last checkpoint and says so in one line."""

import os
import resource
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet
from small_runs import everything, run_zo, small_spec, train_command, write_corpus

from zo.causes import TRY_AGAIN
from zo.data.corpus import DATASETS
from zo.training.record import RunFiles

SMALL_DISK = """
set -e
mount -t tmpfs -o size=2500k none "$1"
mkdir "$2"
ln -s "$3" "$1/cache"
shift 3
"$@" 2> "$OUT/said" || echo $? > "$OUT/status"
find "$DISK/runs" -type f > "$OUT/left"
mount -o remount,size=64m "$DISK"
"$@"
cp -r "$DISK/." "$OUT/results"
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def calm(corpus, tmp_path_factory):
    """Spec and results of a run that had room; its checkpoints take about 1 MB each."""
    spec, results = small_spec(corpus, "ZO", optimizer="adam"), tmp_path_factory.mktemp("calm")
    assert run_zo(*train_command(spec, results)[3:]).returncode == 0
    return spec, results


def skip_without_namespaces() -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here: a small disk cannot be made")


def check_words(said: str, status: int) -> None:
    assert status == TRY_AGAIN
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if "stopped: " in line]
    assert line.endswith("another attempt goes on from the last checkpoint")
    assert "step-00000000" in line


def test_a_full_disk_keeps_the_checkpoints_before_and_the_run_goes_on_when_there_is_room(calm, tmp_path):
    spec, results = calm
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    words = [
        "sh",
        "-c",
        SMALL_DISK,
        "sh",
        disk,
        out / "results",
        results / "cache",
        *train_command(spec, disk),
    ]
    skip_without_namespaces()
    environment = {"OUT": str(out), "DISK": str(disk)}
    done = subprocess.run(
        ["unshare", "-rm", "env", *(f"{k}={v}" for k, v in environment.items()), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = (out / "said").read_text()
    check_words(said, int((out / "status").read_text()))
    assert "No space left on device" in said
    left = sorted(line.rsplit("/", 1)[1] for line in (out / "left").read_text().splitlines())
    assert [name for name in left if "step-" in name] == [
        "step-000000002.safetensors",
        "step-000000004.safetensors",
    ]
    assert "resumed at step 4" in done.stderr
    assert everything(out / "results", spec.name) == everything(results, spec.name)


FULL_DISK = """
set -e
mount -t tmpfs -o size=4k none "$1"
echo taken > "$1/file"
exec "$2" -c 'from zo.files import hold_or_exit; hold_or_exit("'"$1"'/tiny")'
"""


def test_a_results_folder_on_a_full_disk_is_one_line_when_a_sweep_takes_its_lock(tmp_path):
    skip_without_namespaces()
    command = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"Error: {tmp_path}/tiny/.lock cannot be held: No space left on device")


TINY_DISK = """
set -e
mount -t tmpfs -o "$1" none "$2"
shift 2
exec "$@"
"""


def run_on_tiny_disk(disk, options, *words, **environment):
    """`python -m zo` with a small disk mounted at ``disk``: its exit status and its last line."""
    skip_without_namespaces()
    disk.mkdir()
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        TINY_DISK,
        "sh",
        options,
        disk,
        sys.executable,
        "-m",
        "zo",
        *words,
    ]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


NO_ROOM = "No space left on device"


def test_a_cache_that_a_full_disk_has_no_room_for_is_one_line(corpus, tmp_path):
    words = ["cache", "--dataset", corpus, "--tokenizer", "bytes", "--results", tmp_path / "disk"]
    status, line = run_on_tiny_disk(tmp_path / "disk", "size=12k", *words)
    assert (status, line.startswith("zo cache: "), NO_ROOM in line) == (TRY_AGAIN, True, True)


def test_a_download_that_a_full_disk_has_no_room_for_is_no_lack_of_network(tmp_path):
    """`datasets` says no more than that an error occurred."""
    repo = tmp_path / "hub" / DATASETS["cosmopedia-100k"].repo / "data"
    repo.mkdir(parents=True)
    texts = [f"{i} " * 3000 for i in range(40)]
    parquet.write_table(pyarrow.table({"text": texts}), repo / "train-00000-of-00001.parquet")
    words = [
        "cache",
        "--dataset",
        "cosmopedia-100k",
        "--tokenizer",
        "bytes",
        "--results",
        tmp_path / "results",
    ]
    places = {"ZO_HUB_ROOT": tmp_path / "hub", "HF_DATASETS_CACHE": tmp_path / "disk"}
    places = {key: str(path) for key, path in places.items()}
    status, line = run_on_tiny_disk(tmp_path / "disk", "size=100k", *words, **places)
    assert (status, line.startswith(f"zo cache: [Errno 28] {NO_ROOM}: make room")) == (TRY_AGAIN, True)


def test_a_run_that_a_full_disk_has_no_room_to_begin_is_one_line(corpus, tmp_path):
    words = train_command(small_spec(corpus, "ZO"), tmp_path / "disk")[3:]
    status, line = run_on_tiny_disk(tmp_path / "disk", "nr_inodes=3", *words)
    assert (status, line.startswith("zo train: "), NO_ROOM in line) == (TRY_AGAIN, True, True)


def test_a_file_size_limit_is_a_failure_of_the_machine_too(calm, tmp_path):
    """As a quota is."""
    spec, results = calm
    (tmp_path / "cache").symlink_to(results / "cache")
    done = subprocess.run(
        train_command(spec, tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    check_words(done.stderr, done.returncode)
    assert list(RunFiles(tmp_path, spec.name).checkpoints.iterdir()) == []
