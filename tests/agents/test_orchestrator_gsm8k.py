"""Graphs of agents for real GSM8K questions, with the real Qwen tokenizer and model shape."""

import csv
import json

import pytest

from tests.support.running import GSM8K, needs_real_data, succeed

pytestmark = [needs_real_data, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_two_steps_end_to_end(qwen, tmp_path):
    common = ["--task", "orchestrator", "--questions", "gsm8k", "--data", GSM8K, "--model", qwen]
    common += ["--eval-samples", 2, "--num-samples", 8, "--max-tokens", 24, "--agent-tokens", 8]
    common += ["--roles", "Plan.", "Solve it."]
    # Two steps of SFT, or the LoRA would end as it began: random weights write no graph.
    sft = ["--max-steps", 2, "--batch-size", 2]
    succeed("train_sft.py", *common, *sft, cwd=tmp_path, timeout=900)
    small = ["--questions-per-step", 2, "--group-size", 2, "--max-steps", 2, "--probe", 0]
    small += ["--kl-weight", 0.1, "--eval-every", 0]
    succeed("train_grpo.py", *common, *small, cwd=tmp_path, timeout=900)
    with open(tmp_path / "runs/grpo/log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    assert [row["step"] for row in log] == ["0", "1", "2"]
    assert {"graph_valid_fraction", "agent_tokens", "leak_fraction", "kl"} <= log[1].keys()
    validation = json.loads((tmp_path / "runs/grpo/validation.json").read_text())
    assert validation["questions"] == 2 and "added_value" in validation
