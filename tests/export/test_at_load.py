"""An adapter merged at load in bfloat16: the same model but for rounding, or it stays apart."""

import logging

import pytest
import torch

from rlm.engine.engine import Engine, Sampling
from rlm.export import at_load, proof
from rlm.models.lora_linear import plain_lora
from rlm.models.policy import open_policy
from tests.support.running import ROOT

WEIGHTS = f"{ROOT}/weights"


def opened(dtype="bfloat16"):
    return open_policy(
        f"{WEIGHTS}/tiny_base", f"{WEIGHTS}/final_rlm_lora", device="cpu", dtype=dtype
    )


def test_what_is_merged_is_the_model_with_its_adapter(caplog):
    caplog.set_level(logging.INFO, "rlm")
    live, policy = opened(), opened()
    merged = at_load.merged_at_load(policy, "think", opened)
    assert not hasattr(merged.model, "get_base_model"), "no LoRA is left to run"
    assert merged.model.dtype == torch.bfloat16 and merged.tokenizer is policy.tokenizer
    # W + scaling * B A, rounded once.
    layer = live.model.get_base_model().model.layers[1].self_attn.q_proj
    exact = layer.base_layer.weight.float() + layer.scaling["default"] * (
        layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    )
    assert torch.equal(merged.model.model.layers[1].self_attn.q_proj.weight, exact.bfloat16())
    assert "the adapter is merged" in caplog.text and "--unmerged" in caplog.text
    questions = proof.prompts(merged.tokenizer, "think")[:8]
    answers = [
        Engine(model, merged.tokenizer).generate(questions, 1, Sampling(24, 0.0), seed=0)
        for model in (live.model, merged.model)
    ]
    texts = [[rollout.text for (rollout,) in each] for each in answers]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 6


def test_what_rounding_would_make_another_model_stays_apart(caplog, monkeypatch):
    def weak():
        """An adapter that is far below the last bit of the weights."""
        policy = opened()
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.data.mul_(1e-3)
        return policy

    kept = at_load.merged_at_load(weak(), "think", weak)
    assert hasattr(kept.model, "get_base_model")
    assert "stays beside the weights" in caplog.text and "--dtype float32" in caplog.text
    caplog.clear()
    merge = at_load.merge

    def wrong(model):
        for module in filter(plain_lora, model.modules()):
            module.scaling["default"] *= 2
        return merge(model)

    monkeypatch.setattr(at_load, "merge", wrong)
    kept = at_load.merged_at_load(opened(), "think", opened)
    assert hasattr(kept.model, "get_base_model") and "another one" in caplog.text


def test_where_nothing_is_to_be_merged_nothing_is(monkeypatch):
    for policy in (opened("float32"), open_policy(f"{WEIGHTS}/tiny_base", None, device="cpu")):
        assert at_load.merged_at_load(policy, "think", pytest.fail) is policy
    policy = opened()
    module = next(m for m in policy.model.modules() if hasattr(m, "lora_variant"))
    monkeypatch.setitem(module.lora_variant, "default", object())  # as of a DoRA
    assert "more than a plain LoRA" in at_load.obstacle(policy.model)
    policy = opened()
    policy.model.get_base_model().config.quantization_config = {"bits": 4}
    assert "quantised" in at_load.obstacle(policy.model)
