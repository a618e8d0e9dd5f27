"""train_grpo.py --backend trl: what TRL's trainer is given, what it hands back, what it leaves."""

import csv
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from rlm.engine.engine import Engine
from rlm.learner.logprobs import pack, token_logprobs
from rlm.models.policy import Policy
from rlm.records import Example, Prompt, Score
from rlm.trl.grpo import Questions, train
from rlm.trl.options import config_fields, read_options
from tests.support.running import ROOT, start, succeed
from tests.support.tiny_models import EOS, byte_tokenizer, tiny_lora, tiny_model

TINY = ROOT / "weights" / "tiny_base"
PROMPTS = [Prompt([5, 6, 7], "<t>"), Prompt([8, 9]), Prompt([9, 5, 6, 8])]
EXAMPLES = [Example(str(i), f"question {i}", "0") for i in range(3)]
FIELDS = {
    "steps": 3, "questions": 2, "group_size": 4, "updates": 1, "rows": 4, "temperature": 1.0,
    "max_tokens": 6, "learning_rate": 0.1, "max_grad_norm": 1.0, "loss": "dapo", "clip_low": 0.2,
    "clip_high": 0.28, "kl_weight": 0.0, "advantage_scale": "group", "keep_truncated": True,
    "seed": 0, "options": {},
}  # fmt: skip


def policy(dtype=torch.float32) -> Policy:
    return Policy(tiny_lora(tiny_model().to(dtype)), byte_tokenizer(), "tiny", {})


def trained(
    learner, folder, *, reward=None, rate=lambda step: 0.02, stop_at=None, stops=(), **more
):
    """Return what each batch handed on, after a training in `folder`."""
    seen = []

    def score(examples, groups, step):
        return [
            [Score(float((reward or even)(r)), {"step": step}) for r in group] for group in groups
        ]

    def after(step, batch, advantages, row):
        seen.append((step, batch, advantages, row))
        return step == stop_at

    order = [i % 3 for i in range(2 * more.get("steps", FIELDS["steps"]))]
    code = train(
        learner, Questions(EXAMPLES, PROMPTS, order),
        config_fields(**FIELDS | more), score=score, rate=rate, stop_ids=frozenset({EOS, *stops}),
        folder=str(folder), after_batch=after,
    )  # fmt: skip
    assert code == 0
    return seen


def even(rollout) -> bool:
    return sum(rollout.ids) % 2 == 0


def weights(learner: Policy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.model.named_parameters() if p.requires_grad}


def test_each_batch_asks_our_questions_by_our_ids(tmp_path):
    seen = trained(policy(), tmp_path)
    assert [step for step, *_ in seen] == [1, 2, 3]
    asked = [[example.id for example in batch.examples] for _, batch, _, _ in seen]
    assert asked == [["0", "1"], ["2", "0"], ["1", "2"]]
    for step, batch, advantages, row in seen:
        assert batch.prompts == [PROMPTS[int(e.id)] for e in batch.examples]
        assert advantages.shape == (2, 4) == batch.rewards().shape
        assert {s.parts["step"] for group in batch.scores for s in group} == {step}
        for prompt, group in zip(batch.prompts, batch.groups, strict=True):
            for rollout in group:
                ended = rollout.ids[-1] == EOS
                assert rollout.finish == ("stop" if ended else "length")
                assert ended or len(rollout.ids) == 6
                assert EOS not in rollout.ids[:-1]
                assert rollout.text.startswith(prompt.prefill)
        assert row["gradient_norm"] > 0 and row["learn_seconds"] > 0 < row["generate_seconds"]


def test_every_one_of_our_stop_ids_ends_a_completion(tmp_path):
    stops = set(range(128)) | {EOS}
    ((_, batch, _, _),) = trained(policy(), tmp_path, steps=1, stops=stops, max_tokens=12)
    rollouts = [r for group in batch.groups for r in group]
    assert {r.finish for r in rollouts} == {"stop"}  # 12 tokens without one: 1 in 4,000
    assert all(r.ids[-1] in stops and not stops & set(r.ids[:-1]) for r in rollouts)
    assert all(chr(r.ids[-1]) not in r.text.removeprefix("<t>")[-1:] for r in rollouts)


