"""Tokens that tools wrote are seen and not learned from, in GRPO and in SFT."""

from types import SimpleNamespace

import pytest
import torch

import config
import train_grpo
from rlm.engine import support
from rlm.learner.demonstrations import Demonstration, backward
from rlm.learner.logprobs import ReferencePolicy
from rlm.learner.losses import advantages, kl_estimate, policy_loss
from rlm.models.prompts import sft_tokens
from rlm.records import Example, Prompt, Rollout, Score, ToolCall
from rlm.rollouts.batch import Batch, describe, records
from rlm.tools.tool import CALCULATOR
from rlm.tools.toolbox import Toolbox
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model
from training.micro_batches import micro_batches
from training.sft import split

TOKENIZER = byte_tokenizer()
# Of each completion: its tokens, and (first, how many) of what tools wrote among them.
SHAPE = [[(9, [(2, 3)]), (6, []), (12, [(1, 4), (7, 2)])], [(5, [(2, 2)]), (3, []), (7, [(5, 1)])]]
SAMPLED = [[6, 6, 6], [3, 3, 6]]


def made_up() -> Batch:
    """Return a batch of random tokens, its log-probabilities a little off the model's."""
    draw = torch.Generator().manual_seed(3)

    def ids(n):
        return torch.randint(256, (n,), generator=draw).tolist()

    groups = []
    for group in SHAPE:
        rollouts = []
        for number, (length, spans) in enumerate(group):
            calls = tuple(
                ToolCall("calculator", "{}", "84", None, *span, 0, 0, 0) for span in spans
            )
            logprobs = [-1.0 - 0.1 * i for i in range(length)]
            finish = "length" if number == 1 else "stop"
            rollouts.append(Rollout(ids(length), logprobs, "...", finish, calls=calls))
        groups.append(rollouts)
    examples = [Example(str(b), "6 * 7?", "42") for b in range(2)]
    scores = [[Score(float(g != 1), {"correctness": float(g != 1)}) for g in range(3)]] * 2
    return Batch(examples, [Prompt(ids(4)), Prompt(ids(7))], groups, scores)


def plainly(model, prompt, rollout, size=SIZE):
    """Return the log-probabilities and entropies of what was sampled, by a forward of all of it."""
    logits = model(torch.tensor([prompt.ids + rollout.ids])).logits[0, len(prompt.ids) - 1 : -1]
    every = logits[:, :size].log_softmax(-1)
    own = [i for i in range(len(rollout.ids))
           if not any(c.first <= i < c.first + c.tokens for c in rollout.calls)]  # fmt: skip
    logprobs = every[own, [rollout.ids[i] for i in own]]
    return logprobs, -(every.exp() * every).sum(-1)[own]


def naive(model, before, batch, advantage, settings):
    """Return the loss and the metrics that the step should have, from separate forwards."""
    own, ref, entropies, sampler, told, sequence, mask = [], [], [], [], [], [], []
    for b, group in enumerate(batch.groups):
        for g, rollout in enumerate(group):
            logprobs, entropy = plainly(model, batch.prompts[b], rollout)
            with torch.no_grad():
                ref.append(plainly(before, batch.prompts[b], rollout)[0])
            own, entropies = [*own, logprobs], [*entropies, entropy]
            places = [i for i, flag in enumerate(rollout.sampled) if flag]
            sampler += [rollout.logprobs[i] for i in places]
            told += [float(advantage[b, g])] * len(logprobs)
            sequence += [3 * b + g] * len(logprobs)
            kept = settings.truncated == "keep" or rollout.finish == "stop"
            mask += [float(kept)] * len(logprobs)
    logprobs, ref, sampler = torch.cat(own), torch.cat(ref), torch.tensor(sampler)
    loss, _ = policy_loss(
        logprobs,
        None,
        torch.tensor(told),
        torch.tensor(sequence),
        loss_type=settings.loss,
        tokens=int(sum(mask)),
        sequences=6,
        max_tokens=settings.max_tokens,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        ref_logprobs=ref,
        kl_weight=settings.kl_weight,
        entropy=torch.cat(entropies),
        entropy_bonus=settings.entropy_bonus,
        mask=torch.tensor(mask),
    )
    now = logprobs.detach()
    return loss, {
        "entropy": torch.cat(entropies).mean().item(),
        "kl": kl_estimate(now, ref).mean().item(),
        "sampler_gap": (now - sampler).abs().max().item(),
    }


