"""A run's files are whole or absent, its published log is its live one, and only crashes are recorded."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import wait_for_lock

from zo import files as files_module
from zo.causes import TRY_AGAIN, is_out_of_memory
from zo.errors import UserError
from zo.files import hold, hold_or_exit, make_folder, read_json, try_hold, write_aside, write_json
from zo.training.crash import handle_crash
from zo.training.record import COLUMNS, Logs, RunFiles, describe_machine, list_runs

RUN = "ZO_full_bs4_q1_lr1e-05"
SPEC_COLUMNS = (
    "timestamp, epoch, step, mode, scope, q, lr, current_lr, batch_size, block_size, optimizer, bp_interval, "
    "epsilon, loss, val_loss, grad_norm, cosine, tokens, tokens_evaluated, forward_passes, backward_passes, "
    "seconds, tokens_per_second, peak_memory_mb, seed"
)


@pytest.fixture
def files(tmp_path):
    files = RunFiles(tmp_path / "results", RUN)
    files.make_folders()
    return files


def read_rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_steps(files: RunFiles, steps, lengths=None) -> dict[str, int]:
    """Log ``steps`` as a run does; the lengths after the last one."""
    logs = Logs(files, lengths)
    for step in steps:
        logs.write_row({"step": step, "loss": 1 / (step + 3)})
        logs.write_scalars(step, {"coefficients": [step + 0.1]})
    lengths = logs.lengths()
    logs.close()
    return lengths


# --- the logs ------------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_specification():
    assert ", ".join(COLUMNS) == SPEC_COLUMNS


def test_rows_read_back_with_empty_cells_where_nothing_was_said(files):
    write_steps(files, [0, 10])
    rows = read_rows(files.live_csv)
    assert [row["step"] for row in rows] == ["0", "10"]
    assert list(rows[0]) == list(COLUMNS)
    assert float(rows[1]["loss"]) == 1 / 13
    assert rows[0]["cosine"] == ""
    assert rows[0]["timestamp"].endswith("+00:00")


def test_an_unknown_column_is_an_error(files):
    with pytest.raises(ValueError, match="los"):
        Logs(files).write_row({"los": 1})


def test_each_row_is_on_disk_when_it_is_written(files):
    logs = Logs(files)
    logs.write_row({"step": 5})
    assert read_rows(files.live_csv)[-1]["step"] == "5"
    logs.close()


def test_scalars_read_back_exactly_and_steps_without_any_leave_no_line(files):
    logs = Logs(files)
    values = [0.1, 1 / 3, 1e-300, -0.0]
    logs.write_scalars(1, {"coefficients": values})
    logs.write_scalars(2, {})
    logs.close()
    (line,) = files.scalars.read_text().splitlines()
    assert json.loads(line) == {"step": 1, "coefficients": values}


def test_a_resumed_run_cuts_its_logs_back_to_the_checkpoint_and_goes_on(files):
    lengths = write_steps(files, [0, 10])
    assert lengths == {"csv": files.live_csv.stat().st_size, "scalars": files.scalars.stat().st_size}
    write_steps(files, [20, 30], lengths)  # steps after the checkpoint, which a kill makes void
    write_steps(files, [20], lengths)
    assert [row["step"] for row in read_rows(files.live_csv)] == ["0", "10", "20"]
    assert [json.loads(line)["step"] for line in files.scalars.read_text().splitlines()] == [0, 10, 20]


def test_a_run_that_starts_over_empties_its_logs_and_writes_one_header(files):
    write_steps(files, [0, 10])
    write_steps(files, [0])
    assert [row["step"] for row in read_rows(files.live_csv)] == ["0"]
    assert files.live_csv.read_text().count("timestamp") == 1


def test_the_published_log_is_the_live_one_byte_for_byte(files):
    write_steps(files, range(5))
    files.write_outcome("diverged", "loss nan at step 4", 4)
    assert files.csv.read_bytes() == files.live_csv.read_bytes()
    assert read_json(files.folder / "outcome.json") == {
        "run": RUN,
        "status": "diverged",
        "reason": "loss nan at step 4",
        "step": 4,
        "log": str(files.job_log),
        "weights_sha256": None,
    }


def test_a_run_without_a_live_log_publishes_an_empty_one(files):
    files.write_outcome("crashed", "x", 0)
    assert files.csv.read_bytes() == b""


def test_the_last_checkpoint_becomes_the_final_weights(files):
    files.checkpoints.mkdir()
    for step in ("0000010", "0000020"):
        (files.checkpoints / f"step-{step}.safetensors").write_text(step)
    files.keep_final_weights()
    assert (files.folder / "final.safetensors").read_text() == "0000020"
    assert not files.checkpoints.exists()


def test_the_manifest_names_versions_machine_and_threads():
    facts = describe_machine("cpu", 3)
    assert {"torch", "transformers", "python"} <= {name for name, v in facts["versions"].items() if v}
    assert (facts["device"], facts["threads"], facts["gpu"]) == ("cpu", 3, None)
    json.dumps(facts)


def test_the_manifest_names_the_gpu_and_what_its_noise_depends_on(tmp_path, monkeypatch):
    asked = []

    def properties(device):
        asked.append(device)
        return SimpleNamespace(name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", multi_processor_count=16)

    (tmp_path / "version").write_text("575.57.08\n")
    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    monkeypatch.setattr("torch.version.cuda", "12.9")
    monkeypatch.setattr("zo.training.record.DRIVER", tmp_path / "version")
    found = {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "multiprocessors": 16, "cuda": "12.9"}
    assert describe_machine("cuda:1", 3)["gpu"] == found | {"driver": "575.57.08"}
    (tmp_path / "version").unlink()
    assert describe_machine("cuda:1", 3)["gpu"] == found | {"driver": None}
    assert asked == 2 * ["cuda:1"]


# --- files and locks -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(step, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_aside(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(*((files_module.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="no space"):
        write_aside(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_never_touches_the_old_file_in_place(tmp_path):
    path = tmp_path / "file"
    write_aside(path, "old")
    with open(path) as reader:
        write_aside(path, b"new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_json_has_sorted_keys_and_what_cannot_be_read_is_empty(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": 2})
    assert list(read_json(path)) == ["a", "b"]
    path.write_text("{half")
    assert read_json(path) == read_json(tmp_path / "none.json") == {}


def test_a_folder_below_a_file_is_one_line_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="file/results cannot be made: Not a directory: choose another"
    ) as error:
        make_folder(tmp_path / "file" / "results")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be made: File exists"):
        make_folder(tmp_path / "file")


def test_a_folder_that_a_full_disk_has_no_room_for_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    """It may pass: the run is tried again (status 75), where a mistake is not."""

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="No space left"):
        make_folder(tmp_path / "results")


def test_folders_that_no_run_can_be_named_like_are_no_runs(tmp_path):
    for name in (".ipynb_checkpoints", "ZO_full_bs2_q2_lr1e-03 (copy)", "ZO_full_bs2_q2_lr1e-03"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert list_runs(tmp_path) == ["ZO_full_bs2_q2_lr1e-03"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_one_line_that_names_it(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be made|is not writable"):
        make_folder(tmp_path / "results")
    with pytest.raises(UserError, match="is not writable"):
        make_folder(tmp_path)


HOLD = "from zo.files import *; from pathlib import Path; import sys, time\n"
HOLD_LOCK = HOLD + "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
HOLD_FOLDER = HOLD + "hold_or_exit(sys.argv[1]); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def start(request):
    """A function: start a Python process that says 'held' and then sleeps; killed when the test ends."""

    def start(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    return start


def test_a_lock_excludes_a_second_process_until_the_first_is_killed(start, tmp_path):
    first = start(HOLD_LOCK, tmp_path / "lock")
    assert first.stdout.readline() == "held\n"
    second = start(HOLD_LOCK, tmp_path / "lock")
    wait_for_lock(second)
    os.set_blocking(second.stdout.fileno(), False)
    assert not second.stdout.readline()
    os.set_blocking(second.stdout.fileno(), True)
    first.kill()
    assert second.stdout.readline() == "held\n"


def test_a_lock_is_free_after_its_block(tmp_path):
    with hold(tmp_path / "lock"), open(tmp_path / "lock") as other:
        assert not try_hold(other)
    with open(tmp_path / "lock") as other:
        assert try_hold(other)


def test_a_file_system_without_locks_is_one_line_that_says_how_to_mount_it(tmp_path, monkeypatch):
    def refuse(file, operation):  # what Lustre says that is not mounted with flock
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files_module.fcntl, "flock", refuse)
    line = r"lock cannot be held: Function not implemented: mount its file system with flock, or take another"
    with pytest.raises(UserError, match=line), hold(tmp_path / ".lock"):
        pass
    with pytest.raises(SystemExit, match=line):
        hold_or_exit(str(tmp_path))


def test_a_held_folder_ends_a_second_process_with_one_line_until_the_first_is_killed(start, tmp_path):
    folder = str(tmp_path / "results")
    first = start(HOLD_FOLDER, folder)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(SystemExit, match=f"process {first.pid} is working on {folder}/") as error:
        hold_or_exit(folder)
    assert "\n" not in str(error.value)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(HOLD_FOLDER, folder).stdout.readline() == "held\n"


# --- crashes -------------------------------------------------------------------------------------


def crashes(files: RunFiles) -> list[str]:
    return sorted(path.name for path in files.folder.glob("crash*.json"))


def test_a_crash_on_the_last_attempt_is_recorded_and_publishes_the_partial_curve(files):
    write_steps(files, [0, 10, 20])
    files.job_log.write_text("started\nTraceback ...\nRuntimeError: boom\n\n")
    assert handle_crash(files.results, RUN, 1, last_attempt=True) == 0
    assert read_json(files.folder / "crash1.json") == {"exit_status": 1, "reason": "RuntimeError: boom"}
    outcome = read_json(files.folder / "outcome.json")
    assert (outcome["status"], outcome["step"]) == ("crashed", 20)
    assert outcome["reason"] == "exit status 1: RuntimeError: boom"
    assert files.csv.read_bytes() == files.live_csv.read_bytes()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "a\nb", "a\0b", "..", ".x", "", "a%00/..", "é", "-x", "x\n"]
)
def test_a_run_name_that_could_leave_the_results_folder_is_one_line(name, tmp_path):
    with pytest.raises(UserError, match="it names a folder") as error:
        RunFiles(tmp_path, name)
    assert "\n" not in str(error.value)


def test_a_run_name_longer_than_a_file_name_may_be_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be made: File name too long"):
        RunFiles(tmp_path, "x" * 300).make_folders()


def test_what_a_killed_write_left_is_removed_and_nothing_else(files):
    files.checkpoints.mkdir()
    kept = [
        files.folder / ".lock",
        files.folder / "spec.json",
        files.checkpoints / "step-000000001.safetensors",
    ]
    kept += [files.csv, files.csv.parent / f".{RUN}_seed1.csv.77"]  # the last one is another run's
    left = [files.folder / ".outcome.json.4711", files.checkpoints / ".step-000000002.safetensors.4711"]
    left += [files.csv.parent / f".{RUN}.csv.4711"]
    for path in kept + left:
        path.touch()
    files.remove_leftovers()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)


def test_a_crash_before_any_file_was_written_is_recorded_too(tmp_path):
    files = RunFiles(tmp_path, RUN)
    assert handle_crash(tmp_path, RUN, 3, last_attempt=True) == 0
    assert read_json(files.folder / "outcome.json")["reason"] == "exit status 3: the log is empty"
    assert files.csv.read_bytes() == b""


def test_crashes_are_numbered_so_that_each_one_is_another_input(files):
    for count in range(1, 4):
        handle_crash(files.results, RUN, 1, last_attempt=True)
        assert crashes(files) == [f"crash{n}.json" for n in range(1, count + 1)]


@pytest.mark.parametrize("status", [129, 130, 137, 143])
def test_a_kill_is_passed_on_and_never_recorded(status, files):
    for last_attempt in (False, True):
        assert handle_crash(files.results, RUN, status, last_attempt) == status
    assert crashes(files) == []
    assert not files.csv.exists()


@pytest.mark.parametrize("status", [1, 2, 134, 139])
def test_a_bug_is_recorded_at_once_for_another_attempt_would_meet_it_again(status, files):
    assert handle_crash(files.results, RUN, status, last_attempt=False) == 0
    assert crashes(files) == ["crash1.json"]


def test_a_failure_of_the_machine_is_recorded_on_the_last_attempt_alone(files):
    assert handle_crash(files.results, RUN, TRY_AGAIN, last_attempt=False) == TRY_AGAIN
    assert crashes(files) == []
    assert handle_crash(files.results, RUN, TRY_AGAIN, last_attempt=True) == 0
    assert crashes(files) == ["crash1.json"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (134, "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc"),
        (127, "cannot allocate memory for thread-local data: ABORT"),
    ],
)
def test_an_abort_for_lack_of_memory_is_a_failure_of_the_machine_too(files, status, words):
    files.job_log.write_text(f"{words}\n")
    assert handle_crash(files.results, RUN, status, last_attempt=False) == status
    assert crashes(files) == []
    assert handle_crash(files.results, RUN, status, last_attempt=True) == 0


def test_what_kept_a_library_from_loading_is_the_reason_and_a_users_mistake_never_is():
    """As llvmlite says it: the loader's words are the error's cause."""
    wrapped = OSError("Could not find/load shared object file")
    wrapped.__cause__ = OSError("libllvm.so: failed to map segment from shared object")
    assert is_out_of_memory(wrapped)
    refused = UserError("out of memory with one sequence at a time")
    refused.__context__ = MemoryError()
    assert not is_out_of_memory(refused)


def test_a_gpu_too_full_for_cublas_to_start_is_out_of_memory():
    words = "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))


@pytest.mark.parametrize("status", [1, TRY_AGAIN])
def test_a_crash_outside_the_grid_is_never_recorded_for_no_summary_would_list_it(status, files):
    assert handle_crash(files.results, RUN, status, last_attempt=True, record=False) == status
    assert crashes(files) == []


def test_half_a_row_at_the_end_of_the_log_is_not_taken_for_a_step(files):
    write_steps(files, [0, 120])
    with open(files.live_csv, "a") as log:
        log.write("2026-01-01T00:00:00+00:00,0.5,1")  # of 130
    handle_crash(files.results, RUN, 1, last_attempt=True)
    assert read_json(files.folder / "outcome.json")["step"] == 120


def test_half_a_row_at_the_end_of_the_log_is_not_published(files):
    """A full disk takes the first half of a row, and then refuses."""
    write_steps(files, [0, 120])
    whole = files.live_csv.read_bytes()
    files.live_csv.write_bytes(whole + b"2026-01-01T00:00:00+00:00,0.5,1")
    files.write_outcome("crashed", "exit status 75: No space left on device", step=120)
    assert files.csv.read_bytes() == whole


def test_a_log_that_is_no_utf8_still_gives_a_reason(files):
    files.job_log.write_bytes(b"\xff\xfe broke\n")
    handle_crash(files.results, RUN, 1, last_attempt=True)
    assert "broke" in read_json(files.folder / "crash1.json")["reason"]
