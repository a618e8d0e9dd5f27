"""The computed memory of well-known checkpoints: what it is made from, and that it is counted."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import model_sizes  # noqa: E402

from rlm.models.loading import add_lora  # noqa: E402
from tests.support.tiny_families import tiny_family  # noqa: E402


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_configuration_has_its_result_and_its_source():
    """Run `python benchmarks/model_sizes.py` after a change of model_configs.json."""
    given, found = read(model_sizes.CONFIGS), read(model_sizes.RESULT)
    assert found["sources"] == given["sources"]
    for one, seen in zip(given["checkpoints"], found["checkpoints"], strict=True):
        assert one["name"] == seen["name"] and one["source"] == seen["source"] in given["sources"]
        assert abs(seen["weights"] / 1e9 / one["weights"] - 1) <= model_sizes.OFF
        assert seen["grpo_bytes"] >= seen["sft_bytes"] > 2 * seen["weights"]


def test_a_model_without_bytes_keeps_as_much_as_one_with_them():
    real = add_lora(tiny_family("qwen3"), r=4, alpha=8, seed=0)
    kept, states = model_sizes.kept_bytes(real)
    assert kept.token > 0 and states == 0
    with torch.device("meta"):
        base = real.get_base_model()
        empty = add_lora(type(base)(base.config), r=4, alpha=8, seed=0)
    assert model_sizes.kept_bytes(empty) == (kept, states)


def test_a_rows_states_are_counted():
    # A state of Gated DeltaNet: 4 heads of 8 x 8, and 4 inputs of a convolution over 64 channels,
    # in 3 of 4 layers, of 4 bytes.
    _, states = model_sizes.kept_bytes(add_lora(tiny_family("qwen3_5_text"), r=4, alpha=8, seed=0))
    assert states == 3 * 4 * (4 * 8 * 8 + 4 * 64)


def test_a_count_of_weights_that_is_not_the_checkpoints_is_an_error():
    settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    one = {"name": "small", "source": "litgpt", "model_type": "llama", "weights": 0.5,
           "settings": settings | {"num_attention_heads": 1}}  # fmt: skip
    with pytest.raises(ValueError, match=r"small: \d+ weights, not 0\.5 billion"):
        model_sizes.size_of(one)
