"""A few rows of one's own: both stages train on them, with a validation or, told so, without."""

import json

import pytest

from tests.support.running import ROOT, succeed

pytestmark = [pytest.mark.slow, pytest.mark.ci]

WITHOUT = "too few questions for a validation"


def write(folder, count: int):
    """Write `count` rows with solutions."""
    rows = [
        {"question": f"Calculate {i} + {i + 1}", "answer": 2 * i + 1, "solution": f"{i} + {i + 1}"}
        for i in range(count)
    ]
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--task", "jsonl", "--data", "mine.jsonl"]


@pytest.mark.parametrize("count", [1, 5, 33])
def test_sft_trains_on_them(tmp_path, count):
    words = write(tmp_path, count)
    done = succeed("train_sft.py", *words, "--max-steps", 1, "--max-tokens", 16, cwd=tmp_path)
    manifest = json.loads((tmp_path / "weights/sft_lora/manifest.json").read_text())
    told = "no validation" if count == 1 else f"of {manifest_count(manifest)} questions"
    assert (WITHOUT in done.stderr) == (count == 1) and told in done.stderr
    assert (tmp_path / "runs/sft/validation.csv").exists() == (count > 1)
    assert (tmp_path / "runs/sft/report.html").exists()


def manifest_count(manifest: dict) -> int:
    return manifest["scores"]["validation"]["questions"] if manifest["scores"] else 0


def test_grpo_without_a_validation_keeps_the_last_step(tmp_path):
    words = [*write(tmp_path, 1), "--adapter", ROOT / "weights/final_rlm_lora", "--resume", "never"]
    words += ["--questions-per-step", 1, "--group-size", 4, "--max-tokens", 24, "--probe", 1]
    words += ["--temperature", 2.0, "--rewards", "correctness=1,tag_count=1", "--early-stop"]
    done = succeed("train_grpo.py", *words, "--max-steps", 3, "--eval-every", 1, cwd=tmp_path)
    manifest = json.loads((tmp_path / "weights/final_rlm_lora/manifest.json").read_text())
    assert WITHOUT in done.stderr and manifest["step"] == 3 and manifest["scores"] == {}
    head = (tmp_path / "runs/grpo/log.csv").read_text().splitlines()[0]
    assert "validation_accuracy" not in head
    assert (tmp_path / "runs/grpo/report.html").exists()