def test_the_prompt_that_the_model_sees_is_ours_token_by_token(tmp_path):
    learner = policy()
    shown = []
    generate = learner.model.generate

    def watched(**inputs):
        shown.append([row[mask.bool()].tolist() for row, mask in
                      zip(inputs["input_ids"], inputs["attention_mask"], strict=True)])  # fmt: skip
        return generate(**inputs)

    learner.model.generate = watched
    trained(learner, tmp_path, steps=1)
    assert shown == [[PROMPTS[0].ids] * 4 + [PROMPTS[1].ids] * 4]


def test_the_rate_is_that_of_the_batch_whatever_its_updates(tmp_path):
    rates = {1: 0.01, 2: 0.03, 3: 0.02}
    for updates in (1, 2):
        seen = trained(policy(), tmp_path, rate=rates.__getitem__, updates=updates)
        assert [row["learning_rate"] for *_, row in seen] == [0.01, 0.03, 0.02]
        assert [step for step, *_ in seen] == [1, 2, 3]


def test_an_update_equals_ours_on_the_same_rollouts(tmp_path):
    """AdamW's first step too: betas, clipping and rate are ours, not the trainer's defaults."""
    from functools import partial

    import config
    import train_grpo
    from rlm.learner.logprobs import ReferencePolicy
    from rlm.learner.optimizer import Optimizer
    from rlm.learner.token_budget import TokenBudget
    from rlm.rollouts.batch import Batch

    theirs, mine = policy(), policy()
    seen = trained(theirs, tmp_path, steps=2, rate=lambda step: 0.01 * step)
    optimizer = Optimizer(mine.model, max_grad_norm=1.0)
    budget = TokenBudget(mine.model, len(mine.tokenizer), 64)
    settings = config.GRPOSettings(model=str(TINY), adapter="none", max_tokens=6)
    learn = partial(train_grpo.update, mine, optimizer, settings=settings,
                    reference=ReferencePolicy(mine.model), budget=budget)  # fmt: skip
    for step, batch, advantages, row in seen:
        groups = [[_with_logprobs(r) for r in group] for group in batch.groups]
        optimizer.learning_rate = 0.01 * step
        found = learn(Batch(batch.examples, batch.prompts, groups, batch.scores), advantages)
        assert found["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert found["gradient_norm"] == pytest.approx(row["gradient_norm"], rel=1e-4)
    after = weights(theirs)
    for name, weight in weights(mine).items():
        assert (weight - after[name]).abs().max() < 2e-5, name


def _with_logprobs(rollout):
    from dataclasses import replace

    return replace(rollout, logprobs=[0.0] * len(rollout.ids))


def test_what_is_rewarded_becomes_likelier(tmp_path):
    """Broken if a reward goes to another completion, or the advantage has the wrong sign."""
    learner, before = policy(), policy()
    ((_, batch, advantages, _),) = trained(learner, tmp_path, steps=1, rate=lambda step: 1e-3)
    rewards = batch.rewards()
    better = rewards - rewards.mean(1, keepdim=True)
    assert (advantages * better >= 0).all() and advantages.abs().max() > 0.5
    packed = pack([batch.ids(b) for b in range(2)])
    with torch.no_grad():
        now, then = (token_logprobs(p.model.eval(), packed)[0] for p in (learner, before))
    # A small step up the gradient of sum A log p, A the rewards' own, not TRL's.
    assert ((now - then) * packed.per_token(better.flatten())).sum() > 1e-3


@pytest.mark.parametrize(
    "more", [{"kl_weight": 0.1}, {"options": {"gradient_checkpointing": True}}]
)
def test_the_model_is_left_as_it_was_given(more, tmp_path):
    learner = policy()
    before, names = weights(learner), set(dict(learner.model.named_modules()))
    seen = trained(learner, tmp_path, **more)
    assert ("kl" in seen[0][3]) == ("kl_weight" in more)
    assert set(weights(learner)) == set(before) and set(learner.model.peft_config) == {"default"}
    assert set(dict(learner.model.named_modules())) == names
    assert any((before[n] != w).any() for n, w in weights(learner).items())
    assert "forward" not in vars(learner.model.get_base_model())
    # The engine validates it in between and at the end.
    from rlm.engine.engine import Sampling

    engine = Engine(learner.model, learner.tokenizer)
    assert engine.generate(PROMPTS[:1], 1, Sampling(max_tokens=3), seed=0)


def test_bfloat16_trains_and_leaves_no_autocast_behind(tmp_path):
    learner = policy(torch.bfloat16)
    trained(learner, tmp_path, steps=1)
    assert "forward" not in vars(learner.model) or not hasattr(learner.model.forward, "__wrapped__")
    assert {w.dtype for w in weights(learner).values()} == {torch.float32}


def test_rows_past_the_tokenizers_vocabulary_are_never_sampled(tmp_path):
    learner = policy()
    size = len(learner.tokenizer)
    model = learner.model.get_base_model()
    assert model.get_output_embeddings().weight.shape[0] >= size
    model.resize_token_embeddings(size + 40, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[size:] = 0.0
        model.get_output_embeddings().weight[:size] *= 0.0  # all equally likely
    seen = trained(learner, tmp_path, steps=2)
    assert all(max(r.ids) < size for _, b, *_ in seen for group in b.groups for r in group)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "sapo", "sapo_temperature_pos": 1.2, "top_p": 0.9, "top_k": 50, "min_p": 0.1},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "repetition_penalty": 1.1},
        {"loss_type": "vespo", "vespo_k_pos": 1.5, "pad_to_multiple_of": 4},
        {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef": 0.01, "delta": 2.0},
        {"top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.5,
         "use_bias_correction_kl": False, "torch_empty_cache_steps": 2},
    ],
)  # fmt: skip
def test_trls_own_options_train(options, tmp_path):
    options = read_options(options)
    learner = policy()
    before = weights(learner)
    seen = trained(learner, tmp_path, steps=1, options=options, kl_weight=0.01)
    assert any((before[n] != w).any() for n, w in weights(learner).items())
    assert ("entropy_coef" in seen[0][3]) == ("entropy_coef" in options)


