"""Queries and keys that are rotated together: the bits of the family's own function."""

import pytest
import torch
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial_rotary
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb as plain

from rlm.engine.engine import Engine, Sampling
from rlm.models import rotary
from rlm.records import Prompt
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model


def case(width: int, dtype, *, turned: int | None = None):
    """Return queries of 6 heads and keys of 2, as the projections make them, cosine and sine."""
    generator = torch.Generator().manual_seed(width)
    sizes = ((1, 7, 6, width), (1, 7, 2, width), (1, 7, turned or width), (1, 7, turned or width))
    q, k, cos, sin = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return q.transpose(1, 2), k.transpose(1, 2), cos, sin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotated_together_they_have_the_same_bits(dtype):
    rotation = rotary.Rotation(plain, rotary.Sines())
    for width in (8, 64):  # another sine each time
        for found, expected in zip(
            rotation(*case(width, dtype)), plain(*case(width, dtype)), strict=True
        ):
            assert torch.equal(found, expected)


def test_what_is_not_as_usual_goes_to_the_family_s_own_function():
    q, k, cos, sin = case(8, torch.float32, turned=4)
    found = rotary.Rotation(partial_rotary, rotary.Sines())(q, k, cos, sin)
    assert all(map(torch.equal, found, partial_rotary(q, k, cos, sin)))
    q, k, cos, sin = (x.transpose(1, 2) if x.dim() == 4 else x for x in case(8, torch.float32))
    rotation = rotary.Rotation(plain, rotary.Sines())
    found = rotation(q, k, cos, sin, unsqueeze_dim=2)
    assert all(map(torch.equal, found, plain(q, k, cos, sin, unsqueeze_dim=2)))


def test_another_kind_of_rotation_is_left_alone():
    assert rotary.same(plain) and not rotary.same(interleaved)
    assert not rotary.same(lambda q, k, cos: (q, k))
    assert not rotary.serves(tiny_model())  # on a CPU
    assert not rotary.serves(torch.nn.Linear(2, 2))


def test_the_engine_s_layers_rotate_together_and_the_model_s_stay(monkeypatch):
    model, prompts = tiny_lora(tiny_model()), [Prompt([1, 2, 3]), Prompt([7])]
    expected = Engine(model, byte_tokenizer()).generate(prompts, 2, Sampling(8), seed=0)
    rotated = []
    monkeypatch.setattr(rotary, "serves", lambda module: isinstance(module, Qwen2Attention))
    made = rotary.Rotation.__call__
    monkeypatch.setattr(
        rotary.Rotation, "__call__", lambda self, *given: rotated.append(1) or made(self, *given)
    )
    found = Engine(model, byte_tokenizer()).generate(prompts, 2, Sampling(8), seed=0)
    assert [[r.ids for r in g] for g in found] == [[r.ids for r in g] for g in expected]
    assert len(rotated) >= 8 * 3  # steps and layers
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert Qwen2Attention.forward.__globals__[rotary.NAME] is plain
