"""The walk of docs/data.md, as it stands there: from a CSV and a reward file to an adapter."""

import csv
import json
import re
import shlex

import pytest

from tests.support.running import ROOT, succeed

PAGE = ROOT / "docs/data.md"


def walk() -> list[list[str]]:
    """Return the words of the page's first commands."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"```\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for line in found[1].splitlines()] if found else []


def test_the_walk_is_the_whole_way():
    started = [words[2] if words[1] == "-m" else words[1] for words in walk()]
    assert started == [
        "examples/make_data.py",
        "rlm.data",
        "train_sft.py",
        "train_grpo.py",
        "evaluate.py",
    ]


@pytest.mark.slow
@pytest.mark.ci
def test_the_walk_trains_an_adapter(tmp_path):
    for name in ("configs", "examples", "rlm"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tiny_base").symlink_to(ROOT / "weights/tiny_base")
    done = [succeed(*words[1:], cwd=tmp_path) for words in walk()]
    made, checked, sft, grpo, evaluated = done
    assert made.stdout == "mine.csv: 400 rows\n"
    assert (
        "question from 'exercise', answer from 'result', solution from 'worked'" in checked.stdout
    )
    assert (
        "rows       400 usable, 0 bad" in checked.stdout and "tokens     question" in checked.stdout
    )
    for training in (sft, grpo):
        assert "mine.csv: question from 'exercise'" in training.stdout + training.stderr
    manifest = json.loads((tmp_path / "weights/own/final_rlm_lora/manifest.json").read_text())
    assert manifest["settings"]["answer_field"] == "result"
    with open(tmp_path / "runs/grpo/log.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] != "0"]
    assert len(rows) == 4 and all(0 < float(row["reward_works"]) <= 1 for row in rows[-2:])
    assert "weights/own/final_rlm_lora" in evaluated.stdout
