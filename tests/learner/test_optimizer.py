"""The optimiser against torch's own, and in float16."""

import pytest
import torch

from rlm.learner.optimizer import Optimizer
from tests.support.tiny_models import tiny_lora, tiny_model


def test_a_step_is_that_of_adamw_on_clipped_gradients():
    mine, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    x = torch.tensor([[1.0, -2.0, 30.0], [0.5, 4.0, 1.0]])
    optimizer = Optimizer(mine, max_grad_norm=1.0)
    other = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for rate in (0.1, 0.05):
        optimizer.learning_rate = other.param_groups[0]["lr"] = rate
        optimizer.backward(mine(x).square().sum())
        theirs(x).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert optimizer.step() == pytest.approx(float(expected)) and expected > 1.0
        other.step()
        other.zero_grad()
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two) and one.grad is None


def test_what_does_not_learn_is_left_alone():
    model = tiny_lora(tiny_model())
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 0.1
    optimizer.backward(model(torch.tensor([[1, 2, 3]])).logits.sum())
    assert optimizer.step() > 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora" in name), name


class Half(torch.nn.Module):
    """A weight that learns in float32 behind one that computes in float16."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.float16), requires_grad=False)
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return (self.weight.half() * self.frozen * x).float().sum()


def test_a_gradient_too_small_for_float16_still_arrives():
    # 1e-8 is below the smallest float16, 6e-8: without a scaled loss the gradient would be 0.
    model = Half()
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 0.5
    optimizer.backward(1e-8 * model(torch.ones(2, dtype=torch.float16)))
    assert optimizer.step() == pytest.approx(1e-8 * 2**0.5, rel=1e-3)
    assert (model.weight < 1.0).all()


def test_a_step_without_finite_gradients_is_left_out():
    model = Half()
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 0.5
    scale = optimizer.scaler.get_scale()
    optimizer.backward(1e5 * model(torch.ones(2, dtype=torch.float16)))
    assert not torch.isfinite(torch.tensor(optimizer.step()))
    assert (model.weight == 1.0).all() and optimizer.scaler.get_scale() == scale / 2
    optimizer.backward(model(torch.ones(2, dtype=torch.float16)))
    assert optimizer.step() > 0 and (model.weight < 1.0).all()


def test_no_loss_is_scaled_where_nothing_is_float16():
    assert not Optimizer(torch.nn.Linear(2, 2), max_grad_norm=1.0).scaler.is_enabled()
