"""Pack: the same bytes for the same files, nothing from elsewhere, the same summary where it is unpacked."""

import os
import re
import shutil
import socket
import tarfile
from pathlib import Path

import pytest
from made_runs import write_beside, write_crash, write_run

from zo.cli import main
from zo.errors import UserError
from zo.files import write_json
from zo.sweep.archive import list_members, pack


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """A study of two runs that ended, one that crashed, and another study's folder inside."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results")
    for q in (1, 8):
        run = write_run(folder / "csv_logs", "ZO", q=q, lr=1e-4, spec={"mode": "ZO"})
        outcome = {"run": run, "status": "done", "reason": None, "log": f"results/job_logs/{run}.log"}
        write_beside(folder / "csv_logs", run, "outcome.json", outcome)
        (folder / "runs" / run / "final.safetensors").write_bytes(b"weights")
        (folder / "runs" / run / "scalars.jsonl").write_text('{"step": 1}\n')
        (folder / "runs" / run / ".lock").touch()
        (folder / "runs" / run / "checkpoints").mkdir()
        (folder / "runs" / run / "checkpoints" / "step-000000004.safetensors").write_bytes(b"more")
    write_crash(folder / "csv_logs", "ZO_full_bs4_q8_lr1e-02", ["Traceback", "boom"])
    (folder / "cache" / "c").mkdir(parents=True)
    (folder / "cache" / "c" / "train.bin").write_bytes(b"tokens")
    (folder / "cache" / "c" / "meta.json").write_text("{}")
    write_run(folder / "quick" / "csv_logs", "FO", q=0)
    (folder / "sweep.log").write_text("2026 sweep started\n")
    main(["analyze", "results/csv_logs"])
    main(["plot", "results/csv_logs", "--per-run"])
    return folder


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_an_archive_holds_a_study_whole_without_weights_caches_locks_or_other_studies(results):
    count, size = pack(results, Path("a.tar.gz"))
    packed = names(Path("a.tar.gz"))
    assert (len(packed), Path("a.tar.gz").stat().st_size) == (count, size)
    assert packed == sorted(packed)
    run = "results/runs/ZO_reduced_bs4_q8_lr1e-04"
    expected = {"results/summary.csv", "results/summary.txt", "results/sweep.log", f"{run}/spec.json"}
    expected |= {f"{run}/scalars.jsonl", f"{run}/outcome.json", "results/cache/c/meta.json"}
    expected |= {"results/csv_logs/ZO_reduced_bs4_q8_lr1e-04.csv", "results/plots/loss_vs_steps.png"}
    expected |= {"results/plots/runs/ZO_reduced_bs4_q8_lr1e-04.png"}
    expected |= {"results/job_logs/ZO_full_bs4_q8_lr1e-02.log"}
    assert expected <= set(packed)
    assert not [n for n in packed if "quick" in n or n.endswith((".safetensors", ".bin", ".lock"))]


def test_checkpoints_are_packed_on_request(results):
    pack(results, Path("a.tar.gz"), checkpoints=True)
    packed = [Path(name).name for name in names(Path("a.tar.gz"))]
    assert packed.count("final.safetensors") == packed.count("step-000000004.safetensors") == 2


def test_the_same_files_give_the_same_bytes_whenever_and_by_whomever_they_were_written(results):
    pack(results, Path("a.tar.gz"))
    for path in results.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
            path.chmod(0o600)
    pack(results, Path("b.tar.gz"))
    assert Path("a.tar.gz").read_bytes() == Path("b.tar.gz").read_bytes()
    with tarfile.open("a.tar.gz") as tar:
        assert {(m.uid, m.gid, m.uname, m.mode) for m in tar.getmembers()} == {(0, 0, "", 0o644)}


def test_unpacked_elsewhere_it_gives_the_same_summary_and_the_same_figures(results, tmp_path, monkeypatch):
    pack(results, Path("a.tar.gz"))
    before = {name: (results / name).read_bytes() for name in ("summary.csv", "summary.txt")}
    figures = {path.name for path in (results / "plots").glob("*.png")}
    elsewhere = tmp_path / "elsewhere"
    shutil.unpack_archive("a.tar.gz", elsewhere)
    monkeypatch.chdir(elsewhere)
    for name in before:
        (results / name).unlink()
    assert main(["analyze", "results/csv_logs"]) == 0
    assert main(["plot", "results/csv_logs", "--out", "again"]) == 0
    assert {name: (results / name).read_bytes() for name in before} == before
    assert {path.name for path in Path("again").glob("*.png")} == figures


def test_what_is_no_regular_file_of_the_study_is_left_out(results, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "spec.json").write_text("{}")
    before = list_members(results, checkpoints=True)
    (results / "runs" / "link").symlink_to(tmp_path / "secret")
    (results / "csv_logs" / "link.csv").symlink_to(tmp_path / "secret" / "spec.json")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("results/job_logs/s.log")
        assert list_members(results, checkpoints=True) == before


def test_a_failed_pack_leaves_the_old_archive_and_no_other_file(results):
    out = Path("a.tar.gz")
    pack(results, out)
    old, before = out.read_bytes(), set(Path().iterdir())
    victim = results / "csv_logs" / "ZO_reduced_bs4_q8_lr1e-04.csv"
    victim.unlink()
    os.mkfifo(results / "csv_logs" / "pipe.csv")  # no regular file: left out, and not waited for
    pack(results, Path("b.tar.gz"))
    Path("b.tar.gz").unlink()
    with pytest.raises(UserError, match=r"none/a\.tar\.gz cannot be written: No such file"):
        pack(results, Path("none/a.tar.gz"))
    assert out.read_bytes() == old
    assert set(Path().iterdir()) == before


def test_an_absolute_folder_is_packed_under_its_own_name(results):
    pack(results.resolve(), Path("a.tar.gz"))
    pack(Path("../" + results.resolve().parent.name) / results, Path("b.tar.gz"))
    assert {Path(name).parts[0] for name in names(Path("a.tar.gz"))} == {"results"}
    assert Path("a.tar.gz").read_bytes() == Path("b.tar.gz").read_bytes()


@pytest.mark.parametrize(("folder", "out"), [("results/quick/csv_logs", "a.tar.gz"), ("results", "a.zip")])
def test_a_wrong_folder_or_name_is_one_line(results, folder, out, capsys):
    capsys.readouterr()
    assert main(["pack", folder, "--out", out]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "give the results folder" in line or "must end in .tar.gz" in line
    assert not Path(out).exists()


def test_a_study_without_json_beside_it_packs_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("r/csv_logs"), "ZO")
    write_json(Path("r/sweep.json"), {})
    assert pack(Path("r"), Path("a.tar.gz"))[0] == 2


NOT_PACKED = ("train.bin", "validation.bin", "timings.json", "tokenizer.json", "tokenizer_config.json")
NOT_PACKED += ("attempt.log", "compiled", ".complete", ".lock", ".<cache>.lock")


def test_every_file_of_a_study_is_packed_but_those_that_its_page_names(tmp_path):
    page = (Path(__file__).parents[3] / "docs/results-format.md").read_text()
    rows = re.search(r"## Files\n(.*?)\n## ", page, re.S)[1].splitlines()
    told = {
        name for row in rows if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    expected = set()
    for name in told:
        path = tmp_path / re.sub(r"<(\w+)>", r"\1", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
        if Path(name).name not in NOT_PACKED:
            expected.add(path.relative_to(tmp_path))
    assert len(expected) > 30
    assert set(list_members(tmp_path, checkpoints=True)) == expected
    without = {path for path in expected if path.suffix != ".safetensors"}
    assert set(list_members(tmp_path, checkpoints=False)) == without
