"""Layers that run again in the backward: the same gradients, fewer bytes, and when it is done."""

import logging

import pytest
import torch

from rlm.errors import InputError
from rlm.learner import token_budget
from rlm.learner.logprobs import pack, token_logprobs, use, way_of
from rlm.learner.token_budget import Activations, TokenBudget, activations, checkpoint
from tests.support import emulated_flash, tracked_bytes
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import SIZE, tiny_lora, tiny_model

GROUPS = [
    ([1, 2, 3, 4, 5] * 6, [[7, 8, 9] * 5, [10, 11], [12]]),
    ([20, 21], [[30, 31, 32, 33], [34]]),
]


def gradients(model, *, on: bool) -> dict[str, torch.Tensor]:
    checkpoint(model, on=on)
    torch.manual_seed(0)  # some have dropout
    model.zero_grad()
    with use(model):
        token_logprobs(model, pack(GROUPS), vocab_size=SIZE)[0].sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "family", ["qwen3", "gemma3_text", "gpt2", "qwen3_moe", "qwen3_next", "falcon"]
)
def test_gradients_are_the_same_bit_for_bit(family):
    model = tiny_family(family).train()
    expected, got = gradients(model, on=False), gradients(model, on=True)
    assert expected.keys() == got.keys() and len(got) > 5
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_also_of_a_lora_by_flash_kernels(monkeypatch):
    model = tiny_lora(tiny_model()).train()
    masked = gradients(model, on=True)
    calls = emulated_flash.use(monkeypatch)
    plain, again = gradients(model, on=False), gradients(model, on=True)
    layers = model.config.num_hidden_layers
    # Two forwards a layer, two backwards; where it is checkpointed the forwards run twice.
    assert calls.count("forward") == 2 * layers + 4 * layers
    assert calls.count("backward") == 2 * layers * 2
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    for name in masked:
        torch.testing.assert_close(again[name], masked[name], atol=1e-4, rtol=1e-4)


def test_a_backward_outside_would_run_other_layers():
    model = tiny_family("falcon").train()  # padded: its own attention, but fused LoRA layers
    assert way_of(model) != "packed"
    checkpoint(model, on=True)
    with pytest.raises(ValueError, match="run forward and backward inside"):
        token_logprobs(model, pack(GROUPS), vocab_size=SIZE)


def test_a_model_that_cannot_says_so():
    model = tiny_family("gemma3n_text")  # its last layers take keys of earlier ones
    with pytest.raises(InputError, match="--checkpointing on: Gemma3nForCausalLM cannot run"):
        TokenBudget(model, SIZE, checkpointing="on")
    budget = TokenBudget(model, SIZE, longest=10**12, checkpointing="auto")
    assert not budget.checkpointing


# When it is done


def fitting(monkeypatch, *, free: int):
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: free)
    monkeypatch.setattr(token_budget, "activations", lambda *of: Activations(1000.0, 10.0))


def test_auto_is_where_the_longest_completion_would_not_fit(monkeypatch, caplog):
    model = tiny_lora(tiny_model())
    # Half of it holds 60 tokens of 1,000 bytes and 60 * 10 under a mask, not 70.
    fitting(monkeypatch, free=2 * 100_000)
    with caplog.at_level(logging.INFO, logger="rlm"):
        assert not TokenBudget(model, SIZE, longest=60, checkpointing="auto").checkpointing
        assert not model.get_base_model().is_gradient_checkpointing and not caplog.text
        assert TokenBudget(model, SIZE, longest=70, checkpointing="auto").checkpointing
    assert model.get_base_model().is_gradient_checkpointing
    assert "does not hold a sequence of 70 tokens without" in caplog.text
    assert not TokenBudget(model, SIZE, longest=70, checkpointing="off").checkpointing
    assert not model.get_base_model().is_gradient_checkpointing
    assert TokenBudget(model, SIZE, longest=9, checkpointing="on").checkpointing


def test_a_mask_counts_with_the_square_of_the_length(monkeypatch):
    fitting(monkeypatch, free=2 * 1_800_000)
    model = tiny_model()
    assert TokenBudget(model, SIZE, longest=100).tokens == 900  # of 2,000 bytes each
    assert TokenBudget(model, SIZE, longest=400).tokens == 360  # of 5,000


def test_what_a_mask_keeps_is_measured():
    """A CPU's attention keeps a mask of [C, P + C] numbers in each layer; flash kernels none."""
    model = tiny_model(num_hidden_layers=3).train()
    found = activations(model, SIZE)
    assert 3 * 1 <= found.pair <= 3 * 4 + 1
    with pytest.MonkeyPatch.context() as patch:
        emulated_flash.use(patch)
        assert activations(model, SIZE).pair < 0.5


def test_activations_of_a_checkpointed_model_are_its_layers_inputs_and_one_layer():
    model = tiny_model(num_hidden_layers=3).train()
    plain = activations(model, SIZE)
    checkpoint(model, on=True)
    found = activations(model, SIZE)
    # 3 layers of 32 numbers in float32, and two thirds of what all three keep.
    assert found.token == pytest.approx(3 * 32 * 4 + 2 / 3 * plain.token)
    assert found.pair == pytest.approx(2 / 3 * plain.pair)
    assert model.is_gradient_checkpointing


def test_out_of_memory_of_a_single_sequence_turns_it_on(monkeypatch, caplog):
    fitting(monkeypatch, free=10**9)
    model = tiny_lora(tiny_model())
    budget = TokenBudget(model, SIZE, 1200, longest=700, checkpointing="auto")
    seen = []

    def work(token_budget):
        seen.append((token_budget, budget.checkpointing))
        if not budget.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    with caplog.at_level(logging.WARNING, logger="rlm"):
        assert budget.attempt(work, undo=lambda: None) == "done"
    assert seen == [(1200, False), (600, False), (600, True)]
    assert "out of memory: going on with --checkpointing on" in caplog.text
    told = budget.state()
    assert told == {"tokens": 600, "checkpointing": True}
    again = TokenBudget(model, SIZE, 1200, longest=700, checkpointing="auto")
    again.restore(told)
    assert again.tokens == 600 and model.get_base_model().is_gradient_checkpointing


# Bytes at real sizes, on fake tensors

IDS = list(range(5, 20_000))


@pytest.mark.slow
@pytest.mark.ci
def test_a_row_of_16384_tokens_of_a_06b_takes_under_5_gb(monkeypatch):
    groups = [(IDS[:1], [IDS[1:16385]])]
    assert tracked_bytes.peak_gb(monkeypatch, "Qwen3-0.6B", groups, checkpointing=True) < 3.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups", "checkpointing", "bound"),
    [
        ("Qwen3-0.6B", [(IDS[:1], [IDS[1:16385]])], False, 31),
        ("Qwen2.5-7B", [(IDS[:128], [IDS[:8192]])], True, 20),
        ("Qwen2.5-7B", [(IDS[:128], [IDS[:512]] * 8)] * 4, True, 24),
        ("Qwen2.5-7B", [(IDS[:128], [IDS[:512]] * 8)] * 4, False, 117),
    ],
)
def test_bytes_of_other_sizes(monkeypatch, name, groups, checkpointing, bound):
    found = tracked_bytes.peak_gb(monkeypatch, name, groups, checkpointing=checkpointing)
    assert 0.9 * bound < found < bound