def test_an_end_asked_for_is_the_end(tmp_path):
    assert [step for step, *_ in trained(policy(), tmp_path, stop_at=2)] == [1, 2]


def test_an_update_of_nan_is_left_out(tmp_path):
    learner = policy()
    before = weights(learner)
    weight = next(p for p in learner.model.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("nan"))
    seen = trained(learner, tmp_path, steps=1)
    assert not math.isfinite(seen[0][3]["gradient_norm"])
    assert all((before[n] == w).all() for n, w in weights(learner).items())


# --- the script


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


SMALL = ["--num-samples", 16, "--eval-samples", 4, "--max-tokens", 48, "--model", TINY]
STEPS = ["--max-steps", 2, "--questions-per-step", 4, "--group-size", 4]


@pytest.mark.slow
def test_the_script_leaves_what_our_own_loop_leaves(tmp_path):
    succeed("train_sft.py", *SMALL, "--max-steps", 30, cwd=tmp_path)
    shaped = ["--rewards", "correctness=1,tag_count=0.5", "--kl-weight", 0.01]
    words = [*SMALL, *STEPS, *shaped, "--learning-rate", 0.01]
    options = ["--trl-options", '{"per_device_train_batch_size": 4}']
    for name in ("own", "trl"):
        own = options if name == "trl" else ["--probe", 0, "--save-every", 0]
        place = ["--backend", name, "--run", name, "--output", f"weights/{name}"]
        succeed("train_grpo.py", *words, *own, *place, cwd=tmp_path)
    own, theirs = (rows(tmp_path / f"runs/{name}/log.csv") for name in ("own", "trl"))
    assert [row["step"] for row in theirs] == ["0", "1", "2"] == [row["step"] for row in own]
    # What only our learner knows.
    assert set(own[0]) - set(theirs[0]) <= {"sampler_gap", "ratio_shift"} | {
        name for name in own[0] if name.startswith("unreadable_")
    }
    assert theirs[0]["validation_accuracy"] == own[0]["validation_accuracy"] != ""
    assert theirs[2]["validation_accuracy"] != "" and float(theirs[1]["gradient_norm"]) > 0
    files = {name: sorted(p.name for p in (tmp_path / f"runs/{name}").iterdir()) for name in
             ("own", "trl")}  # fmt: skip
    assert files["own"] == files["trl"], "no checkpoint, no card of TRL's"
    first = [json.loads(line) for line in (tmp_path / "runs/trl/rollouts.jsonl").open()]
    other = [json.loads(line) for line in (tmp_path / "runs/own/rollouts.jsonl").open()]
    assert len(first) == 2 * 4 * 4
    assert [r["id"] for r in first] == [r["id"] for r in other], "the same questions"
    assert set(other[0]) - set(first[0]) == {"token_lengths", "logprobs"}
    manifests = [json.loads((tmp_path / f"weights/{n}/manifest.json").read_text()) for n in files]
    assert manifests[0].keys() == manifests[1].keys() and manifests[1]["proof"]
    assert manifests[1]["settings"]["backend"] == "trl"
    before = load_file(tmp_path / "weights/sft_lora/adapter_model.safetensors")
    after = load_file(tmp_path / "weights/trl/adapter_model.safetensors")
    assert before.keys() == after.keys()
    done = succeed("evaluate.py", "--models", "weights/trl", "--eval-samples", 2, "--json",
                   "--max-tokens", 48, "--model", TINY, cwd=tmp_path)  # fmt: skip
    assert json.loads(done.stdout)[0]["questions"] == 2


