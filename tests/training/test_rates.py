"""The learning rate: its peak by the width where none was set, and its schedule."""

from types import SimpleNamespace

import pytest
from torch import nn

from training import rates


def model(width: int):
    return SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(3, width))


def test_the_peak_is_that_of_the_width_unless_one_was_set():
    by_width = SimpleNamespace(learning_rate=None, script="sft", train="lora")
    assert rates.peak_rate(by_width, model(896)) == rates.PEAKS["sft"]
    # 4 ** 0.78 = 2.95
    assert rates.by_width("grpo", 4 * 896) == pytest.approx(rates.PEAKS["grpo"] / 2.95, rel=0.05)
    assert rates.by_width("sft", 576) > rates.PEAKS["sft"] > rates.by_width("sft", 1024)
    full = SimpleNamespace(learning_rate=None, script="sft", train="full")
    assert rates.peak_rate(full, model(896)) == pytest.approx(rates.PEAKS["sft"] / 10)
    assert "all weights" in rates.told(full, model(896))
    assert rates.peak_rate(SimpleNamespace(learning_rate=0.25), model(896)) == 0.25


def test_a_rate_rises_stays_and_falls():
    constant = SimpleNamespace(warmup_steps=4, lr_schedule="constant")
    assert [rates.learning_rate(s, 8, 0.8, constant) for s in (1, 2, 4, 8)] == [0.2, 0.4, 0.8, 0.8]
    linear = SimpleNamespace(warmup_steps=0, lr_schedule="linear")
    assert [rates.learning_rate(s, 4, 0.8, linear) for s in (1, 3)] == [0.8, 0.4]
