"""A calculator through the scripts: demonstrations that call, GRPO that calls, what is logged."""

import csv
import json

import pytest

from tests.support.running import rows, start, succeed

WORDS = ["--task", "word_problems", "--problem-scale", "5-9", "--max-tokens", 64]
TOOLS = ["--tools", "calculator", "--max-tool-calls", 3, "--tool-tokens", 12]


@pytest.mark.slow
@pytest.mark.ci
def test_a_calculator_in_both_stages(tmp_path):
    few = ["--num-samples", 64, "--eval-samples", 4]
    own = ["--backend", "own", "--epochs", 6, "--learning-rate", 6e-3]
    succeed("train_sft.py", *WORDS, *TOOLS, *few, *own, cwd=tmp_path)
    # With a KL term a step learns whether or not an answer is right.
    grpo = ["--questions-per-step", 4, "--group-size", 4, "--max-steps", 1, "--probe", 0]
    grpo += ["--kl-weight", 0.01]
    # The tools are those of the adapter.
    succeed("train_grpo.py", *WORDS, *few, *grpo, "--overwrite", cwd=tmp_path)
    (last,) = [row for row in rows(tmp_path / "runs/grpo/log.csv") if row["step"] == "1"]
    assert float(last["calls_mean"]) > 0.5 and float(last["tool_tokens"]) > 1
    assert 0 <= float(last["failed_call_fraction"]) < 1 and float(last["sampler_gap"]) < 1e-3
    lines = (tmp_path / "runs/grpo/rollouts.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    called = [record for record in found if record.get("calls")]
    assert called and all(sum(r["token_lengths"]) == len(r["text"]) for r in called)
    call = called[0]["calls"][0]
    assert called[0]["text"][call["written"] : call["end"]] == f"<result>{call['result']}</result>"
    manifest = json.loads((tmp_path / "weights/final_rlm_lora/manifest.json").read_text())
    assert manifest["settings"]["tools"] == ["calculator"]
    words = [*WORDS, "--models", "final_rlm_lora", "--eval-samples", 4]
    done = succeed("evaluate.py", *words, cwd=tmp_path)
    assert "right with / without" in done.stdout
    with open(tmp_path / "runs/evaluate/evaluation-final_rlm_lora.csv", newline="") as file:
        assert any("<result>" in row["text"] for row in csv.DictReader(file))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--tools", "abacus"], "tool abacus: unknown; use calculator"),
        (["--tools", "calculator", "--backend", "trl"], "not with --backend trl"),
        (["--tools", "calculator", "--engine", "vllm"], "use --engine own"),
        (["--tools", "calculator", "--task", "orchestrator"], "task orchestrator"),
        (["--max-tool-calls", "3"], "there are no tools"),
        (["--tool-file", "none.py"], "no such file"),
        (["--problem-scale", "9-5"], "not a range; use 1 to 50"),
    ],
)
def test_what_does_not_go_with_tools_is_told_at_once(tmp_path, words, told):
    done = start("train_grpo.py", *words, cwd=tmp_path, forked=True)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
