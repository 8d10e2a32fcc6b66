"""What a job records of itself, and a log that many processes append to."""

import json
import multiprocessing
import os
import platform
import re

import pytest

from zo.training.job import append_event, recorded_job
from zo.training.record import RunFiles

WRITERS, LINES = 8, 200


@pytest.fixture
def files(tmp_path) -> RunFiles:
    files = RunFiles(tmp_path, "ZO_full_bs2_q2_lr1e-03")
    files.make_folders()
    return files


def read_job(files) -> dict:
    return json.loads((files.folder / "job.json").read_text())


def events(results) -> list[str]:
    """The log's lines without their times."""
    return [line.split(" ", 1)[1] for line in (results / "sweep.log").read_text().splitlines()]


def write_lines(results, writer):
    for number in range(LINES):
        append_event(results, f"{writer} {number} " + "x" * (1 + number % 90))


def test_lines_of_many_processes_stay_whole_and_in_each_ones_order(tmp_path):
    start = multiprocessing.get_context("fork").Process
    writers = [start(target=write_lines, args=(tmp_path, writer)) for writer in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [line.split(" ") for line in events(tmp_path)]
    assert len(lines) == WRITERS * LINES
    assert all(x == "x" * (1 + int(number) % 90) for _, number, x in lines)
    for writer in range(WRITERS):
        assert [int(number) for who, number, _ in lines if int(who) == writer] == list(range(LINES))


def test_an_event_is_one_line_whatever_its_text_holds(tmp_path):
    append_event(tmp_path, "run failed: a\nTraceback\r\n  b " + "y" * 5000)
    append_event(tmp_path, "next")
    first, second = events(tmp_path)
    assert first.startswith("run failed: a Traceback b yyy")
    assert len(first) < 2000
    assert second == "next"


def test_a_log_that_cannot_be_written_costs_no_run(tmp_path):
    append_event(tmp_path / "none", "text")
    (tmp_path / "sweep.log").mkdir()
    append_event(tmp_path, "text")
    assert not (tmp_path / "none").exists()
    assert list((tmp_path / "sweep.log").iterdir()) == []


def test_a_job_says_who_runs_it_where_and_for_the_which_time(files, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with recorded_job(files):
        job = read_job(files)
    assert (job["pid"], job["host"], job["gpus"]) == (os.getpid(), platform.node(), "2,3")
    assert (job["slurm_job_id"], job["attempt"]) == ("4711", 1)
    monkeypatch.delenv("SLURM_JOB_ID")
    with recorded_job(files):
        assert read_job(files)["attempt"] == 2
        assert read_job(files)["slurm_job_id"] is None
    first, second = events(files.results)
    assert "GPU 2,3, Slurm job 4711" in first
    assert "(attempt 2, " in second
    assert "Slurm" not in second


def test_how_a_run_left_is_in_the_sweeps_log(files):
    with recorded_job(files):
        files.write_outcome("done", None, 7)
    for error in (RuntimeError("boom\nand more"), SystemExit(143)):
        with pytest.raises(type(error)), recorded_job(files):
            raise error
    files.write_outcome("crashed", "exit status 1: boom", 3)
    ends = [line for line in events(files.results) if not line.startswith("run started")]
    ends = [re.sub(r"after \d+ s", "after N s", line) for line in ends]
    assert ends == [
        f"run done: {files.run} at step 7 after N s",
        f"run failed: {files.run} after N s: RuntimeError: boom and more",
        f"run stopped: {files.run} after N s: exit status 143",
        f"run crashed: {files.run} at step 3 after N s: exit status 1: boom",
    ]
