"""The shape of the repository: who may import whom, what no file may hold, how long things get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.split()
# Without git (a downloaded archive) the same files are found by hand.
FILES = [ROOT / name for name in TRACKED] or [
    path
    for folder in (".", "rlm", "rlm/server", "tests", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
]
FILES = [path for path in FILES if path.exists()]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
ROOT_MODULES = {path.stem for path in FILES if path.parent == ROOT}


def imported(tree: ast.AST) -> set[str]:
    """The first names of all modules that are imported, at the top or inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def of(folder: str) -> list[Path]:
    return [path for path in FILES if path.is_relative_to(ROOT / folder)]


def test_there_is_something_to_look_at():
    assert {"config", "data"} <= ROOT_MODULES
    assert len(of("rlm")) > 5


@pytest.mark.parametrize("path", of("rlm"), ids=lambda path: path.name)
def test_rlm_does_not_import_the_root(path):
    assert not imported(TREES[path]) & ROOT_MODULES


def test_no_root_name_hides_a_library():
    libraries = set().union(*map(imported, TREES.values())) - ROOT_MODULES - {"rlm", "tests"}
    # vllm is imported by trl when it is there; an empty folder of that name breaks it.
    libraries |= {"vllm", "wandb", "trackio", "tensorboard", *sys.stdlib_module_names}
    here = {path.stem if path.suffix == ".py" else path.name for path in ROOT.iterdir()}
    assert not here & libraries


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    if path.parent.name != "tests":  # tables of cases may be long
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", of("rlm"), ids=lambda path: path.name)
def test_every_file_of_rlm_says_what_it_does(path):
    assert ast.get_docstring(TREES[path])
