"""GPU slots, with pretended ids: a process that trains holds its own, and nobody else's."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import killed_at_end

from zo.errors import UserError
from zo.sweep import gpus
from zo.sweep.gpus import choose_gpus, lack_of_gpus, take_gpus, unlisted_gpus, visible_gpus

TAKE = "import sys, time; from zo.sweep.gpus import take_gpus\n"
TAKE_NOW = TAKE + "print(*take_gpus(1, patience=0))"
TAKE_AND_SLEEP = TAKE + "print(','.join(take_gpus(int(sys.argv[1]))), flush=True); time.sleep(60)"

WAIT_AND_TAKE = """
import time
from types import SimpleNamespace
from zo.sweep import gpus

def sleep(seconds):
    print("waiting", flush=True)
    time.sleep(seconds)

gpus.time = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
print(*gpus.take_gpus(1), flush=True)
time.sleep(60)
"""

# 200 forked processes, 16 at a time. Each marks its ids with files that must not exist yet: a proof that
# does not lean on the locks. Polls are shortened, or the test would mostly sleep.
CROWD = """
import glob, os, random, sys, time
from types import SimpleNamespace
from zo.sweep import gpus
real_sleep, SLOTS = time.sleep, int(os.environ[gpus.SLOTS])
gpus.time = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: real_sleep(0.002))

def job(number):
    count = 1 + (number % 3 == 0)
    taken = gpus.take_gpus(count)
    assert len(set(taken)) == len(taken) == count, taken
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(taken)
    who = "alone" if SLOTS == 1 else number
    marks = [os.path.join(sys.argv[1], f"in-use-{name}-{who}") for name in taken]
    for mark in marks:  # with SLOTS jobs a GPU, the last to come sees all that are there with it
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        assert len(glob.glob(mark.rpartition("-")[0] + "-*")) <= SLOTS, mark
    real_sleep(random.Random(number).uniform(0, 0.02))
    for mark in marks:
        os.unlink(mark)
    with open(os.path.join(sys.argv[1], "used"), "a") as log:
        log.write("\\n".join(taken) + "\\n")

running, failed = set(), 0
for number in range(200):
    if len(running) == 16:
        pid, status = os.wait()
        running.discard(pid)
        failed += status != 0
    if (pid := os.fork()) == 0:
        try:
            job(number)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    running.add(pid)
