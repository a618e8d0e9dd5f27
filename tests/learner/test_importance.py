"""Importance weights between engine and learner: by hand, and what they do to a step."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train_grpo
from config import GRPOSettings
from rlm.learner.logprobs import ReferencePolicy, pack, token_logprobs
from rlm.learner.losses import importance_weights
from rlm.learner.token_budget import TokenBudget
from rlm.models.policy import Policy
from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts.batch import Batch
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model


def test_weights_by_hand():
    learner = torch.tensor([0.5, 0.9, 0.2, 0.4]).log().requires_grad_()
    engine = torch.tensor([0.5, 0.3, 0.4, 0.1]).log()
    weights, ratios = importance_weights(learner, engine, 2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.5, 2.0])
    assert ratios.tolist() == pytest.approx([1.0, 3.0, 0.5, 4.0])
    assert not weights.requires_grad and not ratios.requires_grad


def test_weights_of_whole_completions_and_weights_that_are_dropped():
    # Ratios 1, 3 and 2 of one completion of which the second token does not count; 0.5 of another.
    learner = torch.tensor([0.5, 0.9, 0.2, 0.2]).log()
    engine = torch.tensor([0.5, 0.3, 0.1, 0.4]).log()
    sequence, mask = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 0, 1, 1])
    weights, ratios = importance_weights(learner, engine, 2.5, drop=True)
    assert weights.tolist() == pytest.approx([1.0, 0.0, 2.0, 0.5])
    whole = {"sequence": sequence, "mask": mask}
    weights, ratios = importance_weights(learner, engine, 1.5, **whole)
    assert ratios.tolist() == pytest.approx([2.0, 2.0, 2.0, 0.5])
    assert weights.tolist() == pytest.approx([1.5, 1.5, 1.5, 0.5])
    weights, _ = importance_weights(learner, engine, 1.5, drop=True, **whole)
    assert weights.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5])


def test_level_and_mode_reach_the_loss():
    # Completions of 2 and 4 tokens: exp(0.8) = 2.2255 and exp(1.6) = 4.9530.
    (loss,), _ = take(-0.4, importance_cap=9.0, importance_level="sequence")
    assert loss == pytest.approx((4 * 4.9530 - 2 * 2.2255) / 6, rel=1e-4)
    more = {"importance_level": "sequence", "importance_mode": "mask"}
    (loss,), metrics = take(-0.4, importance_cap=3.0, **more)
    assert loss == pytest.approx(-2 * 2.2255 / 6, rel=1e-4)
    assert metrics["importance_capped_fraction"] == pytest.approx(4 / 6)


def test_a_share_of_the_tokens_is_learned_from():
    (all_of_them,), _ = take(0.0)
    (half,), _ = take(0.0, entropy_share=0.5)
    # Each token's loss is -advantage / 6: of the six the three most uncertain remain.
    assert all_of_them == pytest.approx(2 / 6, rel=1e-5)
    assert half * 6 == pytest.approx(round(half * 6), abs=1e-5) and round(half * 6) % 2 == 1


numbers = st.floats(-20, 0, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.floats(0.125, 8, width=32))
def test_no_weight_is_above_the_cap_and_equal_policies_have_one(pairs, cap):
    learner, engine = torch.tensor(pairs).T
    weights, ratios = importance_weights(learner, engine, cap)
    assert bool((weights <= cap).all()) and bool((weights >= 0).all())
    assert bool((weights[ratios <= cap] == ratios[ratios <= cap]).all())
    same, ones = importance_weights(learner, learner, cap)
    assert same.tolist() == [min(1.0, cap)] * len(pairs) and ones.tolist() == [1.0] * len(pairs)


class Steps:
    """An optimiser that keeps what it was given; each step moves the LoRA a little."""

    def __init__(self, model):
        self.losses, self.weights = [], [p for n, p in model.named_parameters() if "lora_B" in n]

    def backward(self, loss):
        self.losses.append(float(loss.detach()))
        loss.backward()

    def clear(self):
        raise AssertionError("nothing has to be undone")

    def step(self):
        with torch.no_grad():
            for weight in self.weights:
                weight.sub_(0.5 * weight.grad)
                weight.grad = None
        return 1.0


def take(shift: float, advantage=(1.0, -1.0), **given):
    """Return (losses, figures) of `update` where the engine's log-probabilities are off by shift.

    Two completions of which the second has twice the tokens.
    """
    model, tokenizer = tiny_lora(tiny_model()), byte_tokenizer()
    prompt, ids = Prompt([65, 66, 67]), [[70, 71], [80, 81, 82, 83]]
    with torch.no_grad():
        exact, _ = token_logprobs(model, pack([(prompt.ids, ids)]), vocab_size=SIZE)
    engine = (exact + shift).split([2, 4])
    group = [Rollout(i, p.tolist(), "", "stop") for i, p in zip(ids, engine, strict=True)]
    batch = Batch([Example("1", "", "0")], [prompt], [group], [[Score(1.0), Score(0.0)]])
    settings = GRPOSettings(adapter="none", clip_low=0.1, clip_high=0.1, **given)
    steps = Steps(model)
    metrics = train_grpo.update(
        Policy(model, tokenizer, "", {}), steps, batch, torch.tensor([advantage]), settings,
        ReferencePolicy(model), TokenBudget(model, SIZE, 1024),
    )  # fmt: skip
    return steps.losses, metrics


def test_each_tokens_loss_is_weighed():
    # One update: the ratio to the old policy is 1, so the loss is -(2 - 4) / 6.
    (plain,), metrics = take(-0.4)
    assert plain == pytest.approx(2 / 6, rel=1e-5) and "importance_mean" not in metrics
    # The learner finds each token exp(0.4) = 1.4918 times as likely as the engine did.
    (weighed,), metrics = take(-0.4, importance_cap=3.0)
    assert weighed == pytest.approx(1.4918 * 2 / 6, rel=1e-4)
    assert metrics["importance_mean"] == pytest.approx(1.4918, rel=1e-4)
    assert metrics["importance_max"] == pytest.approx(1.4918, rel=1e-4)
    assert metrics["importance_capped_fraction"] == 0.0
    (cut,), metrics = take(-0.4, importance_cap=1.25)
    assert cut == pytest.approx(1.25 * 2 / 6, rel=1e-4)
    assert metrics["importance_mean"] == pytest.approx(1.25)
    assert metrics["importance_capped_fraction"] == pytest.approx(1.0)
    assert metrics["importance_max"] == pytest.approx(1.4918, rel=1e-4)


def test_the_old_policy_is_the_learner_where_the_engine_is_another_one():
    # Against the engine every ratio would be 1.49 and clipped at the first update already.
    (first, _), metrics = take(-0.4, engine="vllm", updates_per_batch=2, importance_cap=0)
    assert first == pytest.approx(2 / 6, rel=1e-5)
    (first, second), metrics = take(-0.4, engine="vllm", updates_per_batch=2)
    assert first == pytest.approx(1.4918 * 2 / 6, rel=1e-4)
    assert second < first, "the second update goes on from the first"
    assert metrics["importance_mean"] == pytest.approx(1.4918, rel=1e-4), "weights stay"
    # Our own engine's are taken as they are: 1.1 of the right one's, 1.49 of the wrong one's.
    (first, _), _ = take(-0.4, updates_per_batch=2)
    assert first == pytest.approx((4 * 1.4918 - 2 * 1.1) / 6, rel=1e-4)


def test_the_cap_is_on_where_vllm_samples_alone():
    assert GRPOSettings(adapter="none").importance_cap == 0.0
    assert GRPOSettings(adapter="none", engine="vllm").importance_cap == 2.0
    assert GRPOSettings(adapter="none", vllm_url="http://a:1").importance_cap == 2.0
    assert GRPOSettings(adapter="none", engine="vllm", importance_cap=0).importance_cap == 0.0


def test_each_record_says_which_weights_sampled_it():
    from rlm.rollouts.batch import records

    group = [Rollout([1], [0.0], "", "stop", version=7), Rollout([2], [0.0], "", "stop")]
    batch = Batch([Example("1", "", "0")], [Prompt([1])], [group], [[Score(1.0), Score(0.0)]])
    found = records(8, batch, torch.tensor([[1.0, -1.0]]))
    assert [record["adapter_version"] for record in found] == [7, 0]
    assert dataclasses.replace(group[1], version=3).version == 3
