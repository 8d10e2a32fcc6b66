"""Names stay inside the results folder, files and settings are data: nothing that is read is ever run."""

import ast
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zo
from zo.cli import main
from zo.data.dataset import DatasetSpec
from zo.data.tokenizer import make_tokenizer
from zo.errors import UserError
from zo.spec import RunSpec, parse_name
from zo.study import Workflow, load_study, read_study
from zo.training.checkpoint import load_checkpoint

ROOT = Path(zo.__file__).parents[1]
MODULES = sorted((ROOT / "zo").rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
UNSAFE = {"torch.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
UNSAFE |= {"pd.read_pickle", "eval", "exec", "os.system", "__import__"}
STUDY = {"study": "t", "modes": "ZO", "learning_rates": "1e-4", "max_steps": 3}
ESCAPES = ["../x", "/etc", "a/b", "..", ".", "a\nb", "a\0b", "a%00b", "%2e%2e%2f", "~", "a b", "$HOME", "a;b"]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


# --- what the source never does --------------------------------------------------------------------


def find_unsafe(tree: ast.AST):
    """Yield calls and imports through which a file's content could run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
            yield from (name for name in names if name.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            yield from {ast.unparse(node.func)} & UNSAFE
            for key in node.keywords:
                if key.arg in ("trust_remote_code", "allow_pickle", "shell"):
                    off = isinstance(key.value, ast.Constant) and key.value.value is False
                    yield from [] if off else [key.arg]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_unpickles_evaluates_or_trusts_remote_code(path):
    assert list(find_unsafe(ast.parse(path.read_text()))) == []


def test_the_check_sees_what_it_looks_for():
    found = find_unsafe(
        ast.parse("import pickle\ntorch.load(x)\nf(trust_remote_code=spec.trust)\nyaml.load(y)")
    )
    assert set(found) == {"pickle", "torch.load", "trust_remote_code", "yaml.load"}
    assert not list(find_unsafe(ast.parse("yaml.safe_load(x)\nf(trust_remote_code=False)")))


# --- files are data --------------------------------------------------------------------------------


def test_a_checkpoint_that_is_a_pickle_is_a_damaged_one(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "step-000000001.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    loaded, complaints = load_checkpoint(tmp_path)
    assert loaded is None
    assert len(complaints) == 1
    assert not mark.exists()


def test_a_tokenizer_that_brings_its_own_code_does_not_run_it(tmp_path):
    mark, folder = tmp_path / "mark", tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(UserError, match="cannot load it") as error:
        make_tokenizer(str(folder), None, [])
    assert len(str(error.value).splitlines()) == 1
    assert not mark.exists()


# --- settings are data -----------------------------------------------------------------------------

YAML = "study: t\nmodes: ZO\nmax_steps: 3\nlearning_rates: !!python/object/apply:{call}\n- {argument}\n"


def test_a_study_file_that_holds_code_is_one_line_and_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "study.yaml"
    path.write_text(YAML.format(call="os.system", argument=f"touch {mark}"))
    with pytest.raises(UserError, match="cannot be read") as error:
        read_study(path)
    assert len(str(error.value).splitlines()) == 1
    assert not mark.exists()


def test_snakemake_does_not_run_code_of_a_study_file_either(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "study.yaml").write_text(YAML.format(call="os.system", argument=f"touch {mark}"))
    command = [sys.executable, "-m", "snakemake", "-n", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", "study.yaml", "--cores", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not mark.exists()


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickle", "code", "__class__"])
def test_no_setting_of_a_study_a_run_or_its_name_turns_remote_code_on(key):
    assert key not in [*RunSpec.model_fields, *Workflow.model_fields]
    with pytest.raises(UserError, match="unknown config key"):
        load_study(STUDY | {key: True})
    with pytest.raises(UserError, match="unknown setting"):
        RunSpec.from_json(json.dumps({"mode": "ZO", "max_steps": 1, key: True}))
    with pytest.raises(UserError, match="run name"):
        parse_name(f"ZO_reduced_bs4_q8_lr1e-05_{key}true", max_steps=1)


def test_what_a_shell_would_run_stays_text(tmp_path, capsys):
    """Values reach the jobs as quoted JSON; no setting of a run's name takes free text."""
    for text in ("$(touch mark)", "`touch mark`", "'; touch mark; '"):
        for key in ("modes", "scopes", "model_size", "optimizer"):
            with pytest.raises(UserError):
                load_study(STUDY | {key: text})


# --- names stay inside the results folder ----------------------------------------------------------


@pytest.mark.parametrize("name", ESCAPES)
def test_a_study_cannot_be_named_out_of_the_results_folder(name):
    with pytest.raises(UserError, match=r"study: (?s:.*) it names a folder") as error:
        load_study(STUDY | {"study": name})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("part", ESCAPES)
@pytest.mark.parametrize(
    "form", ["{}", "ZO_reduced_bs4_q8_lr{}", "ZO_{}_bs4_q8_lr1e-05", "{}_full_bs4_q8_lr1e-05"]
)
def test_a_run_name_cannot_leave_the_results_folder(form, part):
    with pytest.raises(UserError, match="run name") as error:
        parse_name(form.format(part), max_steps=1)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a\nb.txt", "..txt", "%2e%2e%2f.txt", "x" * 250 + ".txt", "$(touch x).txt"])
def test_a_dataset_cannot_name_its_cache_out_of_the_results_folder(name, tmp_path):
    (tmp_path / name).write_text("One part.\n\nAnother part.")
    for spelled in (tmp_path / name, tmp_path / "x/../../" / tmp_path.name / name):
        (tmp_path / "x").mkdir(exist_ok=True)
        folder = DatasetSpec(dataset=str(spelled), tokenizer="bytes").folder_name()
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{1,150}", folder)


@pytest.mark.parametrize("name", ["../../none", "a\0b", "x" * 5000, "a\nb"])
def test_a_dataset_that_is_no_file_is_one_line(name):
    with pytest.raises(UserError, match=r"no such file or folder|unknown dataset") as error:
        DatasetSpec(dataset=name, tokenizer="bytes").source()
    assert len(str(error.value).splitlines()) == 1


def test_the_recorder_of_crashes_cannot_be_sent_elsewhere(tmp_path, capsys):
    words = ["crash", "--run", "../../outside", "--exit", "1", "--last-attempt", "1", "--results"]
    assert main([*words, str(tmp_path / "results/deep")]) == 2
    assert "it names a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_cannot_be_spelled_as_part_of_a_name(tmp_path, capsys):
    """Names have no separators, so a link inside results/ is never walked through to the outside."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "results/runs").mkdir(parents=True)
    (tmp_path / "results/runs/link").symlink_to(tmp_path / "outside")
    words = ["crash", "--run", "link/x", "--exit", "1", "--last-attempt", "1", "--results"]
    assert main([*words, str(tmp_path / "results")]) == 2
    assert list((tmp_path / "outside").iterdir()) == []
