"""The conda environments and the container install what is tested: the pins, and all that is imported."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "envs").glob("*.yaml"))
RULE = re.compile(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(*files: str) -> dict[str, str]:
    lines = "\n".join((ROOT / "envs" / file).read_text() for file in files).splitlines()
    found = (re.match(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {normalize(match[1]): match[2] for match in found if match}


def read_yaml(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Pins of conda's own packages, and of pip's."""
    *conda, pip = yaml.safe_load(path.read_text())["dependencies"]
    own = dict(re.fullmatch(r"([\w-]+)(?:=(.*))?", line).groups() for line in conda)
    return own, {normalize(name): version for name, version in (line.split("==") for line in pip["pip"])}


def rules() -> dict[str, str]:
    texts = [(ROOT / "Snakefile").read_text(), *(p.read_text() for p in (ROOT / "workflow").rglob("*.smk"))]
    return dict(RULE.findall("\n".join(texts)))


def imported_distributions() -> set[str]:
    """What zo/ imports from elsewhere, in functions too, by the names that pip knows."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "zo").rglob("*.py")]
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    known = packages_distributions()
    return {normalize(known[name][0]) for name in names - set(sys.stdlib_module_names) - {"zo"}}


def test_there_are_environments_rules_and_imports_to_check():
    assert YAMLS
    assert {"cache", "train", "summary", "plots", "complete", "all"} <= set(rules())
    assert {"torch", "pyyaml", "huggingface-hub"} <= imported_distributions()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_pin_of_an_environment_is_the_tested_version(path):
    conda, pip = read_yaml(path)
    tested = read_pins("pins.txt", "data.txt")
    assert pip == {name: tested.get(name) for name in pip}
    assert conda == {"python": "3.11", "pip": None}  # conda's own solve decides nothing else


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_an_environment_has_all_that_the_code_imports_and_the_embedded_corpora(path):
    _, pip = read_yaml(path)
    assert imported_distributions() | set(read_pins("data.txt")) <= set(pip)


def test_every_rule_that_runs_a_command_names_an_environment_that_exists_and_none_is_left_over():
    named = set()
    for name, text in rules().items():
        if "shell:" in text:
            [place] = re.findall(r'conda:\s+"([^"]+)"', text) or [f"rule {name} names none"]
            named.add((ROOT / "workflow/rules" / place).resolve())
    assert named == set(YAMLS)


# --- the container ---------------------------------------------------------------------------------


def recipe() -> list[tuple[str, str]]:
    """(instruction, words) of each line of the Dockerfile."""
    lines = (ROOT / "containers/Dockerfile").read_text().splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def test_the_container_is_built_on_a_pinned_python_of_the_version_that_the_environments_have():
    [base] = [words for instruction, words in recipe() if instruction == "FROM"]
    conda, _ = read_yaml(YAMLS[0])
    assert re.fullmatch(rf"python:{conda['python']}\.\d+-slim-\w+", base)


def test_the_container_installs_as_the_makefile_does_with_the_tools_that_ci_asks_for():
    steps = [words for instruction, words in recipe() if instruction == "RUN"]
    assert steps[-1] == "make install"
    tools = re.search(r"for tool in ([\w ]+); do", (ROOT / ".ci/run").read_text())[1].split()
    assert set(tools) - {"python3"} <= set(steps[0].split())
    [(_, command)] = [line for line in recipe() if line[0] == "CMD"]
    target = yaml.safe_load(command)[1]
    assert re.search(rf"^{target}: install", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_what_a_checkout_ignores_is_not_copied_into_the_container():
    kept_out = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", "results", ".snakemake"} <= set(kept_out)
    assert not [name for name in kept_out if (ROOT / name).is_file()]
