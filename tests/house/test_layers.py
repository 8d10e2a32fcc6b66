"""The parts of the package stand in an order, without a circle, and the light ones stay light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import zo

PACKAGE = Path(zo.__file__).parent
ORDER = [
    *("errors", "causes", "files", "units", "layout"),
    *("distributed", "engine", "optimizers", "step", "methods"),
    *("sizes", "models", "data", "fields", "lengths", "spec", "study_file", "study"),
    *("training", "analysis", "planning", "sweep", "bench", "cli", "__main__"),
]
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part_of(path: Path) -> str:
    """The module, or the folder that it lies in: analysis/runs.py is `analysis`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def walk_imports(tree: ast.AST):
    """Yield what each run-time import can name, those inside functions too: `from a import b`: a, a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import: {ast.unparse(node)}"
            yield [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        yield from walk_imports(node)


def list_imports(tree: ast.AST):
    """Yield the parts of zo that each import names."""
    for names in walk_imports(tree):
        parts = [name.split(".")[1] for name in names if name.startswith("zo.")]
        yield from dict.fromkeys(part for part in parts if part != "__version__")


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


KNOWN = {name_module(path) for path in MODULES}


def list_modules(tree: ast.AST):
    """Yield the modules that imports name, in full."""
    return (name for names in walk_imports(tree) for name in names if name in KNOWN)


def test_every_part_has_its_place_in_the_order():
    assert {part_of(path) for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_part_or_those_before_it(path):
    own = ORDER.index(part_of(path))
    later = {name for name in list_imports(ast.parse(path.read_text())) if ORDER.index(name) > own}
    assert not later


def test_the_check_sees_imports_in_functions_but_not_those_for_types():
    code = (
        "if TYPE_CHECKING:\n import zo.spec\ndef f():\n from zo.cli import main\n import zo.data.files as f"
    )
    assert list(list_imports(ast.parse(code))) == ["cli", "data"]
    assert list(list_imports(ast.parse("from zo import spec"))) == ["spec"]


def test_the_workflows_imports_pull_in_nothing_heavy():
    code = "import sys, zo.spec, zo.study, zo.cli, zo.sweep.gpus, zo.files; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "transformers", "pandas", "datasets", "tokenizers", "scipy", "matplotlib", "snakemake"}
    assert not heavy & set(loaded)
    assert "zo.spec" in loaded


def test_no_module_imports_snakemake():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            named = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "snakemake" for name in named), path


def test_no_module_comes_back_to_itself_through_its_imports():
    graph = {}
    for path in MODULES:
        own = name_module(path)
        graph[own] = set(list_modules(ast.parse(path.read_text()))) - {own}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    assert "zo.engine.noise" in graph["zo.engine.estimate"]


def test_the_rooms_of_the_analysis_stand_in_an_order_too():
    """Figures and claims are made from what lies beside them, which knows neither; the report shows both."""
    for path in (PACKAGE / "analysis").glob("*.py"):
        named = list_modules(ast.parse(path.read_text()))
        rooms = {name.split(".")[2] for name in named if name.count(".") == 3}
        assert rooms <= ({"figures", "claims"} if path.stem in ("report", "summary") else set()), path
