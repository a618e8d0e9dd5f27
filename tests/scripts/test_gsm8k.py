"""Real GSM8K text: with the real Qwen tokenizer and model shape, and with the tiny base."""

import csv
import json

import pytest

from tests.support.running import GSM8K, QWEN, ROOT, needs_real_data, succeed

pytestmark = [needs_real_data, pytest.mark.slow, pytest.mark.timeout(1800)]

TASK = ["--task", "gsm8k", "--data", GSM8K, "--eval-samples", 4]


def test_the_whole_way_with_the_qwen_shape(qwen, tmp_path):
    common = [*TASK, "--model", qwen, "--max-tokens", 48, "--num-samples", 8]
    succeed("train_sft.py", *common, "--max-steps", 2, "--batch-size", 2, cwd=tmp_path)
    small = ["--questions-per-step", 2, "--group-size", 4, "--max-steps", 2, "--probe", 0]
    shaped = ["--rewards", "correctness=1,tag_count=0.1"]
    succeed("train_grpo.py", *common, *small, *shaped, "--eval-every", 0, cwd=tmp_path)
    done = succeed("evaluate.py", *common[:-2], "--models", "weights/final_rlm_lora", "--json",
                   cwd=tmp_path)  # fmt: skip
    (summary,) = json.loads(done.stdout)
    assert summary["questions"] == 4 and summary["mean_tokens"] <= 48
    with open(tmp_path / "runs/grpo/log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    manifest = json.loads((tmp_path / "weights/final_rlm_lora/manifest.json").read_text())
    assert manifest["task"] == "gsm8k"


@pytest.mark.ci
def test_real_token_ids():
    from transformers import AutoTokenizer

    import data

    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    example = data.load_examples("gsm8k", "train", n=1, data=str(GSM8K))[0]
    tokens = data.sft_tokens(example, tokenizer, "think")
    assert tokens["prompt_ids"][:2] == [151644, 8948]  # <|im_start|>system
    assert tokens["completion_ids"][-1] == 151645  # <|im_end|>
    assert "<<" not in tokenizer.decode(tokens["completion_ids"])


def test_twenty_steps_of_the_same_text_with_the_tiny_base(tmp_path):
    common = [*TASK, "--model", ROOT / "weights/tiny_base", "--num-samples", 200]
    common += ["--max-tokens", 48]
    succeed("train_sft.py", *common, "--max-steps", 20, cwd=tmp_path)
    small = ["--questions-per-step", 2, "--group-size", 4, "--max-steps", 20, "--probe", 2]
    succeed("train_grpo.py", *common, *small, "--eval-every", 0, cwd=tmp_path)
    with open(tmp_path / "runs/grpo/log.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 21, "the start and 20 steps"
