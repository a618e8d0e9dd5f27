"""A calculator through the scripts: demonstrations that call, GRPO that calls, what is logged."""

import csv
import json
from types import SimpleNamespace

import pytest

import inference
from rlm.answers.formats import get_format
from rlm.engine.requests import Event
from rlm.records import Prompt, Rollout, ToolCall
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


CALL, RESULT = "<calc>8 * 9</calc>", "<result>72</result>"
BEFORE, AFTER = "<think>\n8 * 9 = ", ", so it is more\n</think>\n8"


def reasoner() -> inference.Reasoner:
    """One whose model calls once, and answers less than the result."""
    text, start = BEFORE + CALL + RESULT + AFTER, len(BEFORE)
    written, end = start + len(CALL), start + len(CALL + RESULT)
    call = ToolCall("calculator", '{"expression": "8 * 9"}', "72", None, 1, 1, start, written, end)
    rollout = Rollout([1, 2, 3], [0.0] * 3, text, "stop", calls=(call,))
    events = [
        Event(1, 1, BEFORE + CALL[:6]),
        Event(1, 1, CALL[6:-1]),
        Event(1, None, CALL[-1:] + RESULT, call=call),
        Event(1, 3, AFTER, rollout, "stop"),
    ]
    made = object.__new__(inference.Reasoner)
    made.task = SimpleNamespace(prompt=lambda question, kind: Prompt([1]))
    made.engine = SimpleNamespace(events=lambda prompt, sampling, *, seed: iter(events))
    made.format, made.kind, made.seed, made.sampling = get_format("think"), "number", 0, None
    return made


def test_inference_prints_calls_apart(capsys):
    told = inference.answer_one(reasoner(), "How much?", False)
    assert told["answer"] == "8" and told["own_text"] == BEFORE + CALL + AFTER
    assert capsys.readouterr().out == (
        "Question: How much?\n\nReasoning\n8 * 9 = <calc>8 * 9</calc>\n  -> calculator: 72\n"
        ", so it is more\nAnswer\n8\n\n"
    )
    inference.answer_one(reasoner(), "How much?", True)
    found = json.loads(capsys.readouterr().out)
    assert found == told
    (call,) = found["tool_calls"]
    assert (call["name"], call["result"], call["failure"]) == ("calculator", "72", None)
    assert found["reasoning"][call["start"] : call["end"]] == CALL + RESULT