failed += sum(os.wait()[1] != 0 for _ in list(running))
sys.exit(failed > 0)
"""


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("ZO_GPU_LOCKS", str(tmp_path))
    monkeypatch.delenv(gpus.SLOTS, raising=False)
    monkeypatch.setattr(gpus, "_held", [])  # what the test itself takes is free again after it


@pytest.fixture
def start(request):
    """A function: start a process that takes GPUs, says which, and sleeps; killed when the test ends."""

    def start(count):
        command = [sys.executable, "-c", TAKE_AND_SLEEP, str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process, process.stdout.readline().strip().split(",")

    return start


@pytest.mark.parametrize("slots", [1, 2])
def test_among_200_processes_no_slot_is_ever_held_twice_and_all_are_used(slots, tmp_path, monkeypatch):
    monkeypatch.setenv(gpus.SLOTS, str(slots))
    done = subprocess.run(
        [sys.executable, "-c", CROWD, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    used = (tmp_path / "used").read_text().split()
    assert len(used) == 200 + 67
    assert set(used) == {"0", "1", "2", "3"}


def test_a_job_of_two_gets_two_different_gpus_and_sees_only_those(start):
    _, taken = start(1)
    own = take_gpus(2)
    assert len({*own, *taken}) == 3
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(own)
    assert visible_gpus() == own


def test_sigkill_frees_the_gpus_at_once(start):
    process, taken = start(4)
    assert sorted(taken) == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="none of 0, 1, 2, 3 became free within 0 s"):
        take_gpus(1, patience=0)
    process.kill()
    process.wait()
    assert len(take_gpus(4, patience=0)) == 4


def test_a_job_that_cannot_have_all_its_gpus_holds_none_while_it_waits(start, monkeypatch):
    """Another process takes the last one between two looks of it, at its own clock."""
    _, taken = start(3)
    found = []

    def sleep(_):
        done = subprocess.run([sys.executable, "-c", TAKE_NOW], capture_output=True, text=True)
        found.append(done.stdout.strip())

    monkeypatch.setattr(gpus, "time", SimpleNamespace(monotonic=lambda: len(found), sleep=sleep))
    with pytest.raises(UserError, match="became free"):
        take_gpus(2, patience=0.5)
    assert [*taken, *found] == ["0", "1", "2", "3"]


def test_a_waiting_job_gets_the_gpu_that_becomes_free(start):
    process, taken = start(4)
    command = [sys.executable, "-c", WAIT_AND_TAKE]
    with killed_at_end(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as waiting:
        assert waiting.stdout.readline() == "waiting\n"
        process.kill()
        assert next(line for line in waiting.stdout if line != "waiting\n").strip() in taken


def test_more_than_there_are_is_an_error_that_names_them():
    with pytest.raises(UserError, match=r"gpus: 5 asked for, but this machine shows 4: 0, 1, 2, 3"):
        take_gpus(5)
    with pytest.raises(UserError, match=r"gpus: -1 is not allowed"):
        take_gpus(-1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@pytest.mark.parametrize(("visible", "count"), [("0,1", 0), ("", 0), ("", 2), ("-1", 1), ("none", 1)])
def test_a_count_of_0_or_a_machine_without_gpus_means_the_cpu(visible, count, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert take_gpus(count) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not list(tmp_path.rglob("gpu-*"))


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("0,1", ["0", "1"]),
        (" 3 , 1 ", ["3", "1"]),
        ("0,0,1", ["0", "1"]),
        ("GPU-8ab/x", ["GPU-8ab/x"]),
        ("", []),
    ],
)
def test_the_ids_are_those_of_cuda_visible_devices(given, ids, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == ids
    assert take_gpus(len(ids)) == ids


def test_jobs_that_share_spread_out_first_and_then_fill_every_slot(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv(gpus.SLOTS, "2")
    taken = [start(1)[1] for _ in range(4)]
    assert sorted(taken[:2]) == sorted(taken[2:]) == [["0"], ["1"]]
    with pytest.raises(UserError, match="became free"):
        take_gpus(1, patience=0)


def test_two_slots_of_one_gpu_are_no_two_gpus(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv(gpus.SLOTS, "2")
    (first, _), (_, second) = start(1), start(1)
    third = start(1)[1]
    assert [second, third] == [["1"], ["0"]]  # GPU 0 is full, GPU 1 has a slot left
    with pytest.raises(UserError, match="became free"):
        take_gpus(2, patience=0)
    first.kill()
    first.wait()
    assert take_gpus(2, patience=1) == ["0", "1"]


@pytest.mark.parametrize(("before", "after"), [("1", "2"), ("2", "1")])
def test_a_sweep_that_shares_its_gpus_keeps_off_one_that_does_not(before, after, start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv(gpus.SLOTS, before)
    start(1)
    monkeypatch.setenv(gpus.SLOTS, after)
    with pytest.raises(UserError, match="became free"):
        take_gpus(1, patience=0)


@pytest.mark.parametrize("text", ["0", "two", "-1", ""])
def test_a_bad_number_of_slots_is_an_error_that_names_it(text, monkeypatch):
    monkeypatch.setenv(gpus.SLOTS, text)
    with pytest.raises(UserError, match=f"ZO_JOBS_PER_GPU: {text!r} is not allowed"):
        take_gpus(1)


def test_another_user_opens_the_same_locks(tmp_path):
    take_gpus(1)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert (folder / "gpu-0").stat().st_mode & 0o777 == 0o644


def test_a_planted_link_is_refused_not_followed(tmp_path):
    folder = tmp_path / "zo-gpus-local"
    folder.mkdir()
    (folder / "gpu-0").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        take_gpus(1)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("wanted", "visible", "ids"),
    [
        ("auto", "0,1", ["0", "1"]),
        ("auto", None, []),
        ("none", "0,1", []),
        (("1", "0"), "0,1,2", ["1", "0"]),
        (("0", "2"), "", []),
        (("MIG-7a",), "MIG-7a,MIG-7b", ["MIG-7a"]),
    ],
)
def test_a_study_chooses_among_the_visible_ones(wanted, visible, ids, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_gpus(wanted, environment) == ids


def test_a_gpu_that_is_not_visible_is_an_error_that_names_it():
    with pytest.raises(UserError, match="gpus: '7' is not among the visible ones: 0, 1"):
        choose_gpus(("0", "7"), {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_a_gpu_asked_for_where_there_is_none_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="gpus: '0' is asked for, but nvidia-smi shows no GPU here") as said:
        choose_gpus(("0", "2"), {})
    assert "CUDA_VISIBLE_DEVICES=0,2" in str(said.value)


MACHINE = """#!/bin/sh
echo 'GPU 0: NVIDIA A100 (UUID: GPU-aa11)'
echo '  MIG 1g.5gb     Device  0: (UUID: MIG-x1)'
echo '  MIG 1g.5gb     Device  1: (UUID: MIG-x2)'
echo 'GPU 1: NVIDIA A100 (UUID: GPU-bb22)'
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of two GPUs, the first one split in two."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(MACHINE)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_split_gpu_is_listed_as_its_parts(machine, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["MIG-x1", "MIG-x2", "1"]


def test_numbers_that_the_machine_does_not_list_are_found(machine, monkeypatch, tmp_path):
    assert unlisted_gpus(["0", "7", "1", "GPU-zz", "MIG-x1"]) == ["7"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert unlisted_gpus(["7"]) == []


@pytest.mark.parametrize("name", ["GPU-bb22", "GPU-bb"])
def test_a_uuid_and_a_number_are_one_gpu(name, machine, start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    assert start(1)[1] == [name]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UserError, match="became free"):
        take_gpus(1, patience=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa11")
    assert take_gpus(1, patience=0) == ["GPU-aa11"]


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        (
            "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'; echo '  MIG 1g'; echo 'GPU 1: NVIDIA H100'",
            "0 1",
        ),
        ("echo failed; exit 9", ""),
        (None, ""),
    ],
)
def test_without_it_they_are_what_nvidia_smi_lists_or_none(script, ids, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if script:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ids.split()


@pytest.mark.parametrize(
    ("each", "ranks", "there", "words"),
    [
        (2, 2, 4, None),
        (0, 9, 0, None),
        (3, 1, 2, "gpus_per_run is 3, but there are 2"),
        (1, 4, 2, "gpus_per_run is 1 for each of 4 ranks, but there are 2"),
    ],
)
def test_a_run_that_takes_more_gpus_than_there_are_is_told_in_words(each, ranks, there, words):
    assert lack_of_gpus(each, ranks, there) == words