@pytest.mark.slow
def test_a_signal_ends_it_and_a_stopped_run_of_ours_is_not_gone_on_with(tmp_path):
    (tmp_path / "stop.py").write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train_grpo\n"
        "from rlm import errors\n"
        "from rlm.run.folder import Run\n"
        "write = Run.write_rollouts\n"
        "def stop(run, records):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    write(run, records)\n"
        "Run.write_rollouts = stop\n"
        "sys.exit(errors.run_main(train_grpo.main))\n"
    )
    words = [*SMALL, *STEPS, "--adapter", "none"]
    done = start(str(tmp_path / "stop.py"), *words, "--backend", "trl", cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    assert "stopped after step 1 of 2" in done.stderr and "begins anew" in done.stderr
    assert not (tmp_path / "weights").exists()
    assert len(rows(tmp_path / "runs/grpo/log.csv")) == 2
    assert start(str(tmp_path / "stop.py"), *words, cwd=tmp_path).returncode == 143
    done = start("train_grpo.py", *words, "--backend", "trl", cwd=tmp_path)
    assert done.returncode == 2 and "--backend was own, now trl" in done.stderr, done.stderr


def accuracy(folder, adapter: str) -> dict:
    words = ["--models", adapter, "--eval-samples", 200, "--json", "--digits", "1-2"]
    done = succeed("evaluate.py", "--model", TINY, *words, cwd=folder)
    return json.loads(done.stdout)[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_backends_reach_the_same_accuracy(tmp_path):
    """8 steps from one SFT adapter of the demo's kind: from under 20 % to over 60 % by both.

    Tried once: 7.5 %, then 85.5 % by ours and 88.5 % by TRL's, of 200 test questions. Their random
    numbers differ, so they may stand 20 points apart; a reward or an advantage that is wrong
    leaves one below 20 %.
    """
    demo = ["--config", ROOT / "configs/tiny_demo.yaml", "--model", TINY, "--weights", "weights"]
    demo += ["--digits", "1-2", "--eval-samples", 16]
    short = ["--num-samples", 800, "--epochs", 2, "--run", "sft", "--output", "weights/sft"]
    succeed("train_sft.py", *demo, *short, cwd=tmp_path)
    steps = ["--questions-per-step", 16, "--max-steps", 8, "--eval-every", 0, "--probe", 0]
    more = ["--lr-schedule", "constant", "--save-every", 0, "--adapter", "weights/sft"]
    for name in ("own", "trl"):
        place = ["--run", name, "--output", f"weights/{name}", "--backend", name]
        succeed("train_grpo.py", *demo, *steps, *more, *place, cwd=tmp_path)
    names = ("sft", "own", "trl")
    before, own, theirs = (accuracy(tmp_path, f"weights/{name}")["accuracy"] for name in names)
    assert before < 0.2 and own > 0.6 and theirs > 0.6, (before, own, theirs)
    assert abs(own - theirs) < 0.2, (before, own, theirs)
