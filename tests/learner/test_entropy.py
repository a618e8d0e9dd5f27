"""The entropy bonus: its gradient, by hand and against autograd, and what it does to a step."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from config import GRPOSettings
from rlm.engine import support
from rlm.learner import logprobs as ways
from rlm.learner.lm_head import GRADIENT, LMHead
from rlm.learner.logprobs import pack, token_logprobs
from rlm.learner.losses import policy_loss
from tests.learner.test_importance import take
from tests.learner.test_logprobs import (
    SHAPE,
    assert_same_gradients,
    gradients,
    random_groups,
    saved_tensors,
)
from tests.support.tiny_models import tiny_lora, tiny_model

# p = (3/4, 1/4): H = 2 ln 2 - 3/4 ln 3, dH/dlogit_1 = -3/4 (ln 3/4 + H) = -3/16 ln 3.
H, SLOPE = 2 * math.log(2) - 0.75 * math.log(3), 3 / 16 * math.log(3)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_by_hand(frozen, temperature):
    layer = nn.Linear(2, 2, bias=False).requires_grad_(not frozen)
    layer.weight.data = torch.eye(2)  # hidden states are logits
    config = SimpleNamespace()
    config.get_text_config = lambda: config
    base = SimpleNamespace(get_output_embeddings=lambda: layer, config=config)
    hidden = torch.tensor([[math.log(3) * temperature, 0.0]], requires_grad=True)
    head = LMHead(base, temperature, None)
    # Two completions begin after this token: both entropies are of the same row.
    targets, rows = torch.tensor([0, 1]), torch.tensor([0, 0])
    logprobs, (entropy, likeliest) = head.logprobs(hidden, targets, rows, GRADIENT)
    assert entropy.tolist() == pytest.approx([H, H]) and likeliest.tolist() == [1.0, 0.0]
    assert logprobs.tolist() == pytest.approx([math.log(0.75), math.log(0.25)])
    entropy.sum().backward()
    assert hidden.grad[0].tolist() == pytest.approx(
        [-2 * SLOPE / temperature, 2 * SLOPE / temperature]
    )


def test_the_loss_by_hand():
    # Two completions of 1 and 3 tokens, ratio 1, advantages 1 and -1; the fourth does not count.
    entropy = torch.tensor([0.8, 0.2, 0.4, 9.0], requires_grad=True)
    told = {"tokens": 3, "sequences": 2, "max_tokens": 4, "mask": torch.tensor([1.0, 1, 1, 0])}
    told |= {"entropy": entropy, "entropy_bonus": 0.5}
    tokens = torch.zeros(4), None, torch.tensor([1.0, -1, -1, -1]), torch.tensor([0, 1, 1, 1])
    loss, _ = policy_loss(*tokens, loss_type="dapo", **told)
    assert loss.item() == pytest.approx((-1 + 1 + 1) / 3 - 0.5 * 1.4 / 3)
    loss.backward()
    assert entropy.grad.tolist() == pytest.approx([-0.5 / 3] * 3 + [0.0])
    loss, _ = policy_loss(*tokens, loss_type="grpo", **told)
    assert loss.item() == pytest.approx((-1 + 1) / 2 - 0.5 * (0.8 + 0.3) / 2)
    loss, _ = policy_loss(*tokens, loss_type="dr_grpo", **told)
    assert loss.item() == pytest.approx((-1 + 1 + 1) / 8 - 0.5 * 1.4 / 8)
    with pytest.raises(ValueError, match=r"entropy bonus 0\.5 needs entropies"):
        policy_loss(*tokens, **told | {"entropy": None})


def plainly(model, groups, temperature, size):
    """Return log-probabilities and entropies, both with gradient, of a forward of each one."""
    logprobs, entropies = [], []
    for prompt, completions in groups:
        for completion in completions:
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            every = (logits[:, :size] / temperature).log_softmax(-1)
            logprobs.append(every[range(len(completion)), completion])
            entropies.append(-(every.exp() * every).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


@pytest.mark.parametrize("head", ["frozen", "learns"])
@pytest.mark.parametrize("way", [ways.PACKED, ways.PADDED, ways.LOGITS])
def test_the_gradient_is_that_of_a_naive_forward(way, head, monkeypatch):
    model = tiny_lora(tiny_model())
    model.get_base_model().get_output_embeddings().weight.requires_grad_(head == "learns")
    monkeypatch.setattr(ways, "way_of", lambda base: way)
    if way != ways.PACKED:
        setattr(model.get_base_model(), support.FORCED, True)
    groups, options = random_groups(SHAPE, size=200), {"temperature": 0.7, "vocab_size": 200}

    def weigh(logprobs, entropy):
        weights = torch.randn(2, len(entropy), generator=torch.Generator().manual_seed(1))
        (weights[0] * logprobs + weights[1] * entropy).sum().backward()
        return gradients(model)

    logprobs, entropy = token_logprobs(
        model, pack(groups), chunk=7, entropy_gradient=True, **options
    )
    ours = weigh(logprobs, entropy)
    model.zero_grad()
    expected = plainly(model, groups, 0.7, 200)
    torch.testing.assert_close(entropy, expected[1], atol=1e-5, rtol=0)
    assert_same_gradients(ours, weigh(*expected), 1e-5)


def test_a_capped_head_is_the_same_frozen_or_not():
    found = []
    for learns in (False, True):
        model = tiny_lora(tiny_model())
        model.get_base_model().config.final_logit_softcapping = 3.0
        model.get_base_model().get_output_embeddings().weight.requires_grad_(learns)
        logprobs, entropy = token_logprobs(
            model, pack(random_groups(SHAPE)), temperature=0.7, entropy_gradient=True
        )
        (logprobs.sum() + entropy @ torch.linspace(-1, 2, len(entropy))).backward()
        found.append({n: g for n, g in gradients(model).items() if "lora" in n})
    assert_same_gradients(*found, 1e-5)


def test_one_hidden_state_more_is_kept_and_only_where_it_is_asked_for():
    model, packed = tiny_lora(tiny_model(vocabulary=5_000)), pack(random_groups(SHAPE, size=5_000))
    without = saved_tensors(model, packed, chunk=64)
    sizes = saved_tensors(model, packed, chunk=64, entropy_gradient=True)
    # And the order that the entropies are put into.
    assert sum(sizes) - sum(without) == 32 * len(packed.rows) + len(packed.targets)
    assert max(sizes) <= 5_000 * 32
    assert not token_logprobs(model, packed, statistics=True)[1].requires_grad


def test_the_bonus_reaches_the_step():
    (plain,), _ = take(0.0)
    (loss,), metrics = take(0.0, entropy_bonus=0.5)
    assert metrics["entropy"] > 0.5 and loss == pytest.approx(plain - 0.5 * metrics["entropy"])
    assert metrics["loss"] == pytest.approx(loss)


def test_a_group_without_a_lesson_gets_the_bonus():
    (loss,), metrics = take(0.0, advantage=(0.0, 0.0), entropy_bonus=0.5)
    assert loss == pytest.approx(-0.5 * metrics["entropy"]) and metrics["entropy"] > 0.5


def test_the_weight_is_0_by_default_and_never_below():
    assert GRPOSettings(adapter="none").entropy_bonus == 0.0
    with pytest.raises(ValueError, match="entropy_bonus"):
        GRPOSettings(adapter="none", entropy_bonus=-0.1)
