"""The shape of the repository: who may import whom, what no file may hold, how long things get."""

import ast
import functools
import importlib.util
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
    for folder in (".", "settings", "training", "rlm/**", "tests/**", "benchmarks", "examples")
    for path in ROOT.glob(f"{folder}/*.py")
]
FILES = [path for path in FILES if path.exists()]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
ROOT_MODULES = {path.stem for path in FILES if path.parent == ROOT} | {"settings", "training"}


# What is imported where it is there alone: on a GPU, in environments of their own.
ELSEWHERE = {"bitsandbytes", "vllm", "instructor", "langchain_openai", "langchain_tests", "litellm"}

# The ground, then the rooms from the lowest floor up: each may use the ground and those before it.
GROUND = ("records", "errors", "files", "seeds", "parallel", "addresses", "line_process")
ROOMS = (
    "cli", "answers", "data", "preflight", "models", "tools", "engine", "learner", "evaluation",
    "agents", "rollouts", "report", "run", "export", "trl", "tunnel", "server", "tiny",
)  # fmt: skip
# What each part of the root may import of the root; rlm, which is below, may import nothing of it.
ARROWS = {
    "rewards": set(),
    "data": set(),
    "settings": {"settings", "data", "rewards"},
    "config": {"settings"},
    "training": {"training", "data", "rewards"},
}
SCRIPTS = {"train_sft", "train_grpo", "train", "evaluate", "inference", "serve"}


def modules(tree: ast.AST) -> set[str]:
    """The full names of all modules that are imported, at the top or inside functions.

    Of `from a.b import c` both a.b and a.b.c are named, since c may be a module.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(tree: ast.AST) -> set[str]:
    """The first names of all modules that are imported."""
    return {name.split(".")[0] for name in modules(tree)}


def floor(name: str) -> int:
    """0 for what is on the ground of rlm, the number of its room for the rest."""
    part = name.split(".")[1]
    return 0 if part in GROUND else 1 + ROOMS.index(part)


def uphill(path: Path, names: set[str]) -> list[str]:
    """Which of the imported modules stand above the file that imports them, or on no floor."""
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
    inside = [name for name in sorted(names) if name.startswith("rlm.")]
    known = [name for name in inside if name.split(".")[1] in (*GROUND, *ROOMS)]
    lost = [name for name in inside if name not in known]
    # A room's own files may use each other; files of the ground do, too.
    return [name for name in known if floor(name) > own] + lost


def of(folder: str) -> list[Path]:
    return [path for path in FILES if path.is_relative_to(ROOT / folder)]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


IN_ROOMS = [path for path in of("rlm") if path.name != "__init__.py" or path.parent != ROOT / "rlm"]


def test_there_is_something_to_look_at():
    assert {"config", "data", "settings", "training"} <= ROOT_MODULES
    assert len(of("rlm")) > 5
    rooms = {path.relative_to(ROOT).parts[1] for path in IN_ROOMS if path.parent.name != "rlm"}
    assert rooms == set(ROOMS)
    assert {path.stem for path in IN_ROOMS if path.parent.name == "rlm"} == set(GROUND)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_its_tests_under_its_name(room):
    assert list((ROOT / "tests" / room).glob("test_*.py"))


@pytest.mark.parametrize("path", of("rlm"), ids=named)
def test_rlm_does_not_import_the_root(path):
    assert not imported(TREES[path]) & ROOT_MODULES


@pytest.mark.parametrize("path", IN_ROOMS, ids=named)
def test_a_room_uses_the_rooms_below_it_alone(path):
    assert not uphill(path, modules(TREES[path]))


@pytest.mark.parametrize(
    "file, line",
    [
        ("rlm/seeds.py", "from rlm.cli import layers"),
        ("rlm/models/policy.py", "from rlm.learner.sharding import sharded"),
        ("rlm/evaluation/measure.py", "def table():\n    import rlm.agents.evaluation"),
        ("rlm/engine/sampling.py", "from rlm.nowhere import anything"),
    ],
)
def test_a_planted_import_is_found(file, line):
    assert uphill(ROOT / file, modules(ast.parse(line)))


def test_what_a_room_may_import_is_no_fault():
    lines = "import torch\nfrom rlm import files\nfrom rlm.models import loading\nimport rlm.engine"
    assert not uphill(ROOT / "rlm/engine/sampling.py", modules(ast.parse(lines)))


@pytest.mark.parametrize("part", ARROWS)
def test_the_arrows_of_the_root_run_one_way(part):
    for path in of(part) if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]:
        assert imported(TREES[path]) & ROOT_MODULES <= ARROWS[part], path


def test_the_root_holds_scripts_and_what_a_user_edits_alone():
    files = {path.stem for path in FILES if path.parent == ROOT}
    assert files == SCRIPTS | {"config", "data", "rewards"}


def test_no_root_name_hides_a_library():
    libraries = set().union(*map(imported, TREES.values())) - ROOT_MODULES - {"rlm", "tests"}
    # vllm is imported by trl when it is there; an empty folder of that name breaks it.
    libraries |= {"vllm", "wandb", "trackio", "tensorboard", *sys.stdlib_module_names}
    here = {path.stem if path.suffix == ".py" else path.name for path in ROOT.iterdir()}
    assert not here & libraries


def test_all_that_is_imported_is_there():
    """Inside functions, too: a benchmark kept the name of a module that had moved."""
    known = ROOT_MODULES | ELSEWHERE | {"rlm", "tests"}
    benchmarks = {path.stem for path in ROOT.glob("benchmarks/*.py")}
    there = functools.cache(importlib.util.find_spec)
    for path, tree in TREES.items():
        beside = {file.stem for file in path.parent.glob("*.py")} | benchmarks
        assert not [n for n in imported(tree) - known - beside if not there(n)], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    if not path.is_relative_to(ROOT / "tests"):  # tables of cases may be long
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", of("rlm"), ids=lambda path: path.name)
def test_every_file_of_rlm_says_what_it_does(path):
    assert ast.get_docstring(TREES[path])
