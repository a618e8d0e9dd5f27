"""The learner's attention by flash kernels, emulated on a CPU, beside the masked one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.learner import flash
from rlm.learner.logprobs import pack, token_logprobs, use
from rlm.learner.packed_groups import PackedGroups
from rlm.learner.token_budget import checkpoint
from rlm.models.attention import PLAIN, Rules
from tests.support import emulated_flash
from tests.support.tiny_models import SIZE, tiny_lora, tiny_model

GROUPS = [([1, 2, 3, 4, 5] * 6, [[7, 8, 9] * 5, [10, 11], [12]]), ([20, 21], [[30, 31, 32], [3]])]

layouts = st.integers(1, 4).flatmap(
    lambda groups: st.tuples(
        st.lists(st.integers(1, 9), min_size=groups, max_size=groups),
        st.lists(st.tuples(st.integers(0, groups - 1), st.integers(1, 9)), max_size=8),
    )
)


def both(prompts, completions, rules, *, heads=4, shared=2, width=8):
    """Return [outputs and gradients by masks, the same by flash kernels]."""
    completions = sorted(completions, key=lambda c: -c[1])
    tokens = sum(prompts) + sum(n for _, n in completions)
    torch.manual_seed(0)
    made = [torch.randn(n, tokens, width) for n in (heads, shared, shared)]
    grad, found = torch.randn(tokens, heads, width), []
    layout = PackedGroups(prompts, completions)
    for way in (layout.by_masks, layout.by_flash):
        q, k, v = (x.clone().requires_grad_() for x in made)
        out = way(q, k, v, 0.3, rules)
        found.append([out, *torch.autograd.grad(out, (q, k, v), grad)])
    return found


@settings(max_examples=40, deadline=None)
@given(layouts, st.sampled_from([None, 1, 2, 4, 30]))
def test_flash_is_the_masked_attention(layout, window):
    with pytest.MonkeyPatch.context() as patch:
        emulated_flash.use(patch)
        masked, by_flash = both(*layout, Rules(window))
    for expected, got in zip(masked, by_flash, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-6)


def test_two_calls_a_layer_whatever_the_groups(monkeypatch):
    calls = emulated_flash.use(monkeypatch)
    both([5, 3, 4], [(0, 6), (0, 2), (1, 5), (2, 1)], PLAIN)
    assert calls == ["forward"] * 2 + ["backward"] * 2
    calls.clear()
    both([5, 3], [], PLAIN)
    assert calls == ["forward", "backward"]


def test_a_part_left_out_is_seen(monkeypatch):
    """The comparison on first use notices what a kernel gets wrong."""
    emulated_flash.use(monkeypatch)
    case = "cpu", torch.float32, 4, 2, 8
    assert flash.difference(*case, None) < 1e-5 and flash.difference(*case, 5) < 1e-5
    right = emulated_flash.kernel

    def unshared(q, k, v, spans, scale, *, causal, window=None):
        out, lse, state = right(q, k, v, spans, scale, causal=causal, window=window)
        return out, lse if causal else lse - 9, state  # the prompts hardly count

    monkeypatch.setattr(flash, "kernel", unshared)
    assert flash.difference(*case, None) > flash.TOLERANCE


def test_a_kernel_that_is_wrong_or_refuses_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    gaps = iter([0.001, 0.3, float("nan")])
    monkeypatch.setattr(flash, "difference", lambda *case: next(gaps))
    trusted = flash._trusted.__wrapped__
    case = torch.device("cuda"), torch.bfloat16, 4, 2, 64, False
    assert trusted(*case) and not caplog.records
    assert not trusted(*case) and "differs by 30.0%" in caplog.text
    assert not trusted(*case)

    def refuses(*case):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(flash, "difference", refuses)
    caplog.clear()
    assert not trusted(*case)
    assert "no flash attention in the learner (no kernel image); going on with masks" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))  # a T4
    monkeypatch.setattr(flash, "difference", lambda *case: 0.0)
    assert not trusted(*case)


class OnCuda:
    """As much of a tensor as `serves` looks at."""

    device, is_cuda = torch.device("cuda"), True

    def __init__(self, *shape, dtype=torch.bfloat16):
        self.shape, self.dtype = shape, dtype

    def __len__(self):
        return self.shape[0]


def test_where_it_serves(monkeypatch):
    monkeypatch.setattr(flash, "_trusted", lambda *case: True)

    def asked(width=64, dtype=torch.bfloat16, values=None, rules=PLAIN):
        tensors = (
            OnCuda(8, 5, width, dtype=dtype),
            OnCuda(2, 5, width),
            OnCuda(2, 5, values or width),
        )
        return flash.serves(*tensors, rules)

    assert asked() and asked(dtype=torch.float16) and asked(256) and asked(rules=Rules(window=4))
    assert not asked(dtype=torch.float32)
    assert not asked(264) and not asked(60) and not asked(values=32)
    assert not asked(rules=Rules(cap=50.0)) and not asked(rules=Rules(sinks=torch.zeros(8)))
    assert not flash.serves(*(torch.zeros(2, 5, 64) for _ in range(3)), PLAIN)


# On a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "shared", "width"), [(14, 2, 64), (16, 8, 128), (4, 1, 256)])
@pytest.mark.parametrize("window", [None, 5])
def test_the_cards_own_kernels_agree(dtype, heads, shared, width, window):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("flash kernels need Ampere or later")
    gap = flash.difference(torch.device("cuda"), dtype, heads, shared, width, window)
    assert gap < (0.02 if dtype == torch.bfloat16 else 0.004)


@pytest.mark.cuda
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_model_on_a_gpu_learns_what_it_learns_under_masks(monkeypatch, checkpointed):
    model = tiny_lora(tiny_model(hidden_size=128, num_attention_heads=4, head_dim=32))
    model = model.to("cuda", torch.bfloat16).train()
    found, calls, own = [], [], flash.kernel
    monkeypatch.setattr(flash, "kernel", lambda *a, **k: (calls.append(1), own(*a, **k))[1])
    checkpoint(model, on=checkpointed)
    for serves in (flash.serves, lambda *layer: False):
        monkeypatch.setattr(flash, "serves", serves)
        model.zero_grad()
        with use(model):
            packed = pack(GROUPS, device="cuda")
            token_logprobs(model, packed, vocab_size=SIZE)[0].sum().backward()
        grads = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    assert calls
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.05
