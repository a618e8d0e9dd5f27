"""Worked examples through all scripts: the adapter keeps them, what uses it takes them from it."""

import json

import pytest

from tests.support.running import start, succeed

pytestmark = pytest.mark.slow
FEW = ["--eval-samples", 4, "--max-tokens", 40]


def manifest(folder, name: str) -> dict:
    return json.loads((folder / "weights" / name / "manifest.json").read_text())


def test_an_adapter_keeps_its_worked_examples(tmp_path):
    words = [*FEW, "--shots", 2, "--max-steps", 1, "--num-samples", 20]
    succeed("train_sft.py", *words, cwd=tmp_path)
    shots = manifest(tmp_path, "sft_lora")["shots"]
    assert len(shots) == 2 and shots[0].keys() == {"question", "answer", "solution"}
    # Another seed would draw other ones: the stage goes on with the adapter's.
    grpo = [*FEW, "--seed", 5, "--max-steps", 1, "--questions-per-step", 2, "--group-size", 2]
    done = succeed("train_grpo.py", *grpo, "--probe", 1, "--overwrite", cwd=tmp_path)
    assert manifest(tmp_path, "final_rlm_lora")["shots"] == shots, done.stderr
    assert manifest(tmp_path, "final_rlm_lora")["settings"]["shots"] == 2
    models = ["--compare", "base", "sft_lora", "--eval-samples", 2, "--max-tokens", 8]
    succeed("evaluate.py", *models, cwd=tmp_path)
    card = (tmp_path / "runs/evaluate/comparison.md").read_text()
    assert "format think, 2 worked examples before the question" in card
    succeed("inference.py", "Calculate 1 + 2", "--max-tokens", 4, "--json", cwd=tmp_path)
    done = start("inference.py", "Calculate 1 + 2", "--shots", 16, cwd=tmp_path, forked=True)
    assert done.returncode == 2 and "--shots 16: with the instruction they take" in done.stderr
    assert done.stderr.count("\n") == 1
