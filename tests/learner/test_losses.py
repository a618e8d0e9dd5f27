"""The maths of GRPO: cases worked out by hand, and what must not matter."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.learner import losses
from rlm.learner.losses import LOSSES, advantages, kl_estimate, live, live_groups, policy_loss

LOG = math.log


def test_the_docstrings_examples():
    result = doctest.testmod(losses)
    assert result.attempted >= 10 and result.failed == 0


# Advantages


def test_advantages_by_hand():
    # mean 0.5; sum of squares 4 * 0.25 = 1; std = sqrt(1 / 3) = 0.577350
    group = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    expected = 0.5 / (0.5773503 + 1e-4)
    assert advantages(group)[0].tolist() == pytest.approx([expected] * 2 + [-expected] * 2)
    # All 8: mean 5/8, squares 5 * (3/8)^2 + 3 * (5/8)^2 = 1.875; std = sqrt(1.875 / 7) = 0.517549
    both = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    scaled = advantages(both, "batch")
    assert scaled[0, 0].item() == pytest.approx(0.5 / (0.517549 + 1e-4), rel=1e-5)
    assert scaled[1, 3].item() == pytest.approx(-0.75 / (0.517549 + 1e-4), rel=1e-5)
    assert advantages(both, "none")[1].tolist() == [0.25, 0.25, 0.25, -0.75]


def test_whole_numbers_are_rewards_too():
    assert advantages(torch.tensor([[1, 0]]), "none").tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize("scale", losses.SCALES)
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, 1e-8, 12345.678])
def test_equal_rewards_have_advantage_exactly_zero(scale, value):
    # The mean of equal floats need not be that float: 0.1 * 7 / 7 differs in float32.
    rewards = torch.tensor([[value] * 7, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
    result = advantages(rewards, scale)
    assert result[0].tolist() == [0.0] * 7
    assert result[1].all()


def test_a_small_difference_is_not_taken_for_none():
    assert advantages(torch.tensor([[1.0, 1.0 + 1e-6]]))[0, 1] > 0


rewards_of_a_group = st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=4, max_size=4)
rewards_of_a_batch = st.lists(rewards_of_a_group, min_size=1, max_size=4)


@settings(deadline=None)
@given(rewards_of_a_batch, st.sampled_from(losses.SCALES), st.floats(-8, 8))
def test_a_shift_of_all_rewards_changes_nothing(rewards, scale, shift):
    r = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(advantages(r + shift, scale), advantages(r, scale))


@settings(deadline=None)
@given(rewards_of_a_batch, st.floats(0.5, 100.0))
def test_a_positive_scale_of_all_rewards_changes_nothing_but_epsilon(rewards, factor):
    r = torch.tensor(rewards, dtype=torch.float64)
    # The smallest std of a live group is 0.125, so epsilon shifts at most 1e-4 / (0.5 * 0.125).
    torch.testing.assert_close(advantages(r * factor), advantages(r), rtol=2e-3, atol=0)
    torch.testing.assert_close(advantages(r * factor, "none"), advantages(r, "none") * factor)


@settings(deadline=None)
@given(rewards_of_a_batch, st.permutations(range(4)), st.sampled_from(losses.SCALES))
def test_the_order_within_a_group_does_not_matter(rewards, order, scale):
    r = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(advantages(r[:, order], scale), advantages(r, scale)[:, order])


@settings(deadline=None)
@given(rewards_of_a_batch)
def test_advantages_of_a_group_sum_to_zero(rewards):
    sums = advantages(torch.tensor(rewards, dtype=torch.float64)).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "rewards, scale, message",
    [
        (torch.zeros(3, 1), "group", "at least 2"),
        (torch.zeros(4), "group", "at least 2"),
        (torch.zeros(2, 2), "std", "group, batch, none"),
        (torch.tensor([[0.0, math.nan]]), "group", "finite"),
    ],
)
def test_advantages_refuse(rewards, scale, message):
    with pytest.raises(ValueError, match=message):
        advantages(rewards, scale)


def test_shares_of_groups():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.1, 0.1], [0.0, 1.0], [1.5, 1.5]])
    assert live(rewards).tolist() == [False, False, False, True, False]
    shares = live_groups(rewards)
    assert shares == {
        "all_right_fraction": 0.4,
        "all_wrong_fraction": 0.4,
        "mixed_fraction": 0.2,
    }


# Losses. Two completions: tokens 0 and 1, and token 2. Ratios 1.5, 1.0 and 0.5; advantages 2
# and -1; clip 0.2 both ways. Clipped terms: -min(3, 1.2 * 2) = -2.4; -2; -min(-0.5, -0.8) = 0.8.

OLD = torch.tensor([LOG(0.4), LOG(0.3), LOG(0.8)])
NEW = torch.tensor([LOG(0.6), LOG(0.3), LOG(0.4)])
ADVANTAGES = torch.tensor([2.0, 2.0, -1.0])
SEQUENCE = torch.tensor([0, 0, 1])
STEP = dict(tokens=3, sequences=2, max_tokens=5, clip_low=0.2, clip_high=0.2)


def SIGMOID(x):
    return 1 / (1 + math.exp(-x))


PHI = 1.5**2 * math.exp(3 * (1 - 1.5)), 0.5**3 * math.exp(2 * (1 - 0.5))  # 0.5020 and 0.3398
BY_HAND = {
    "grpo": (-2.2 + 0.8) / 2,
    "dapo": (-2.4 - 2.0 + 0.8) / 3,
    "bnpo": (-2.4 - 2.0 + 0.8) / 3,
    "dr_grpo": (-2.4 - 2.0 + 0.8) / (2 * 5),
    # Weights min(1.5, 1.2), 1 and 0.5, times advantage times log-probability.
    "cispo": -(1.2 * 2 * LOG(0.6) + 2 * LOG(0.3) - 0.5 * LOG(0.4)) / 3,
    # Weights exp((log 1.5 + 0) / 2) = 1.2247, clipped to 1.2, and 0.5, clipped to 0.8.
    "gspo": (-1.2 * 2 + 0.8) / 2,
    "luspo": (2 * -1.2 * 2 + 0.8) / 2,  # both of its tokens
    # 4 sigmoid(T (w - 1)) / T: at w = 1 that is 2; T is 1.05 where the advantage is negative.
    "sapo": (-2 * (4 * SIGMOID(0.5) + 2) / 2 + 4 / 1.05 * SIGMOID(1.05 * -0.5)) / 2,
    # W = 1.5 with k 2, lambda 3; W = 0.5 with k 3, lambda 2.
    "vespo": -(PHI[0] * 2 * (LOG(0.6) + LOG(0.3)) - PHI[1] * LOG(0.4)) / 3,
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_by_hand(loss_type):
    loss, _ = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, loss_type=loss_type, **STEP)
    assert loss.item() == pytest.approx(BY_HAND[loss_type], rel=1e-6)


# d(loss)/d(logprob) where nothing is clipped is -ratio * advantage * weight; clipped: 0.
GRADIENTS = {
    "grpo": [0, -2 / 4, 0],
    "dapo": [0, -2 / 3, 0],
    "bnpo": [0, -2 / 3, 0],
    "dr_grpo": [0, -2 / 10, 0],
    "cispo": [-2.4 / 3, -2 / 3, 0.5 / 3],
    "gspo": [0, 0, 0],
    "luspo": [0, 0, 0],
    # The derivative of 4 sigmoid(T (w - 1)) / T is 4 s (1 - s) w; at w = 1 that is 1.
    "sapo": [
        -2 * 4 * SIGMOID(0.5) * SIGMOID(-0.5) * 1.5 / 4, -2 / 4,
        4 * SIGMOID(0.525) * SIGMOID(-0.525) * 0.5 / 2,
    ],
    "vespo": [-PHI[0] * 2 / 3, -PHI[0] * 2 / 3, PHI[1] / 3],
}  # fmt: skip


@pytest.mark.parametrize("loss_type", LOSSES)
def test_gradient_by_hand(loss_type):
    new = NEW.clone().requires_grad_()
    policy_loss(new, OLD, ADVANTAGES, SEQUENCE, loss_type=loss_type, **STEP)[0].backward()
    assert new.grad.tolist() == pytest.approx(GRADIENTS[loss_type], abs=1e-6)


def test_gspo_gives_every_token_of_a_completion_the_same_gradient():
    new = NEW.clone().requires_grad_()
    wide = STEP | dict(clip_low=0.9, clip_high=0.9)
    policy_loss(new, OLD, ADVANTAGES, SEQUENCE, loss_type="gspo", **wide)[0].backward()
    # -ratio * advantage / (completions * its tokens): sqrt(1.5) * 2 / 4, and 0.5 / 2
    assert new.grad.tolist() == pytest.approx([-0.6123724, -0.6123724, 0.25], rel=1e-6)


def test_low_and_high_clip_are_apart():
    options = STEP | dict(loss_type="dapo", clip_low=0.6, clip_high=0.1)
    loss, metrics = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, **options)
    assert loss.item() == pytest.approx((-1.1 * 2 - 2 + 0.5) / 3)
    assert metrics["clip_high_fraction"].item() == pytest.approx(1 / 3)
    assert metrics["clip_low_fraction"].item() == 0


def test_metrics_by_hand():
    _, metrics = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, loss_type="dapo", **STEP)
    assert metrics["clip_low_fraction"].item() == pytest.approx(1 / 3)
    assert metrics["clip_high_fraction"].item() == pytest.approx(1 / 3)
    assert metrics["ratio_shift"].item() == pytest.approx(0.0, abs=1e-7)  # 0.5 + 0 - 0.5
    assert "kl" not in metrics
    # A ratio outside the clip counts only where it takes the gradient away.
    _, metrics = policy_loss(NEW, OLD, -ADVANTAGES, SEQUENCE, loss_type="dapo", **STEP)
    assert metrics["clip_low_fraction"].item() == metrics["clip_high_fraction"].item() == 0


def test_kl_by_hand():
    # p_ref / p = 1, 2 and 0.5: k3 = 0; 2 - log 2 - 1; 0.5 + log 2 - 1
    ref = NEW + torch.tensor([0.0, LOG(2), -LOG(2)])
    k3 = [0.0, 1 - LOG(2), LOG(2) - 0.5]
    assert kl_estimate(NEW, ref).tolist() == pytest.approx(k3, abs=1e-6)
    options = STEP | dict(ref_logprobs=ref, kl_weight=0.5, loss_type="grpo", kl_unbiased=False)
    loss, metrics = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, **options)
    expected = BY_HAND["grpo"] + 0.5 * ((k3[0] + k3[1]) / 2 + k3[2]) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert metrics["kl"].item() == pytest.approx(sum(k3) / 3, rel=1e-6)
    # Weight 0 still measures.
    loss, metrics = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, **options | dict(kl_weight=0.0))
    assert loss.item() == pytest.approx(BY_HAND["grpo"]) and metrics["kl"] > 0


def test_the_unbiased_kl_is_weighed_by_the_ratio():
    # Ratios 1.5, 1 and 0.5 on k3 of 0, 1 - log 2 and log 2 - 0.5
    ref = NEW + torch.tensor([0.0, LOG(2), -LOG(2)])
    options = STEP | dict(ref_logprobs=ref, kl_weight=0.5, loss_type="dapo")
    loss, metrics = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, **options)
    kl = (1 - LOG(2) + 0.5 * (LOG(2) - 0.5)) / 3
    assert metrics["kl"].item() == pytest.approx(kl, rel=1e-6)
    assert loss.item() == pytest.approx(BY_HAND["dapo"] + 0.5 * kl, rel=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_only_the_unbiased_kl_has_the_gradient_of_the_kl(unbiased):
    # Over a vocabulary of 5, the expectation of a sampled token's gradient, worked out exactly.
    torch.manual_seed(0)
    logits, ref = torch.randn(5, requires_grad=True), torch.randn(5).log_softmax(0)
    exact = (logits.softmax(0) * (logits.log_softmax(0) - ref)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    ours, value, options = torch.zeros(5), 0.0, STEP | dict(tokens=1, kl_weight=1.0)
    for token, share in enumerate(logits.softmax(0).tolist()):
        loss, _ = policy_loss(
            logits.log_softmax(0)[[token]], None, torch.zeros(1), torch.zeros(1).long(),
            ref_logprobs=ref[[token]], kl_unbiased=unbiased, **options,
        )  # fmt: skip
        ours += share * torch.autograd.grad(loss, logits)[0]
        value += share * loss.item()
    assert value == pytest.approx(exact.item(), rel=1e-5)
    assert torch.allclose(ours, expected, atol=1e-6) == unbiased


@settings(deadline=None)
@given(st.floats(-10, 0), st.floats(-10, 0))
def test_the_kl_estimate_is_never_negative(p, q):
    assert kl_estimate(torch.tensor([p]).double(), torch.tensor([q]).double()).item() >= -1e-12


def test_without_old_logprobs_every_ratio_is_one():
    new = NEW.clone().requires_grad_()
    loss, metrics = policy_loss(new, None, ADVANTAGES, SEQUENCE, loss_type="dapo", **STEP)
    loss.backward()
    assert loss.item() == pytest.approx(-(2 + 2 - 1) / 3)
    assert new.grad.tolist() == pytest.approx([-2 / 3, -2 / 3, 1 / 3])
    assert metrics["ratio_shift"].item() == 0


def case(seed=0):
    """Five completions of 1 to 6 tokens with ratios on both sides of the clip."""
    torch.manual_seed(seed)
    lengths = torch.tensor([3, 1, 6, 2, 4])
    sequence = torch.arange(5).repeat_interleave(lengths)
    new = -torch.rand(16) * 3
    old, ref = new + 0.4 * torch.randn(16), new + 0.4 * torch.randn(16)
    return new, old, torch.randn(5)[sequence], sequence, ref


@pytest.mark.parametrize("loss_type", LOSSES)
def test_micro_batches_add_up_to_the_step(loss_type):
    new, old, adv, sequence, ref = case()
    options = dict(loss_type=loss_type, sequences=5, max_tokens=8, kl_weight=0.1)

    def run(tokens, keep, first):
        x = new.clone().requires_grad_()
        loss, metrics = policy_loss(
            x[keep], old[keep], adv[keep], sequence[keep] - first, ref_logprobs=ref[keep],
            tokens=tokens, **options,
        )  # fmt: skip
        loss.backward()
        return loss.detach(), x.grad, metrics

    whole = run(16, slice(0, 16), 0)
    parts = [run(16, slice(0, 4), 0), run(16, slice(4, 16), 2)]
    if loss_type == "bnpo":  # by definition: part means, weighed by their completions
        means = parts[0][0] / (2 / 5), parts[1][0] / (3 / 5)
        torch.testing.assert_close(means[0] * 4 / 16 + means[1] * 12 / 16, whole[0])
        return
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close(parts[0][1] + parts[1][1], whole[1])
    for name, value in whole[2].items():
        torch.testing.assert_close(parts[0][2][name] + parts[1][2][name], value)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_masked_tokens_are_as_if_they_were_not_there(loss_type):
    new, old, adv, sequence, ref = case()
    mask = (sequence != 2).float()  # the completion of 6 tokens is left out
    options = dict(loss_type=loss_type, tokens=10, sequences=5, max_tokens=8, kl_weight=0.1)

    def run(new, old, ref, keep, order, mask=None):
        x = new.clone().requires_grad_()
        loss, metrics = policy_loss(
            x[keep], old[keep], adv[keep], order, ref_logprobs=ref[keep], mask=mask, **options
        )
        loss.backward()
        return loss.detach(), x.grad, metrics

    kept = mask.bool()
    order = torch.tensor([0, 1, 9, 2, 3])[sequence]
    without = run(new, old, ref, kept, order[kept])
    # What stands at masked places has no say, not even where its ratio overflows.
    wild = torch.where(kept, old, torch.tensor(-900.0))
    wild_ref = torch.where(kept, ref, torch.tensor(900.0))
    masked = run(new, wild, wild_ref, slice(None), sequence, mask)
    factor = 5 / 4 if loss_type == "bnpo" else 1.0  # its share of the completions is 5 / 5
    torch.testing.assert_close(masked[0], without[0] * factor)
    torch.testing.assert_close(masked[1], without[1] * factor)
    for name, value in without[2].items():
        torch.testing.assert_close(masked[2][name], value)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "gspo"])
def test_a_token_masked_inside_a_completion(loss_type):
    # Token 1 is out: -2.4 and 0.8 remain, in gspo with the weight 1.5 of token 0 alone.
    options = STEP | dict(loss_type=loss_type, tokens=2, mask=torch.tensor([1, 0, 1]))
    loss, metrics = policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, **options)
    assert loss.item() == pytest.approx((-2.4 + 0.8) / 2, rel=1e-6)
    assert metrics["clip_high_fraction"].item() == metrics["clip_low_fraction"].item() == 0.5
    assert metrics["ratio_shift"].item() == pytest.approx((0.5 - 0.5) / 2, abs=1e-7)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_batch_with_everything_masked_has_loss_zero(loss_type):
    new = NEW.clone().requires_grad_()
    options = STEP | dict(loss_type=loss_type, tokens=0, mask=torch.zeros(3))
    loss, metrics = policy_loss(new, OLD, ADVANTAGES, SEQUENCE, **options)
    loss.backward()
    assert loss.item() == 0 and new.grad.tolist() == [0, 0, 0]
    assert all(value.item() == 0 for value in metrics.values())


@pytest.mark.parametrize("loss_type", LOSSES)
def test_dead_groups_may_leave(loss_type):
    # Advantage 0 and no KL: the last two completions change neither loss nor gradient.
    new, old, adv, sequence, _ = case()
    adv = torch.where(sequence >= 3, 0.0, adv)
    options = STEP | dict(loss_type=loss_type, tokens=16, sequences=5)
    whole, part = new.clone().requires_grad_(), new[:10].clone().requires_grad_()
    loss, metrics = policy_loss(whole, old, adv, sequence, **options)
    less, fewer = policy_loss(part, old[:10], adv[:10], sequence[:10], **options)
    if loss_type == "bnpo":
        # A mean over 10 tokens weighed 3 / 5, not one over 16 weighed 1.
        less = less * (10 / 16) * (5 / 3)
    torch.testing.assert_close(loss, less)
    if loss_type != "bnpo":
        loss.backward()
        less.backward()
        torch.testing.assert_close(whole.grad[:10], part.grad)
    assert whole.grad is None or not whole.grad[10:].any()
    for name in ("clip_low_fraction", "clip_high_fraction"):
        torch.testing.assert_close(metrics[name], fewer[name])


def test_the_loss_keeps_its_arguments_and_detaches_its_metrics():
    new, old, adv, sequence, ref = case()
    copies = [x.clone() for x in (new, old, adv, ref)]
    loss, metrics = policy_loss(
        new.requires_grad_(), old, adv, sequence, ref_logprobs=ref, kl_weight=0.1, **STEP
    )
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    for x, copy in zip((new, old, adv, ref), copies, strict=True):
        assert torch.equal(x, copy)


def test_policy_loss_refuses():
    with pytest.raises(ValueError, match="grpo, dapo"):
        policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, loss_type="ppo", **STEP)
    with pytest.raises(ValueError, match="ref_logprobs"):
        policy_loss(NEW, OLD, ADVANTAGES, SEQUENCE, kl_weight=0.1, **STEP)


def test_advantages_of_what_was_judged():
    rewards = torch.tensor([[1.0, 0.0, 5.0, 0.0], [1.0, 1.0, 0.0, 0.0], [7.0, 1.0, 1.0, 1.0]])
    judged = torch.tensor(
        [[True, True, False, True], [True, True, False, False], [True, False, False, False]]
    )
    # The first group is (1, 0, 0): mean 1/3. The second is (1, 1), the third has one only.
    found = advantages(rewards, "none", judged)
    third = 1 / 3
    expected = [[2 * third, -third, 0.0, -third], [0.0] * 4, [0.0] * 4]
    torch.testing.assert_close(found, torch.tensor(expected))
    std = torch.tensor([1.0, 0.0, 0.0]).std() + 1e-4
    torch.testing.assert_close(advantages(rewards, "group", judged), found / std)
    whole = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 7.0]).std() + 1e-4
    torch.testing.assert_close(advantages(rewards, "batch", judged), found / whole)
    assert live(rewards, judged).tolist() == [True, False, False]
    assert live(rewards[:1], torch.zeros(1, 4, dtype=torch.bool)).tolist() == [False]
    everything = torch.ones_like(judged)
    assert torch.equal(advantages(rewards, "group", everything), advantages(rewards, "group"))
