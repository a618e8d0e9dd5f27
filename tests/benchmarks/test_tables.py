"""The measured tables: each in its document, as the results have it."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tables  # noqa: E402


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """A copy of the documents, which tables.py takes for the repository's."""
    (tmp_path / "docs").mkdir()
    for name in tables.PLACES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tmp_path


def test_the_documents_have_the_tables_of_the_results():
    """Run `python benchmarks/tables.py` after a change of the results or of a table."""
    assert [str(path.relative_to(ROOT)) for path in tables.filled(ROOT)] == []


def test_no_marked_table_is_left_out():
    made = {name: [f"<!-- table {t} -->" for t in found] for name, found in tables.PLACES.items()}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if path.name == "scale.md":  # benchmarks/scale_tables.py makes its tables
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.startswith("<!-- table ")]
        assert found == made.get(str(path.relative_to(ROOT)), [])


def test_a_figure_that_was_changed_by_hand_is_told_and_put_back(documents, capsys):
    path = documents / "docs" / "speed.md"
    before = path.read_text(encoding="utf-8")
    assert tables.main(["--check"]) == 0
    path.write_text(before.replace("| tiny, float32, CPU |", "| tiny |"), encoding="utf-8")
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("docs/speed.md: its tables are not those of ")
    assert tables.filled(documents) == {path: before}


def test_a_document_without_its_table_is_named(documents):
    (documents / "docs" / "serving.md").write_text("# Serving\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"docs/serving\.md: no block <!-- table serve -->"):
        tables.filled(documents)
