"""README and docs/ say nothing that the code does not: commands, names, columns, files, links, examples."""

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zo.cli import _hyphens, build_parser
from zo.cli.training import read_spec
from zo.errors import UserError
from zo.methods import METHODS
from zo.planning.footprint import memory_bytes
from zo.spec import RunSpec
from zo.study import load_study, read_study
from zo.sweep.start import study_of
from zo.sweep.sweep_record import begin_sweep
from zo.training.record import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = {"block_size": 16, "batch_size": 2, "tokenizer": "bytes", "max_steps": 4, "validation_interval": 2}
SNAKEMAKE = "import sys; from snakemake.cli import main; main(sys.argv[1:])"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def name_page(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line of every bash block."""
    found = []
    for page in map(name_page, PAGES):
        lines = "\n".join(code_blocks(page, "bash")).splitlines()
        found += [(page, line) for line in lines if shlex.split(line, comments=True)]
    return found


@pytest.fixture
def sign_zo():
    """The method that docs/add-a-method.md adds, for one test."""
    known = dict(METHODS)
    scope: dict = {"__name__": "example"}
    exec(code_blocks("docs/add-a-method.md", "python")[0], scope)
    yield scope["SignZO"]
    METHODS.clear()
    METHODS.update(known)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(f"Part {i}. " + "To be or not to be. " * 8 for i in range(40)))
    return str(path)


# --- README --------------------------------------------------------------------------------------


def test_the_readme_is_short_and_begins_with_a_result_and_two_commands():
    lines = read("README.md").splitlines()
    assert len(lines) < 150
    picture = next(i for i, line in enumerate(lines) if line.startswith("!["))
    assert picture < 10
    for command in ("make sweep", "make test"):
        assert any(line.startswith(command) for line in lines[:35]), command
    assert (ROOT / "docs/images/claims.png").stat().st_size < 150_000


def test_the_runs_in_the_readmes_table_are_the_claims_studys():
    table = [line for line in read("README.md").splitlines() if line.startswith(("| full |", "| reduced |"))]
    named = [line.split("|")[2].split("`")[1] for line in table]
    study = read_study(ROOT / "workflow/studies/claims.yaml")
    assert named
    assert set(named) <= set(study.runs)
    assert all(f"_{line.split('|')[1].strip()}_" in run for line, run in zip(table, named, strict=True))
    spec, seeds = study.runs["ZO_full_bs4_q1_lr1e-03_archllama"], {run.seed for run in study.runs.values()}
    assert len(seeds) == 4
    said = f"n = 4 seeds, a Llama of {spec.model_size} parameters, plain SGD, {spec.max_forwards:g} forward "
    said += f"passes of {spec.batch_size} x {spec.block_size} tokens a run"
    assert said in " ".join(read("README.md").split())
    assert (spec.architecture, spec.optimizer, spec.dataset) == ("llama", "sgd", "shakespeare")


def test_the_repositorys_table_names_what_exists_and_every_package():
    section = read("README.md").split("## What is in the repository")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    told = set()
    for _, paths, text, _ in rows:
        folders = re.findall(r"`([^`]+)`", paths)
        assert [path for path in folders if not (ROOT / path).exists()] == []
        modules = re.findall(r"`(\w+\.py)`", text)
        known = [path.name for folder in folders for path in (ROOT / folder).glob("*.py")]
        assert [name for name in modules if name not in known] == []
        told.update(folders)
    packages = {f"zo/{path.parent.name}/" for path in ROOT.glob("zo/*/__init__.py")}
    assert packages <= told


def test_the_library_example_runs_and_moves_the_parameters():
    [example] = code_blocks("README.md", "python")
    scope: dict = {"__name__": "example"}
    exec(example, scope)
    assert math.isfinite(scope["loss"])
    assert all(grad.shape == p.shape for grad, p in zip(scope["grads"], scope["parameters"], strict=True))
    assert all(torch.isfinite(p).all() for p in scope["parameters"])
    assert any(grad.abs().sum() > 0 for grad in scope["grads"])


# --- commands ------------------------------------------------------------------------------------


def test_there_are_commands_to_check():
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "line"), [c for c in commands() if c[1].startswith("make")])
def test_every_make_target_exists(page, line):
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE)
    assert [word for word in shlex.split(line, comments=True)[1:] if word not in targets] == []


@pytest.mark.parametrize(("page", "line"), [c for c in commands() if c[1].startswith("python -m zo")])
def test_every_zo_command_parses_and_its_values_are_allowed(page, line, sign_zo):
    words = shlex.split(line, comments=True)[3:]
    parser = build_parser()
    options = parser.parse_args([_hyphens(word) for word in words])
    [known] = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    flags = [_hyphens(word).split("=")[0] for word in words if word.startswith("--")]
    assert set(flags) <= set(known[options.command]._option_string_actions)  # no abbreviation
    if options.command == "train" and not options.spec:
        read_spec(options)
    if options.command == "sweep":
        assert load_study(study_of(options)).runs


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A copy of what snakemake reads: a dry run in it sees no results of ours."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder)
    for name in ("workflow", "profiles", "zo", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def read_snakemake_command(line: str):
    from snakemake.cli import get_argument_parser

    return get_argument_parser().parse_args(shlex.split(line, comments=True)[1:])


def snakemake_commands() -> dict[str, list[str]]:
    """Study file ('' for the default one) -> the targets of all commands with it, parsed by snakemake."""
    found: dict[str, list[str]] = {}
    for _, line in commands():
        if line.startswith("snakemake") and "SignZO" not in line:
            options = read_snakemake_command(line)
            study = "".join(str(path) for path in options.configfile or [])
            found.setdefault(study, []).extend(sorted(options.targets or []))
    return found


def test_every_snakemake_target_resolves_in_a_dry_run(workplace):
    found = snakemake_commands()
    assert set(found) == {"", "workflow/studies/quick.yaml"}
    for study, targets in found.items():
        if study:  # its own targets lie in its own folder
            targets = ["results/quick/summary.txt"]
        command = [sys.executable, "-c", SNAKEMAKE, "-n", *dict.fromkeys(targets)]
        command += ["--configfile", study] if study else []
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(target in done.stdout for target in targets)


def readme_commands(start: str) -> list[str]:
    return [line for page, line in commands() if page == "README.md" and line.startswith(start)]


@pytest.mark.parametrize("line", readme_commands("snakemake"))
def test_every_snakemake_line_of_the_readme_plans_as_it_stands(workplace, line):
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "-n"]
    done = subprocess.run([sys.executable, "-c", SNAKEMAKE, "-n", *words], cwd=workplace, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run_zo(line: str, folder: Path) -> None:
    words = [sys.executable, *shlex.split(line, comments=True)[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readmes_zo_lines_run_in_their_order(tmp_path):
    """The folder of logs is the one that the hand-made run wrote."""
    lines = [line for line in readme_commands("python -m zo") if not re.search(" (sweep|plan) ", line)]
    assert len(lines) == 8
    for line in lines:
        line = line.replace("status results", "status results/hand")
        run_zo(line.replace("results/csv_logs", "results/hand/csv_logs"), tmp_path)
    assert len(list((tmp_path / "results/hand/plots").glob("*.png"))) >= 5


def test_the_readmes_plan_runs_where_the_studies_are(workplace):
    [line] = readme_commands("python -m zo plan")
    run_zo(line, workplace)


@pytest.mark.slow
def test_the_readmes_sweep_line_runs(tmp_path):
    [line] = readme_commands("python -m zo sweep")
    run_zo(line, tmp_path)
    assert (tmp_path / "results/sweep/summary.txt").exists()


# --- links and names -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_relative_link_resolves(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def name_anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_link_to_a_part_of_a_page_finds_its_heading(page):
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target, part in links:
        text = ((page.parent / target) if target else page).read_text(encoding="utf-8")
        assert part in map(name_anchor, re.findall(r"^#+ .*", text, flags=re.MULTILINE)), (target, part)


def list_texts() -> list[Path]:
    """Every text file of the repository, as git lists them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        path for name in listed.split() if (path := ROOT / name).suffix not in (".png",) and path.exists()
    ]