@pytest.mark.parametrize(
    "loss, truncated, budget, way, bonus",
    [
        ("dapo", "keep", 1000, "packed", 0.0),
        ("dapo", "mask", 20, "padded", 0.2),
        ("grpo", "keep", 24, "packed", 0.2),
        ("dr_grpo", "mask", 1000, "packed", 0.2),
        ("gspo", "keep", 1000, "padded", 0.2),
    ],
)
def test_a_step_is_that_of_the_sampled_tokens_alone(loss, truncated, budget, way, bonus):
    given = {"loss": loss, "truncated": truncated, "entropy_bonus": bonus}
    settings = config.GRPOSettings(**given, kl_weight=0.3, max_tokens=20)
    # A context of another length for each way, which is remembered by the configuration.
    model = tiny_lora(tiny_model(max_position_embeddings=128 if way == "packed" else 129))
    before = tiny_lora(tiny_model())
    if way == "padded":
        setattr(model.get_base_model(), support.FORCED, True)
    reference = ReferencePolicy(before)
    batch, policy = made_up(), SimpleNamespace(model=model, tokenizer=TOKENIZER)
    advantage = advantages(batch.rewards(), "group", batch.judged())
    model.eval()

    def make(token_budget):
        return micro_batches(policy, batch, advantage, settings, reference, [0, 1], token_budget)

    model.train = lambda mode=True: model
    optimizer = SimpleNamespace(backward=lambda value: value.backward())
    found = train_grpo.backward(policy, optimizer, batch, settings, make, token_budget=budget)
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected, metrics = naive(model, before, batch, advantage, settings)
    expected.backward()
    values = found.values()
    assert values["loss"] == pytest.approx(expected.item(), abs=1e-5)
    for name, value in metrics.items():
        assert values[name] == pytest.approx(value, abs=1e-5), name
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)
    assert (
        batch.loss_tokens(True) == 30 and [[r.length for r in g] for g in batch.groups] == SAMPLED
    )


def test_metrics_and_records_tell_of_calls():
    batch = made_up()
    metrics = describe(batch, "think", tools=True)
    assert metrics["completion_tokens"] == 5 and metrics["tool_tokens"] == 2
    assert metrics["calls_mean"] == pytest.approx(5 / 6)
    assert metrics["call_fraction"] == pytest.approx(4 / 6)
    assert metrics["right_with_call"] == 1.0 and metrics["right_without_call"] == 0.0
    assert metrics["failed_call_fraction"] == 0.0
    assert "calls_mean" not in describe(batch, "think")
    first, second, *_ = records(1, batch, torch.zeros(2, 3))
    assert first["tokens"] == 6 and first["calls"][0]["result"] == "84"
    assert "calls" not in second


def demonstration(solution: str, **options):
    example = Example("1", "6 * 7 + 2?", "44", solution)
    box = Toolbox([CALCULATOR], **options)
    return sft_tokens(example, TOKENIZER, "think", tools=box), box


def test_a_demonstration_learns_its_calls_and_not_their_results():
    solution = "1. 6 * 7 = <<6 * 7=42>>42\n2. <<41+1=43>>43\n3. <<42+2=44>>44."
    tokens, box = demonstration(solution)
    ids, learned = tokens["completion_ids"], tokens["learned"]
    parts = {
        flag: TOKENIZER.decode([id for id, own in zip(ids, learned, strict=True) if own == flag])
        for flag in (True, False)
    }
    assert TOKENIZER.decode(ids) == (
        "<think>\n1. <calc>6 * 7</calc><result>42</result>\n2. 43\n"
        "3. <calc>42+2</calc><result>44</result>.\n</think>\n44<eos>"
    )
    assert parts[False] == "<result>42</result><result>44</result>"
    # The ids of a result are those that the engine would put in.
    bound = box.bound(TOKENIZER)
    job = bound.begin(bound.find("<calc>6 * 7</calc>", 0, 0, 0), 0)[2]
    wanted = bound.result(job.outcome)[0]
    start = learned.index(False)
    assert ids[start : start + len(wanted)] == wanted
    tokens, _ = demonstration(solution, max_calls=1)
    assert TOKENIZER.decode(tokens["completion_ids"]).count("<calc>") == 1
    example = Example("1", "6 * 7 + 2?", "44", solution)
    for more in ({}, {"tools": box, "calls": False}):
        plain = sft_tokens(example, TOKENIZER, "think", **more)
        text = TOKENIZER.decode(plain["completion_ids"])
        assert text.startswith("<think>\n1. 6 * 7 = 42\n2. 43\n3. 44.") and all(
            plain.get("learned", [True])
        )


def test_our_sft_learns_what_is_learned_alone():
    model = tiny_lora(tiny_model(max_position_embeddings=256))
    model.train = lambda mode=True: model
    shown = [
        Demonstration([1, 2, 3], [4, 5, 6, 7], [True, False, False, True]),
        Demonstration([1, 2, 9], [8, 7], None),
    ]
    record = {"input_ids": [1, 2, 3, 4, 5, 6, 7], "labels": [-100] * 3 + [4, -100, -100, 7]}
    assert split(record) == shown[0] and shown[0].targets == 2
    optimizer = SimpleNamespace(backward=lambda value: value.backward())
    found = backward(model, optimizer, shown, tokens=4, token_budget=1000).values()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    first = model(torch.tensor([[1, 2, 3, 4, 5, 6, 7]])).logits[0].log_softmax(-1)
    second = model(torch.tensor([[1, 2, 9, 8, 7]])).logits[0].log_softmax(-1)
    loss = -(first[2, 4] + first[5, 7] + second[2, 8] + second[3, 7]) / 4
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)
