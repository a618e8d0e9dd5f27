"""Norms in one kernel: which are replaced, and that learner and rollouts take the same."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlm.engine.inference_model import InferenceModel
from rlm.learner.logprobs import pack, token_logprobs
from rlm.models import rms_norm
from tests.support.tiny_models import tiny_lora, tiny_model


@pytest.fixture
def everywhere(monkeypatch):
    """Norms count as those of a GPU; the calls of torch's norm."""
    calls = []
    own = torch.nn.functional.rms_norm

    def counted(*args):
        calls.append(args[0].shape)
        return own(*args)

    def serves(module):
        return type(module).__name__.endswith("RMSNorm") and rms_norm.same(module)

    monkeypatch.setattr(rms_norm, "serves", serves)
    monkeypatch.setattr(rms_norm.functional, "rms_norm", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_plain_norm_is_torchs(dtype):
    norm = Qwen3RMSNorm(64).to(dtype)
    norm.weight.data = torch.rand(64).to(dtype) + 0.5
    assert rms_norm.same(norm)
    x = torch.randn(3, 5, 64).to(dtype)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(rms_norm._forward(norm, x), norm(x), rtol=tolerance, atol=tolerance)


def test_a_norm_that_adds_one_is_left_as_it_is():
    norm = Gemma2RMSNorm(64)
    norm.weight.data = torch.rand(64)
    assert not rms_norm.same(norm)


def test_on_a_cpu_and_in_float32_nothing_is_replaced():
    norm = Qwen3RMSNorm(64).bfloat16()
    assert rms_norm.epsilon(norm) == 1e-6
    assert not rms_norm.serves(norm) and not rms_norm.serves(torch.nn.RMSNorm(64))
    assert rms_norm.epsilon(torch.nn.LayerNorm(4)) == 1e-5  # not asked: another name


def test_learner_and_rollouts_take_the_same(everywhere):
    model = tiny_lora(tiny_model())
    packed = pack([([1, 2, 3], [[4, 5], [6]])])
    before = token_logprobs(model, packed)[0]
    norms = 2 * model.config.num_hidden_layers + 1
    assert len(everywhere) % norms == 0 and everywhere
    everywhere.clear()
    before.sum().backward()
    assert not any("forward" in m.__dict__ for m in model.modules())
    twin = InferenceModel(model).network
    replaced = [m for m in twin.modules() if type(m).__name__.endswith("RMSNorm")]
    assert len(replaced) == norms and all("forward" in m.__dict__ for m in replaced)


@pytest.mark.cuda
def test_on_a_gpu_in_half_precision_they_are_replaced():
    norm = Qwen3RMSNorm(64).to("cuda", torch.bfloat16)
    assert rms_norm.serves(norm)
    norm.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(3, 5, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn_like(x)
    found = []
    for forward in (norm, lambda x: rms_norm._forward(norm, x)):
        out = forward(x)
        found.append([out, torch.autograd.grad(out, x, grad)[0]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