def test_every_module_that_any_text_names_by_its_path_exists():
    """Comments and pages; tests/mutants.py names files relative to zo/, and checks them itself."""
    path = re.compile(r"(?<![\w/.])(?:zo|tests|docs|workflow)/[\w/]*\w\.(?:py|smk|md)\b")
    named = {(text, name) for text in list_texts() for name in path.findall(text.read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert [(text.name, name) for text, name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_path_of_the_repository_that_a_page_names_exists(page):
    inside = re.compile(r"(zo|tests|docs|workflow|envs|profiles)/[\w./*-]*")
    paths = [span for span in code_spans(page) if inside.fullmatch(span)]
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []


FILES = {"json", "jsonl", "py", "csv", "md", "txt", "yaml", "log", "html", "png", "safetensors", "bin"}
CLASSES = {
    "Estimate": "engine.estimate", "GuidedDirections": "engine.guidance", "State": "step", "RunSpec": "spec",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_name_of_the_code_that_a_page_names_exists(page):
    """`training.run.start_phase`: from zo/ on; a module in a room must be named with its room."""
    modules = {path.stem for path in (ROOT / "zo").rglob("[a-z]*.py")}
    rooms = {path.parent.name for path in (ROOT / "zo").glob("*/__init__.py")}
    for span in code_spans(page):
        first, *rest = re.sub(r"\(.*\)$", "", span).split(".")
        if not rest or rest[-1] in FILES:
            continue
        if first in {*CLASSES, *modules, *rooms}:
            names = [*CLASSES.get(first, first).split("."), *([first] if first in CLASSES else []), *rest]
            assert resolves(names), span


def resolves(names: list[str]) -> bool:
    """Whether modules, then attributes, lead from the package to the name."""
    found = importlib.import_module("zo")
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"{getattr(found, '__name__', '')}.{name}")
        fields = getattr(found, "__dataclass_fields__", {}) | getattr(found, "model_fields", {})
        known = name in fields or hasattr(found, name) or name in vars(found).get("__annotations__", {})
        if not known and name != "scale":  # set by the instance
            return False
        found = getattr(found, name, None)
    return True


def test_a_name_without_its_room_does_not_resolve():
    assert resolves(["engine", "estimate", "Estimate", "gradient"])
    assert not resolves(["estimate", "estimate_gradient"])
    assert not resolves(["engine", "estimate", "no_such_function"])


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        for path in ((page.parent / link).resolve() for link in links if not link.startswith("http")):
            if path not in reached:
                reached.add(path)
                waiting.append(path)
    assert [name_page(page) for page in PAGES if page != README and page.resolve() not in reached] == []


# --- settings, files, columns --------------------------------------------------------------------


def load_script(name: str):
    """A script of docs/ as a module."""
    place = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    sys.modules[name] = script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    return script


def test_the_settings_page_is_what_the_code_says():
    script = load_script("make_settings")
    assert read("docs/settings.md") == script.render(), "run: python docs/make_settings.py"


def test_the_scaling_page_is_what_the_law_says():
    script = load_script("make_scaling")
    assert read("docs/scaling.md") == script.splice(read("docs/scaling.md")), (
        "run: python docs/make_scaling.py"
    )


def test_as_many_runs_as_the_memory_table_says_fit_a_gpu_and_not_one_more():
    script = load_script("make_scaling")
    for _, spec in script.make_specs():
        for gb in script.CARDS_GB:
            jobs, _, change = script.fit(spec, gb).partition(": ")
            size, room = memory_bytes(spec, "cuda"), 0.8e9 * gb
            assert int(jobs) * size <= room
            assert int(jobs) == script.MOST_JOBS[spec.model_size] or (int(jobs) + 1) * size > room
            assert bool(change) == (jobs == "0")
            if change:
                key, value = change.strip("`").split(": ")
                smaller = RunSpec.make(**spec.model_dump() | {key: value})
                assert memory_bytes(smaller, "cuda") <= room


def test_the_law_of_ranks_shares_the_directions_and_nothing_else():
    step = load_script("make_scaling").Step
    for name, family in load_script("make_scaling").FAMILIES.items():
        one = step(1e9, family, 64, 8192)
        assert one.seconds(1) == pytest.approx(64 * one.direction + one.update), name
        assert one.seconds(64) == pytest.approx(one.direction + one.update + one.exchange(64))
        assert one.seconds(48) - one.exchange(48) == pytest.approx(
            2 * one.direction + one.update
        )  # 2 on some
        assert one.seconds(1024) > one.seconds(64)  # ranks without a direction only lengthen the ring
        u = one.update / one.seconds(1)
        shared = one.seconds(2) - one.exchange(2)
        assert one.seconds(1) / shared == pytest.approx(2 / (1 + u))


def test_the_pages_loop_over_ranks_runs_as_it_stands():
    block = code_blocks("docs/ranks.md", "python")[0]
    scope: dict = {}
    exec(block, scope)
    assert scope["estimate"].coefficients.shape == (8,)
    assert scope["ranks"].count == 1


def test_every_method_is_described():
    page = read("docs/method.md")
    assert [mode for mode in METHODS if f"`methods.{mode}`" not in page and f"- `{mode}`" not in page] == [
        "ZO"  # under its own heading, with the estimate
    ]
    assert "## ZO" in page


def first_column(page: str, heading: str) -> list[str]:
    section = read(page).split(f"## {heading}")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_column_of_the_csv_log_is_described_in_its_order():
    assert first_column("docs/results-format.md", "Columns of `csv_logs") == list(COLUMNS)


@pytest.fixture(scope="module")
def produced(tmp_path_factory):
    """A results folder after a finished run, a crash, a summary and plots, without a workflow."""
    from zo.analysis.figures.plots import write_plots
    from zo.analysis.report import write_report
    from zo.analysis.summary import write_summary
    from zo.training.crash import handle_crash
    from zo.training.train import train

    folder = tmp_path_factory.mktemp("produced")
    text = folder / "corpus.txt"
    text.write_text("\n\n".join(f"Part {i}. " + "To be or not to be. " * 8 for i in range(40)))
    results = folder / "results"
    common = SETTINGS | {"dataset": str(text), "scope": "full", "learning_rate": 1e-3}
    spec = RunSpec.make(mode="Instruct", query_budget_q=2, bp_interval=2, log_interval=1, **common)
    train(spec, results, threads=1)
    handle_crash(results, "FO_full_bs2_q0_lr1e-03", exit_status=1, last_attempt=True)
    write_summary(results / "csv_logs", results / "summary.txt", results / "summary.csv")
    write_plots(results / "csv_logs", results / "plots", per_run=True)
    write_report(results / "csv_logs", results / "report.html")
    return results, spec


def test_every_file_that_a_run_and_the_analysis_write_is_described(produced):
    results, _ = produced
    [cache] = (results / "cache").iterdir()
    described = set(first_column("docs/results-format.md", "Files"))
    for path in (path.relative_to(results) for path in results.rglob("*") if path.is_file()):
        parts = ["<cache>" if part == cache.name else part for part in path.parts]
        name = re.sub(r"(Instruct|FO)_full[^/.]*", "<run>", "/".join(parts))
        assert re.sub(r"crash\d+", "crash<n>", name) in described, path


def test_every_file_that_the_workflow_declares_is_described():
    described = set(first_column("docs/results-format.md", "Files"))
    texts = [path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")]
    declared = {path for text in texts for path in re.findall(r'f"\{RESULTS\}/([^"*]+)"', text)}
    assert len(declared) > 8
    declared -= {"cache/{name}/meta.json", "plots/{{figure}}.png"}  # an input function's, the plots rule's
    figures = re.search(r'FIGURES = "([^"]+)"', "".join(texts))[1].split()
    names = {path.replace("{{run}}", "<run>").replace("{{cache}}", "<cache>") for path in declared}
    assert (names | {f"plots/{figure}.png" for figure in figures}) - described == set()


def test_every_column_of_the_summary_is_described(produced):
    results, _ = produced
    columns = (results / "summary.csv").read_text().splitlines()[0].split(",")
    described = first_column("docs/results-format.md", "Columns of `summary.csv`")
    assert [name for name in columns if name not in described] == []
    assert [name for name in described if name not in columns] == []


def test_every_key_of_the_json_files_is_described(produced, tmp_path, monkeypatch):
    results, spec = produced
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    page = read("docs/results-format.md")
    run = results / "runs" / spec.name
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    keys = set().union(*lines)
    begin_sweep(load_study({"study": "default", "modes": "FO", "learning_rates": 1, "max_steps": 1}), jobs=1)
    records = [run / name for name in ("manifest.json", "outcome.json", "job.json")]
    for path in (*records, Path("results/sweep.json"), *results.glob("cache/*/meta.json")):
        keys |= json.loads(path.read_text()).keys()
    assert [key for key in sorted(keys) if f"`{key}" not in page] == []


# --- add a method --------------------------------------------------------------------------------


def test_the_method_of_the_example_trains_and_steps_by_the_rate_along_the_sign(sign_zo, corpus, tmp_path):
    from zo.training.train import build_run, train

    settings = SETTINGS | {"max_steps": 3, "scope": "full", "learning_rate": 1e-3, "query_budget_q": 2}
    spec = RunSpec.make(mode="SignZO", dataset=corpus, **settings)
    assert spec.name.startswith("SignZO_full_bs2_q2_lr1e-03")
    run, _ = build_run(spec, tmp_path / "cache", torch.device("cpu"))
    before = [p.detach().clone() for p in run.state.parameters]
    report = run.take_step()
    assert report.forward_passes == 4
    for old, new in zip(before, run.state.parameters, strict=True):
        assert torch.allclose((new - old).abs(), torch.tensor(1e-3), atol=1e-6)
    assert train(spec, tmp_path, threads=1).status == "done"


def test_the_method_with_phases_is_shown_as_it_is():
    assert code_blocks("docs/add-a-method.md", "python")[1] in read("zo/methods.py")


def test_the_example_is_gone_after_its_test():
    assert "SignZO" not in METHODS
    with pytest.raises(UserError, match="unknown mode"):
        RunSpec.make(mode="SignZO", max_steps=1)
