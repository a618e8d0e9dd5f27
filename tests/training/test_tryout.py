"""`train_grpo.py --check` as a user runs it, its short form in a training, how many are tried."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import config
from rlm.learner import rehearsal
from rlm.models.policy import Policy
from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts.batch import Batch
from tests.support.running import ROOT, start, succeed
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model
from training import tryout
from training.stage import Stage

TINY = ROOT / "weights" / "tiny_base"
SHIPPED = ROOT / "weights" / "final_rlm_lora"
LABELS = ["probe", "lengths", "reading", "groups", "speed", "memory", "time"]


def slow_ci(test):
    return pytest.mark.slow(pytest.mark.ci(test))


def files(folder) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(scope="module", params=[SHIPPED, "none"], ids=["shipped", "plain"])
def checked(request, tmp_path_factory):
    """The adapter, the finished process, and what it wrote."""
    folder = tmp_path_factory.mktemp("check")
    words = ["--check", "--model", TINY, "--adapter", request.param, "--eval-samples", 20]
    done = start("train_grpo.py", *words, cwd=folder, forked=True)
    return request.param, done, files(folder)


@slow_ci
def test_it_tells_everything_and_decides(checked):
    adapter, done, _ = checked
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:7]] == LABELS, done.stdout + done.stderr
    if adapter == SHIPPED:
        assert (lines[7:], done.returncode) == (["GO"], 0)
        assert lines[0].startswith("probe    8 questions x 8 samples, reward 0.")
    else:
        assert lines[7] == "NO-GO" and done.returncode == 3
        assert "train_sft.py" in lines[8] and "--format" in lines[8]
        assert "nothing to learn" in lines[9] and len(lines) == 10
        assert lines[0].startswith("probe    32 questions x 8 samples, reward 0.000")
        assert "unreadable 100%" in lines[2] and "all wrong 100%" in lines[3]


@slow_ci
def test_it_writes_nothing(checked):
    assert checked[2] == {}


@pytest.mark.slow
def test_a_probe_at_the_start_is_three_lines_and_changes_no_bit(tmp_path):
    words = ["--model", TINY, "--adapter", SHIPPED, "--eval-samples", 4, "--max-steps", 1]
    words += ["--questions-per-step", 4, "--group-size", 4, "--max-tokens", 100]
    words += ["--digits", 3, "--rewards", "correctness=1,tag_count=1", "--seed", 3]
    said = []
    for probe in (0, 2):
        (tmp_path / str(probe)).mkdir()
        more = ["--probe", probe, "--token-budget", 1024]
        done = succeed("train_grpo.py", *words, *more, cwd=tmp_path / str(probe))
        said.append([x for x in done.stderr.splitlines() if x.startswith(("probe", "warning"))])
    assert said[0] == []
    # 8 completions say little, which is a warning.
    assert [line.split(":")[0] for line in said[1]][:3] == ["probe"] * 3
    assert all(line.startswith("warning: ") for line in said[1][3:])
    one, other = (
        load_file(tmp_path / f"{probe}/runs/grpo/adapter/adapter_model.safetensors")
        for probe in (0, 2)
    )
    assert all(one[name].equal(other[name]) for name in one) and one.keys() == other.keys()
    trained = [(tmp_path / f"{probe}/runs/grpo/rollouts.jsonl").read_text() for probe in (0, 2)]
    assert trained[0] == trained[1]


@slow_ci
def test_a_check_without_questions_is_one_line():
    done = start("train_grpo.py", "--check", "--probe", 0, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: --probe 0: --check has to try some; use 1 or more\n"


@slow_ci
def test_the_script_of_both_stages_does_not_take_it(tmp_path):
    (tmp_path / "c.yaml").write_text("grpo: {check_only: true}\n")
    done = start("train.py", "--config", "c.yaml", "--model", TINY, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and "only train_grpo.py" in done.stderr
    assert done.stderr.count("\n") == 1 and "c.yaml" in done.stderr


NO_TOOLS = SimpleNamespace(toolbox=None)  # a task of which nothing else is asked


def stage(*words) -> Stage:
    settings = config.load(config.GRPOSettings, ["--adapter", "none", "--group-size", "2", *words])
    policy = Policy(tiny_lora(tiny_model()), byte_tokenizer(), "", {})
    return Stage(settings, policy, SimpleNamespace(context_tokens=100), None, NO_TOOLS)


def sampler(*rewards: tuple[float, float], seen: list):
    """A `sample` of groups with these rewards, in the order in which questions are asked."""
    rest = iter(rewards)

    def sample(engine, policy, examples, settings, seed):
        seen.append((seed, [e.id for e in examples]))
        groups, scores = [], []
        for pair in [next(rest) for _ in examples]:
            groups.append([Rollout([1] * n, [-1.0] * n, "x", "stop") for n in (3, 5)])
            groups[-1][0] = Rollout([1] * 3, [-1.0] * 3, "x", "length" if pair[0] else "stop")
            scores.append([Score(r, {"correctness": r}, None if r else "no_close") for r in pair])
        return Batch(examples, [Prompt([1] * (7 + len(e.id))) for e in examples], groups, scores)

    return sample


EXAMPLES = [Example(f"q{i}", "1 + 1", "2") for i in range(5)]


def test_more_questions_are_tried_until_a_group_teaches():
    seen = []
    sample = sampler((0, 0), (0, 0), (0, 0), (1, 0), (0, 0), seen=seen)
    probe, learning = tryout.measure(stage("--probe", "2"), EXAMPLES, 300, sample, rounds=4)
    assert seen == [(("probe", 0), ["q0", "q1"]), (("probe", 1), ["q2", "q3"])]
    assert (probe.questions, probe.group_size, probe.live) == (4, 2, 0.25)
    # One of eight is right; it was cut off, the seven others came to an end without an answer.
    assert probe.reasons == {"no_close": 7 / 8} and probe.unreadable_ended == 1.0
    assert probe.truncated == probe.reward == 1 / 8
    assert (probe.prompt_tokens, probe.completion_tokens) == (36, 32)
    assert (probe.p50_tokens, probe.p95_tokens, probe.room_tokens) == (3, 5, 91)
    # One completion of 160 tokens is all that 300 hold: 159 behind a prompt of 9.
    assert learning.tokens == 9 + 159 and learning.asked_tokens == 300


@pytest.mark.parametrize(("room", "found"), [(500, 500), (1500, 1000), (8000, 4000), (0, 256)])
def test_what_the_trial_found_to_fit_is_what_the_run_uses(monkeypatch, room, found):
    tried = []

    def learn(groups, model, **options):
        tokens = rehearsal.size(groups)
        tried.append(tokens)
        if tokens > room and len(groups[0][1][0]) > 2:  # the warm-up is short
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rehearsal, "learn", learn)
    # Large enough for 4,000 tokens of completions of 40.
    begun = stage("--probe", "1", "--max-tokens", "40", "--questions-per-step", "100")
    engine = SimpleNamespace(context_tokens=100, generate=lambda *words, **more: None)
    task = SimpleNamespace(prompt=lambda question, **asks: question, toolbox=None)
    said = []
    run = SimpleNamespace(info=said.append)
    begun = replace(begun, engine=engine, task=task, run=run)
    budget = SimpleNamespace(tokens=4000)
    tryout.brief(begun, EXAMPLES, [], budget, sampler((1, 0), seen=[]))
    assert budget.tokens == found
    told = f"going on with micro-batches of {found} tokens"
    assert (said[-1] == told) == (found < 4000) and said.count(told) == (found < 4000)


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(tryout.os, "getloadavg", lambda: (99.0, 0, 0))
    monkeypatch.setattr(tryout.os, "cpu_count", lambda: 2)
    sample = sampler((1, 0), (1, 0), seen=[])
    probe, _ = tryout.measure(stage("--probe", "2"), EXAMPLES, 300, sample, rounds=1)
    assert "load 99.0 on 2 cores" in probe.busy
    # What samples is another program: neither its time nor the load says anything of it.
    elsewhere = stage("--probe", "2", "--vllm-url", "http://127.0.0.1:9")
    sample = sampler((1, 0), (1, 0), seen=[])
    probe, _ = tryout.measure(elsewhere, EXAMPLES, 300, sample, rounds=1)
    assert probe.busy == ""


def test_a_warm_up_is_two_tokens_of_one_question():
    asked = []
    engine = SimpleNamespace(generate=lambda *words, **more: asked.append((words, more)))
    task = SimpleNamespace(prompt=lambda question: question, toolbox=None)
    settings = config.load(config.GRPOSettings, ["--adapter", "none", "--temperature", "0.5"])
    tryout.warm_up(Stage(settings, None, engine, None, task), EXAMPLES[0])
    ((prompts, samples, sampling), more) = asked[0]
    assert (prompts, samples, sampling.max_tokens) == (["1 + 1"], 1, 2)
    assert sampling.temperature == 0.5 and more == {"seed": 0} and len(asked) == 1


def test_questions_end_before_the_rounds_do():
    seen = []
    sample = sampler(*[(0, 0)] * 5, seen=seen)
    probe, _ = tryout.measure(stage("--probe", "2"), EXAMPLES, 300, sample, rounds=4)
    assert [ids for _, ids in seen] == [["q0", "q1"], ["q2", "q3"], ["q4"]]
    assert probe.questions == 5 and probe.live == 0


def test_one_round_is_one():
    seen = []
    tryout.measure(
        stage("--probe", "2"), EXAMPLES, 300, sampler(*[(0, 0)] * 2, seen=seen), rounds=1
    )
    assert len(seen) == 1


def test_the_plan_is_that_of_the_settings():
    words = ["--max-steps", "9", "--eval-every", "4", "--kl-weight", "0.1", "--quantize", "4bit"]
    settings = config.load(config.GRPOSettings, ["--adapter", "none", *words])
    plan = tryout.plan(settings, 7, tiny_model())
    assert (plan.steps, plan.eval_every, plan.validation_questions) == (9, 4, 7)
    assert plan.with_kl and not plan.can_quantize
