"""The products of linear layers: whichever library makes them, they are the same products."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rlm.engine.engine import Engine, Sampling
from rlm.engine.inference_model import InferenceModel
from rlm.models import matmul as matmul_module
from rlm.models.lora_linear import LoraLinear, SharedDown
from rlm.models.matmul import DenseLinear, PackedLinear, linear, matmul, packable
from rlm.records import Prompt
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model

NUMBERS = st.sampled_from([1, 2, 3, 4, 5, 16, 33, 64, 130])
needs_packing = pytest.mark.skipif(
    not packable(torch.ones(512, 512)), reason="on this processor torch's own choice is taken"
)


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(matmul_module, "SMALL", 1)
    monkeypatch.setattr(matmul_module, "LEAST", 1)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(one, other):
    """Rounding alone: errors of a float32 sum of at most 130 products of normal numbers."""
    return torch.allclose(one.float(), other.float(), atol=1e-4, rtol=1e-5)


FIXED = [HealthCheck.function_scoped_fixture]  # the fixture is the same for each example


@settings(max_examples=60, deadline=None, suppress_health_check=FIXED)
@given(NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_a_product_is_that_of_torch(rows, width, out, biased):
    x, weight = draw(rows, width, seed=1), draw(out, width, seed=2)
    bias = draw(out, seed=3) if biased else None
    assert close(linear(x, weight, bias), functional.linear(x, weight, bias))
    assert close(linear(x[None], weight, bias)[0], functional.linear(x, weight, bias))
    # Gradients come as views: transposed, and of weights that were cut.
    assert close(matmul(x, weight.t()), x @ weight.t())
    assert close(matmul(x.t().contiguous().t(), weight.t()), x @ weight.t())
    assert close(matmul(draw(rows, out), weight), draw(rows, out) @ weight)


@needs_packing
@settings(max_examples=40, deadline=None, suppress_health_check=FIXED)
@given(NUMBERS, NUMBERS, NUMBERS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_packed_layer_is_the_layer(rows, width, out, dtype):
    x, weight, bias = draw(rows, width, dtype=dtype), draw(out, width, dtype=dtype), draw(out)
    layer = PackedLinear(weight, bias.to(dtype))
    exact = functional.linear(x.float(), weight.float(), bias.to(dtype).float())
    tolerance = {"atol": 1e-4} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    assert torch.allclose(layer(x[None])[0].float(), exact, **tolerance)


@needs_packing
def test_a_row_is_the_same_alone_and_beside_others():
    layer, x = PackedLinear(draw(384, 128), None), draw(64, 128, seed=5)
    whole = layer(x)
    assert all(torch.equal(layer(x[i : i + 1]), whole[i : i + 1]) for i in range(64))


def test_only_other_processors_than_intels_take_onednn(tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    monkeypatch.setattr(matmul_module, "CPU_FACTS", facts)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for text, expected in (("vendor_id : GenuineIntel", False), ("vendor_id : AuthenticAMD", True)):
        facts.write_text(text)
        matmul_module.fast.cache_clear()
        assert matmul_module.fast() == (expected and matmul_module._there())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    matmul_module.fast.cache_clear()
    assert not matmul_module.fast()
    facts.unlink()
    matmul_module.fast.cache_clear()
    assert not matmul_module.fast() and not packable(torch.ones(2, 2))
    assert close(linear(draw(9, 3), draw(5, 3)), functional.linear(draw(9, 3), draw(5, 3)))
    matmul_module.fast.cache_clear()


@needs_packing
def test_weights_are_packed_once_and_anew_when_they_change():
    model = tiny_model()
    rollout = InferenceModel(model)
    layers = {n: m for n, m in rollout.network.named_modules() if isinstance(m, PackedLinear)}
    assert any("q_proj" in n for n in layers) and "lm_head" in layers
    rollout.sync()
    again = dict(rollout.network.named_modules())
    assert all(again[n] is m for n, m in layers.items())
    name = next(n for n in layers if "q_proj" in n)
    with torch.no_grad():
        model.get_submodule(name).weight.mul_(2)
    rollout.sync()
    changed = [n for n, m in layers.items() if rollout.network.get_submodule(n) is not m]
    assert changed == [name]


@needs_packing
def test_small_products_are_left_to_torch(monkeypatch):
    called = []
    real = matmul_module.onednn
    monkeypatch.setattr(matmul_module, "onednn", lambda *a: called.append(1) or real(*a))
    monkeypatch.setattr(matmul_module, "SMALL", 8 * 4 * 2)
    linear(draw(7, 4), draw(2, 4))
    assert not called
    linear(draw(8, 4), draw(2, 4))
    assert called
    monkeypatch.setattr(matmul_module, "LEAST", 9)
    assert packable(draw(3, 3)) and not packable(draw(2, 4))


@needs_packing
def test_scarce_memory_packs_only_what_is_copied_anyway(monkeypatch):
    monkeypatch.setattr("rlm.engine.inference_model.free_bytes", lambda device: 0)
    model = tiny_lora(tiny_model())
    layers = [
        n for n, m in InferenceModel(model).network.named_modules() if "Packed" in repr(m)[:9]
    ]
    assert any("q_proj" in n for n in layers) and "lm_head" not in layers


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_says_the_same_with_and_without(dtype, monkeypatch):
    model = tiny_lora(tiny_model(max_position_embeddings=256)).to(dtype)
    prompts = [Prompt([5, 9, 200, 3]), Prompt([7] * 20), Prompt([1, 2])]
    sampling = Sampling(max_tokens=24)
    with_it = Engine(model, byte_tokenizer()).generate(prompts, 3, sampling, seed=1)
    monkeypatch.setattr("rlm.engine.inference_model.packable", lambda weight: False)
    without = Engine(model, byte_tokenizer()).generate(prompts, 3, sampling, seed=1)
    same = [a.ids == b.ids for x, y in zip(with_it, without, strict=True)
            for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert sum(same) >= (9 if dtype == torch.float32 else 5)
    assert len(byte_tokenizer()) == SIZE


def test_a_low_rank_layer_by_hand():
    # x W^T + b = [1 + 2, 3 + 10] = [3, 13]; x A^T = [2]; (x A^T) B^T = [4, 2].
    weight, bias = torch.tensor([[1.0], [3.0]]), torch.nn.Parameter(torch.tensor([2.0, 10.0]))
    layer = LoraLinear(
        DenseLinear(weight, bias), torch.tensor([[2.0]]), torch.tensor([[2.0], [1.0]])
    )
    with torch.no_grad():
        assert layer(torch.tensor([[1.0]])).tolist() == [[7.0, 15.0]]


def test_layers_with_one_input_share_the_product_with_their_a():
    torch.manual_seed(0)
    shapes = [(12, 4), (8, 4), (8, 2)]
    layers, alone = (
        [
            LoraLinear(torch.nn.Linear(16, out), torch.zeros(r, 16), torch.randn(out, r))
            for out, r in shapes
        ]
        for _ in range(2)
    )
    for one, other in zip(layers, alone, strict=True):
        one.down = torch.randn(len(one.down), 16)
        other.down, other.up, other.base = one.down, one.up, one.base
    shared = SharedDown(layers, torch.cat([layer.down for layer in layers]))
    with torch.inference_mode():
        for x in (torch.randn(1, 5, 16), torch.randn(1, 3, 16)):
            for one, other in zip(layers, alone, strict=True):
                torch.testing.assert_close(one(x), other(x))
            assert shared._inner is None  # nothing is kept behind the last
        # Another input in between, and the same layers again.
        one, two = torch.randn(2, 1, 5, 16)
        torch.testing.assert_close(layers[0](one), alone[0](one))
        torch.testing.assert_close(layers[1](two), alone[1](two))
        torch.testing.assert_close(layers[0](one), alone[0](one))
