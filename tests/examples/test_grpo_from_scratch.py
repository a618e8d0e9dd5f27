"""The one page of GRPO: short, learns, and reads as train_grpo.py does."""

import ast
import re

import pytest

from tests.support.running import ROOT, start, succeed

SCRIPT = "examples/grpo_from_scratch.py"
PAGE, FULL = ROOT / SCRIPT, ROOT / "train_grpo.py"
STEP = ("sample", "advantages", "update", "sync")  # what a step does, in this order


@pytest.mark.slow
@pytest.mark.ci
def test_it_learns(tmp_path):
    """From few demonstrations it goes from 2 % to a third in three steps; a fourth is to spare."""
    said = succeed(SCRIPT, "--examples", 400, "--steps", 4, cwd=tmp_path).stdout
    curve = re.findall(r"^step +(\d+) +accuracy +([\d.]+)%  #*$", said, re.MULTILINE)
    assert [step for step, _ in curve] == ["0", "1", "2", "3", "4"] and len(curve) == said.count(
        "\n"
    )
    accuracies = [float(accuracy) for _, accuracy in curve]
    assert accuracies[0] < 15
    assert accuracies[-1] > accuracies[0] + 15
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.ci
def test_wrong_input_is_refused(tmp_path):
    done = start(SCRIPT, "--steps", 0, cwd=tmp_path)
    assert done.returncode == 2 and "--steps 0: use " in done.stderr.splitlines()[-1]


def test_it_is_one_page():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 120


def functions(path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def calls(function) -> list[str]:
    """The names of what a function calls, in the order of its lines."""
    found = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    found.sort(key=lambda node: (node.lineno, node.col_offset))
    return [getattr(node.func, "attr", getattr(node.func, "id", "")) for node in found]


def test_it_reads_like_train_grpo():
    page, full = functions(PAGE), functions(FULL)
    assert {"train", "sample", "update"} <= page.keys() & full.keys()
    steps = [calls(page["train"]), [c.removesuffix("_live") for c in calls(full["take_step"])]]
    for called in steps:
        places = [len(called) - 1 - called[::-1].index(name) for name in STEP]
        assert places == sorted(places), called
    for each in (page, full):
        called = {name for function in each.values() for name in calls(function)}
        assert {"generate", "score", "token_logprobs", "policy_loss", "backward"} <= called
