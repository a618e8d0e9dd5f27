"""`import rlm` as a library: quick, lazy, and every name as docs/library.md shows it."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import rlm
from tests.support.running import ROOT

PAGE = ROOT / "docs" / "library.md"
TEXT = PAGE.read_text(encoding="utf-8")
# A fence would count as the output of the line above it.
EXAMPLES = doctest.DocTestParser().get_examples(TEXT.replace("\n```", "\n"), str(PAGE))
ROOMS = {path.stem for path in (ROOT / "rlm").iterdir()}

# Seconds of the processor, which other work on the machine does not lengthen much.
START = """
import sys, time
began = time.process_time()
import rlm
took = time.process_time() - began
heavy = {"torch", "transformers", "peft", "numpy"} & sys.modules.keys()
print(took, *heavy, *(name for name in sys.modules if name.startswith("rlm.")))
"""


def test_the_import_is_quick_and_brings_nothing_along():
    starts = [
        subprocess.run(
            [sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert [brought for _, *brought in starts] == [[], [], []]
    assert min(float(took) for took, *_ in starts) < 0.1


@pytest.mark.parametrize("name", rlm.NAMES)
def test_every_name_is_there(name):
    assert callable(getattr(rlm, name))
    assert name in dir(rlm)


def test_the_lists_of_names_are_one():
    tree = ast.parse(Path(rlm.__file__).read_text(encoding="utf-8"))
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in typed.body
        for alias in node.names
    }
    places = {name: place.partition(":") for name, place in rlm.NAMES.items()}
    assert seen == {name: (module, there or name) for name, (module, _, there) in places.items()}
    assert sorted(rlm.__all__) == sorted(rlm.NAMES)


def test_no_name_hides_a_room():
    assert {"engine", "report", "records"} <= ROOMS
    assert not ROOMS & rlm.NAMES.keys()
    from rlm import report

    assert report.__name__ == "rlm.report" and hasattr(report, "__path__")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"'policy_los'; known are Engine, .*policy_loss"):
        rlm.policy_los  # noqa: B018
    with pytest.raises(ImportError, match="policy_los"):
        from rlm import policy_los  # noqa: F401


def imported(examples) -> list[str]:
    """The names that the page takes from rlm, in their order."""
    nodes = [node for each in examples for node in ast.parse(each.source).body]
    found = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "rlm"]
    return [alias.name for node in found for alias in node.names]


def test_the_page_shows_every_name():
    assert sorted(imported(EXAMPLES)) == sorted(rlm.__all__)
    assert [name for name in rlm.__all__ if f"\n### `{name}`\n" not in TEXT] == []
    sections = TEXT.split("\n### ")[1:]
    assert [s.splitlines()[0] for s in sections if not 2 <= s.count(">>> ") <= 4] == []


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")  # what it writes goes to tmp_path/runs
    told: list[str] = []
    page = doctest.DocTest(EXAMPLES, {}, PAGE.name, str(PAGE), 0, None)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(page, out=told.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)
    assert (tmp_path / "runs/mine/report.html").is_file()
