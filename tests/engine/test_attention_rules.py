"""Windows, caps, sinks, sizes by layer, shared keys, states: natively, and seen when left out."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlm.engine import support
from rlm.engine.engine import Engine, Sampling
from rlm.engine.native import NativeRunner
from rlm.learner import logprobs
from rlm.models import attention
from rlm.models.attention import PLAIN, Rules, softmax_attention, source_of, windows_of
from rlm.models.memory import token_bytes
from rlm.records import Prompt
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
LONG = Prompt(list(b"Each hen lays two eggs; how many do nine hens lay?"))  # 50 tokens, window 16
SHORT = Prompt(list(b"2+2="))


def opened(name: str):
    model = tiny_family(name)
    if model.config.to_dict().get("attn_logit_softcapping"):
        model.set_attn_implementation("eager")
    return model


def greedy(model, prompt: Prompt, tokens: int) -> list[int]:
    """Return what transformers' own generate makes of one prompt."""
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return out[0, len(prompt.ids) :].tolist()


# The slow ones are of kinds that a quick one has, too.
QUICK = ["mistral", "gpt_oss", "gemma4_text", "qwen3_5_text", "lfm2", "granitemoehybrid"]
SLOW = ["gemma2", "gemma3_text", "ministral3", "phimoe", "falcon_h1"]
NATIVE = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", NATIVE)
def test_prompts_and_completions_outgrow_the_window_and_states_are_carried(name):
    model = opened(name)
    expected = [greedy(model, prompt, 20) for prompt in (LONG, SHORT)]
    engine = Engine(model, TOKENIZER)
    assert isinstance(engine._runner, NativeRunner)
    assert logprobs.packs(model)
    groups = engine.generate([LONG, SHORT], 2, Sampling(20, temperature=0.0), seed=0)
    assert [[r.ids for r in group] for group in groups] == [[ids] * 2 for ids in expected]


# What is left out of the attention, and a family that has it.
LEFT_OUT = {"window": "mistral", "cap": "gemma2", "sinks": "gpt_oss"}


@pytest.mark.parametrize(("rule", "name"), LEFT_OUT.items())
def test_a_rule_that_is_left_out_is_seen_by_engine_and_learner(rule, name, monkeypatch):
    made = Rules
    monkeypatch.setattr(attention, "Rules", lambda *given: replace(made(*given), **{rule: None}))
    monkeypatch.setattr(support, "_FOUND", {})
    monkeypatch.setattr(logprobs, "_WAYS", {})
    model = opened(name)
    runner = Engine(model, TOKENIZER)._runner
    assert not isinstance(runner, NativeRunner)
    assert "differ" in runner.support.why or "window of 16" in runner.support.why
    assert not logprobs.packs(model)


def test_a_window_longer_than_what_is_tried_is_missed_too(monkeypatch):
    made = Rules
    monkeypatch.setattr(attention, "Rules", lambda *given: replace(made(*given), window=None))
    monkeypatch.setattr(support, "_FOUND", {})
    model = tiny_family("mistral", sliding_window=10_000)
    runner = Engine(model, TOKENIZER)._runner
    assert not isinstance(runner, NativeRunner)
    assert runner.support.why == "its window of 10000 tokens is not told to the attention"


class OnCuda:
    device, dtype = torch.device("cuda"), torch.float16


def test_where_key_heads_are_fewer_they_are_repeated_but_for_kernels_that_take_them(monkeypatch):
    def asked(capability, dtype, masked):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(OnCuda, "dtype", dtype)
        return attention.takes_fewer_keys(OnCuda(), masked=masked)

    assert asked((8, 0), torch.bfloat16, False) and asked((9, 0), torch.float16, False)
    assert not asked((7, 5), torch.float16, False)  # a T4 has no flash kernels
    assert not asked((8, 0), torch.float32, False) and not asked((8, 0), torch.float16, True)
    assert attention.takes_fewer_keys(torch.zeros(1), masked=True)
    query, key, value = (torch.randn(1, heads, 5, 8) for heads in (4, 2, 2))
    expected = softmax_attention(query, key, value, None, None, PLAIN)
    monkeypatch.setattr(attention, "takes_fewer_keys", lambda query, masked: False)
    torch.testing.assert_close(softmax_attention(query, key, value, None, None, PLAIN), expected)


def test_a_sink_takes_its_share_and_a_cap_bends_the_scores():
    # One query, two keys with scores 1 and 0: weights e / (e + 1 + sink's e^2).
    query = torch.tensor([[[[1.0]]]])
    key, value = torch.tensor([[[[1.0], [0.0]]]]), torch.tensor([[[[10.0], [20.0]]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    e = torch.tensor(1.0).exp()
    out = softmax_attention(query, key, value, mask, 1.0, Rules(sinks=torch.tensor([2.0])))
    assert out.item() == pytest.approx(((10 * e + 20) / (e + 1 + e**2)).item(), abs=1e-5)
    out = softmax_attention(query, key, value, mask, 1.0, Rules(cap=0.5))
    bent = (0.5 * torch.tanh(torch.tensor(1.0) / 0.5)).exp()
    assert out.item() == pytest.approx(((10 * bent + 20) / (bent + 1)).item(), abs=1e-5)
    out = softmax_attention(query, key, value, mask, 1.0, PLAIN)
    assert out.item() == pytest.approx(((10 * e + 20) / (e + 1)).item(), abs=1e-5)


def test_layers_tell_their_windows_and_sizes():
    model = tiny_family("gemma4_text")
    assert windows_of(model.config) == [16, None, 16, None]
    # Two key heads of 8 in the sliding layer, of 16 in the full one; the other two layers have no
    # keys of their own. Keys and values, 4 bytes each.
    assert token_bytes(model) == 2 * 4 * 2 * (8 + 16)
    assert [source_of(model.config, layer) for layer in (2, 3)] == [0, 1]
    # Of several layers of a kind with keys of their own, the last.
    kinds = ["sliding_attention", "full_attention"] * 3
    deeper = SimpleNamespace(layer_types=kinds, num_hidden_layers=6, num_kv_shared_layers=2)
    assert [source_of(deeper, layer) for layer in (4, 5)] == [2, 3]
    assert windows_of(tiny_family("qwen2").config) == [None] * 4
