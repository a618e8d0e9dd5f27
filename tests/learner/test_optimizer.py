"""The optimiser against torch's own, and in float16."""

import pytest
import torch

from rlm.errors import InputError
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


class Matrix(torch.nn.Module):
    """The loss is the sum of the gradient times the weight, so that the gradient is what is given.

    It stands in for an update with one frequent direction and one rare.
    """

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))

    def forward(self, gradient):
        return (self.weight * gradient).sum()


def muon_steps(model, optimizer, gradients) -> torch.Tensor:
    for gradient in gradients:
        optimizer.learning_rate = 0.1
        optimizer.backward(model(gradient))
        optimizer.step()
    return model.weight.detach().clone()


def test_muon_goes_as_far_in_a_rare_direction_as_in_a_frequent_one():
    model = Matrix()
    moved = muon_steps(
        model,
        Optimizer(model, max_grad_norm=1.0, kind="muon"),
        [torch.tensor([[3.0, 0.0], [0.0, -0.3]])],
    )
    # U V' of diag(3, -0.3) is diag(1, -1), nearly; a step is 0.2 * sqrt(2) * rate of that.
    step = 0.2 * 2**0.5 * 0.1
    assert 0.6 * step < -moved[0, 0] < 1.25 * step
    assert 0.6 * step < moved[1, 1] < 1.25 * step
    assert moved[0, 1] == moved[1, 0] == 0


def test_muon_goes_on_from_its_state_as_if_it_had_not_stopped():
    gradients = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(1))
    whole = Matrix()
    expected = muon_steps(whole, Optimizer(whole, max_grad_norm=1.0, kind="muon"), gradients)
    first = Matrix()
    stopped = Optimizer(first, max_grad_norm=1.0, kind="muon")
    muon_steps(first, stopped, gradients[:3])
    second = Matrix()
    second.load_state_dict(first.state_dict())
    restored = Optimizer(second, max_grad_norm=1.0, kind="muon")
    restored.restore(stopped.state())
    assert torch.equal(muon_steps(second, restored, gradients[3:]), expected)


def test_muon_takes_matrices_alone():
    says = r"--optimizer muon: learns matrices alone, and a weight here has shape \(2,\)"
    with pytest.raises(InputError, match=says):
        Optimizer(torch.nn.Linear(3, 2), max_grad_norm=1.0, kind="muon")
