"""What a job asks of torch and the machine: its threads, fp32 as fp32, compile caches of its own."""

import os
import subprocess
import sys
import time

import psutil
import pytest

RUN = "ZO_full_bs8_q2_lr1e-03_size1M"


def command(folder, threads, steps=100):
    (folder / "text.txt").write_text("\n\n".join(f"Verse {i} of {i * i}, and so on." for i in range(900)))
    words = "train --mode ZO --scope full --query-budget-q 2 --learning-rate 1e-3 --model-size 1M"
    words += f" --max-steps {steps} --dataset text.txt --tokenizer bytes --threads {threads}"
    return words.split()


def start(folder, threads):
    unset = {key: value for key, value in os.environ.items() if "THREADS" not in key}
    return subprocess.Popen([sys.executable, "-m", "zo", *command(folder, threads)], cwd=folder, env=unset)


def test_a_run_imports_nothing_heavy_that_it_does_not_need(tmp_path):
    code = "import sys; from zo.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    ran = [sys.executable, "-c", code, *command(tmp_path, 1, steps=1)]
    loaded = subprocess.run(ran, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"pandas", "datasets", "matplotlib", "pyarrow", "snakemake"} & set(loaded)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_real_job_keeps_as_many_threads_busy_as_it_was_given(threads, tmp_path):
    """Busy: at least a fifth of the CPU time of the busiest thread, from when the run has its model."""
    process = start(tmp_path, threads)
    watched, before, seconds = psutil.Process(process.pid), {}, {}
    manifest = tmp_path / "results" / "runs" / RUN / "manifest.json"
    while process.poll() is None:
        try:
            seconds |= {thread.id: thread.user_time for thread in watched.threads()}
        except psutil.Error:
            break
        if not manifest.exists():
            before = dict(seconds)
        time.sleep(0.02)
    assert process.wait() == 0
    gained = {thread: total - before.get(thread, 0) for thread, total in seconds.items()}
    busy = [thread for thread, time in gained.items() if time > max(gained.values()) / 5]
    assert len(busy) == threads, gained
    assert (tmp_path / "results" / "csv_logs" / f"{RUN}.csv").is_file()


PRECISION = """
import sys, torch
from zo.cli import main
before = torch.get_float32_matmul_precision()
main(sys.argv[1:])
print(before, torch.get_float32_matmul_precision())
"""


def read_precision(folder, *words):
    """Of fp32 products in a process, before and after a command, where NVIDIA's containers ask for TF32."""
    asked = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    ran = [sys.executable, "-c", PRECISION, *words]
    done = subprocess.run(ran, cwd=folder, env=asked, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_fp32_products_are_computed_in_fp32_also_in_nvidias_containers(tmp_path):
    """Of a run, its replay and its probe: TF32 would leave 10 bits of what ZO takes differences of."""
    run = f"results/runs/{RUN}"
    commands = [
        command(tmp_path, 1, steps=1),
        ["replay", run],
        ["probe", run, "--queries", "1", "--batches", "1"],
    ]
    assert [read_precision(tmp_path, *words) for words in commands] == [["high", "highest"]] * 3


def test_every_job_compiles_into_its_own_folder(tmp_path, monkeypatch):
    from zo.cli.training import _own_compile_caches

    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/of/the/user")
    _own_compile_caches(tmp_path / "runs" / "a")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "runs" / "a" / "compiled" / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/of/the/user"
