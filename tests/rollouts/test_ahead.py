"""One step ahead: what is asked when, which weights answered, and a run that goes on with it."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

import config
import data
import train_grpo
from rlm.errors import RunError
from rlm.learner.logprobs import ReferencePolicy, pack, token_logprobs
from rlm.learner.token_budget import TokenBudget
from rlm.models.loading import load_base
from rlm.models.policy import Policy
from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts import vllm_server
from rlm.rollouts.ahead import AheadEngine
from rlm.rollouts.batch import Batch
from rlm.run.stopping import StopSignal
from tests.learner.test_importance import Steps
from tests.rollouts.test_vllm_engine import PROMPTS, SAMPLING, Copy, learn, opened
from tests.support.running import ROOT, rows
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model
from training.stage import Stage

SECONDS = 60  # that a thread waits at most for what has to happen beside it


def packed(groups):
    return pack([(p.ids, [r.ids for r in g]) for p, g in zip(PROMPTS, groups, strict=True)])


def test_the_adapter_is_exchanged_when_the_answers_are_there(tmp_path):
    model, backend, engine = opened(tmp_path, kind=AheadEngine)
    events, learned = [], threading.Event()
    complete, load = backend.complete, backend.load

    def answer(requests, version):
        ahead = threading.current_thread() is not threading.main_thread()
        events.append("asked ahead" if ahead else "canary")
        assert not ahead or learned.wait(SECONDS)
        found = complete(requests, version)
        events.extend(["answered"] * ahead)
        return found

    backend.complete = answer
    backend.load = lambda version, folder: events.append("load") or load(version, folder)
    plain = engine.generate(PROMPTS, 3, SAMPLING, seed=7)
    events.clear()
    with torch.no_grad():
        before, _ = token_logprobs(model, packed(plain), vocab_size=SIZE)

    engine.generate_ahead(PROMPTS, 3, SAMPLING, seed=7)
    learn(model)
    events.append("learned")
    learned.set()
    engine.sync(1)
    assert events.index("learned") < events.index("answered")
    assert [e for e in events if e not in ("asked ahead", "learned")] == [
        "answered", "load", "canary",
    ]  # fmt: skip

    found = engine.generate(PROMPTS, 3, SAMPLING, seed=7)
    assert found == plain and engine.version == 1 and len(events) == 5, "nobody is asked again"
    again = engine.sampler.logprobs(packed(found), vocab_size=SIZE)
    torch.testing.assert_close(again, before, atol=1e-6, rtol=0)
    with torch.no_grad():
        now, _ = token_logprobs(model, packed(found), vocab_size=SIZE)
    assert (now - before).abs().max() > 0.01
    fresh = engine.generate(PROMPTS, 3, SAMPLING, seed=8)
    assert engine.sampler is None and {r.version for group in fresh for r in group} == {1}


def test_what_fails_in_the_thread_is_raised_at_the_end_of_the_step(tmp_path):
    _, backend, engine = opened(tmp_path, kind=AheadEngine)

    def gone(requests, version):
        raise RunError("copy does not answer")

    backend.complete = gone
    engine.generate_ahead(PROMPTS, 3, SAMPLING, seed=7)
    with pytest.raises(RunError, match=r"^copy does not answer$"):
        engine.sync(1)
    assert engine.version == 0 and engine.state() == {"ahead": None}


def test_a_first_signal_waits_for_the_answers_and_a_second_does_not(tmp_path):
    _, backend, engine = opened(tmp_path, kind=AheadEngine)
    complete, waiting = backend.complete, threading.Event()

    def answer(requests, version):
        os.kill(os.getpid(), signal.SIGINT)
        assert len(requests) == 2 or waiting.wait(SECONDS)
        return complete(requests, version)

    backend.complete = answer
    with StopSignal() as stopper:
        engine.generate_ahead(PROMPTS, 1, SAMPLING, seed=7)
        engine.wait()
        assert stopper.requested == 130 and len(engine.state()["ahead"]["groups"]) == 2
        engine.generate(PROMPTS, 1, SAMPLING, seed=7)
        with pytest.raises(KeyboardInterrupt):  # while the server still does not answer
            engine.generate_ahead(PROMPTS, 2, SAMPLING, seed=8)
            engine.wait()
        assert not waiting.is_set()
        waiting.set()


def test_the_ratio_is_to_the_weights_that_sampled_and_the_weight_to_their_kernels():
    model = tiny_lora(tiny_model())
    prompt, ids = Prompt([65, 66, 67]), [[70, 71], [80, 81, 82, 83]]

    def logprobs():
        with torch.no_grad():
            return token_logprobs(model, pack([(prompt.ids, ids)]), vocab_size=SIZE)[0]

    sampler, old = ReferencePolicy(model), logprobs()
    learn(model, 0.02)
    now = logprobs()
    # The engine found each token exp(-0.4) times as likely as the learner did with its weights.
    engine = (old - 0.4).split([2, 4])
    group = [Rollout(i, p.tolist(), "", "stop") for i, p in zip(ids, engine, strict=True)]
    batch = Batch([Example("1", "", "0")], [prompt], [group], [[Score(1.0), Score(0.0)]])
    given = {"clip_low": 0.2, "clip_high": 0.2, "importance_cap": 9.0}
    steps, settings = Steps(model), config.GRPOSettings(adapter="none", **given)
    metrics = train_grpo.update(
        Policy(model, byte_tokenizer(), "", {}), steps, batch, torch.tensor([[1.0, -1.0]]),
        settings, ReferencePolicy(model), TokenBudget(model, SIZE, 1024), sampler,
    )  # fmt: skip
    ratio, advantage = (now - old).exp(), torch.tensor([1.0] * 2 + [-1.0] * 4)
    terms = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    assert (ratio - 1).abs().max() > 0.02
    assert steps.losses == [pytest.approx((1.4918247 * terms.sum() / 6).item(), rel=1e-4)]
    assert metrics["importance_mean"] == pytest.approx(1.4918247, rel=1e-5)
    assert metrics["ratio_shift"] == pytest.approx((ratio - 1).mean().item(), rel=1e-4)


def test_the_questions_ahead_are_not_given_out():
    examples = [Example(str(i), f"{i}?", str(i)) for i in range(7)]
    for curriculum in (False, True):
        settings = config.GRPOSettings(adapter="none", questions_per_step=3, curriculum=curriculum)
        questions = data.batches(examples, settings)
        for _ in range(3):
            state = questions.state()
            ahead = questions.peek()
            assert questions.state() == state and questions.peek() == ahead
            assert next(questions) == ahead


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit):
        config.load(config.GRPOSettings, ["--adapter", "none", *words])
    return capsys.readouterr().err


def test_settings(capsys):
    served = ["--vllm-url", "http://a:1", "--ahead", "1"]
    assert "--ahead 1: only a vLLM server" in refused(capsys, "--ahead", "1")
    assert "only a vLLM server" in refused(capsys, "--engine", "vllm", "--ahead", "1")
    told = refused(capsys, *served, "--dynamic-sampling", "2")
    assert told.startswith("error: --ahead 1: not with --dynamic-sampling")
    refused(capsys, *served[:2], "--ahead", "2")
    found = config.load(config.GRPOSettings, ["--adapter", "none", *served, "--curriculum"])
    assert found.importance_cap == 2.0 and not found.may_be_longer()
    assert config.GRPOSettings(adapter="none").may_be_longer()


TRAINING = [
    "--model", ROOT / "weights/tiny_base", "--adapter", ROOT / "weights/final_rlm_lora",
    "--vllm-url", "http://a:1", "--ahead", 1, "--questions-per-step", 2, "--group-size", 4,
    "--max-tokens", 96, "--temperature", 1.3, "--max-steps", 3, "--eval-samples", 1,
    "--eval-every", 2, "--num-samples", 40, "--probe", 0, "--run", "r", "--output", "out",
    "--learning-rate", 0.003, "--rewards", "correctness=1,length=1", "--overlong-tokens", 90,
    "--save-every", 1, "--threads", 1,
]  # fmt: skip


class Served(Copy):
    """What stands for the server: it answers ahead only while something is learned."""

    def __init__(self, url, *, context, rank):
        super().__init__(*load_base(str(ROOT / "weights/tiny_base"), device="cpu"))
        self.name = url

    def load(self, version, folder):
        with torch.random.fork_rng():  # a server draws from numbers of its own
            super().load(version, folder)

    def complete(self, requests, version):
        if threading.current_thread() is not threading.main_thread():
            BEGUN.set()
            assert LEARNING.wait(SECONDS), "nothing is learned while this is sampled"
            LEARNING.clear()
        return super().complete(requests, version)


BEGUN, LEARNING = threading.Event(), threading.Event()


def trained(folder: Path) -> dict[str, bytes]:
    """Train in a folder; return the bytes of what must not depend on stops.

    Nothing is saved at the end: the last checkpoint has the weights.
    """
    train_grpo.main([*map(str, TRAINING)])
    place = folder / "runs/r"
    files = [place / name for name in ("log.csv", "rollouts.jsonl")]
    files += sorted(file for file in (place / "checkpoints/step-000003").iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.ci
def test_a_training_one_step_ahead_and_one_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vllm_server, "ServedVllm", Served)
    monkeypatch.setattr(Stage, "finish", lambda stage, *found, **facts: stage.engine.close())
    update, sampled = train_grpo.update, []

    def beside(*arguments):
        sampled.append(arguments[-1] is not None)
        last = len(sampled) >= 3
        assert last or BEGUN.wait(SECONDS), "nothing is sampled while this is learned"
        BEGUN.clear()
        LEARNING.set()
        return update(*arguments)

    monkeypatch.setattr(train_grpo, "update", beside)
    whole = trained(tmp_path)
    log = rows(tmp_path / "runs/r/log.csv")[1:]
    assert [row["staleness"] for row in log] == ["0.0", "1.0", "1.0"]
    assert sampled == [False, True, True]
    learned = [row for row in log if row["loss"]]
    assert len(learned) > 1 and float(learned[-1]["ratio_shift"]) != 0.0
    for row in learned:  # to the weights that sampled, whose kernels are the learner's here
        assert float(row["importance_mean"]) > 0.999 and float(row["importance_max"]) < 1.001

    # Killed before the third checkpoint: the third step's answers lie in the second one.
    shutil.rmtree(tmp_path / "runs/r/checkpoints/step-000003")
    torch.manual_seed(5)
    assert whole == trained(tmp_path) and sampled == [False, True, True, True]
