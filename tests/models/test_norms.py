"""RMS norms in fewer kernels: equal to transformers' own, and other norms are told apart."""

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlm.models.norms import FusedNorm, agrees, fused


def filled(norm, dtype):
    generator = torch.Generator().manual_seed(0)
    norm.weight.data = torch.randn(norm.weight.shape, generator=generator) + 1
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
def test_a_norm_is_the_same_in_one_piece(kind, dtype):
    norm = filled(kind(96, eps=1e-5), dtype)
    other = fused(norm)
    assert other is not None and agrees(norm, other)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1)).mul(7).to(dtype)
    with torch.no_grad():
        found, expected = other(x), norm(x)
    # One last place of the normed value, where the sum of squares is added up in another order.
    last = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * last, atol=1e-6)
    assert not agrees(norm, FusedNorm(norm.weight, 1e-2))


def test_what_is_another_norm_is_left_as_it_is():
    other = fused(filled(Gemma3RMSNorm(64), torch.float32))  # times 1 + weight
    assert other is None or not agrees(filled(Gemma3RMSNorm(64), torch.float32), other)
    assert fused(torch.nn.LayerNorm(8)) is None and fused(torch.nn.Linear(2, 2)) is None
