"""The plan on paper: its functions by hand, its counts by real models, its document by its code."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scale_check  # noqa: E402
import scale_model as scale  # noqa: E402
import scale_tables  # noqa: E402
import shapes  # noqa: E402
from qwen2_shape import MODELS, Qwen2Shape  # noqa: E402
from scale_model import FOUR_BIT, HALF, SINGLE, Load, Machine, Rates  # noqa: E402
from tables import fill  # noqa: E402

import rlm.learner.lm_head  # noqa: E402
from rlm.learner import token_budget  # noqa: E402
from rlm.models import memory  # noqa: E402
from rlm.models.loading import add_lora  # noqa: E402

# Keys are 2 wide. A layer: 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8 = 144 linear weights.
M = Qwen2Shape(4, 2, 2, 1, 8, 10)
# 24 completion tokens, 10 of prompts; a token of a completion sees 5 + 4 / 2 = 7 on average.
LOAD = Load(questions=2, group=3, prompt=5, completion=4, longest=6)


def test_weights_by_hand():
    assert M.kv == 2 and M.body_weights == 288 and M.head_weights == 40
    # Biases of q, k, v and two norms a layer: 4 + 2 + 2 + 8; the last norm 4.
    assert scale.all_weights(M) == 288 + 2 * 16 + 4 + 40
    # q, o: 4 + 4 each; k, v: 4 + 2 each; gate, up, down: 4 + 8 each; so 64 a rank and layer.
    assert scale.lora_weights(M, 3) == 2 * 3 * 64


def test_bytes_by_hand():
    assert scale.weight_bytes(M) == 2 * 364
    assert scale.weight_bytes(M, FOUR_BIT) == 288 * 0.5625 + 76 * 2
    assert scale.cache_bytes(M) == 2 * 2 * 2 * 2  # keys and values, layers, width, bytes
    assert scale.activation_bytes(M, SINGLE) == 2 * 4 * (6 * 4 + 2 * 2 + 4 * 8)
    assert scale.activation_bytes(M, HALF) == 2 * (2 * 60 + 2 * 4 * 4)
    # q, k, v and the output of 4, 2, 2 and 4 take 2 bytes more each, the output 2 besides.
    wide = 2 * (2 * 60 + 2 * 4 * 4 + 2 * 12 + 2 * 4)
    assert scale.activation_bytes(M, HALF, on_cpu=True) == wide
    assert scale.lora_bytes(M, 1) == 128 * (5 * 4 + 2)
    assert scale.lora_bytes(M, 1, reference=True) == 128 * (6 * 4 + 2)
    assert scale.sync_bytes(M, 1) == 128 * 4
    assert scale.all_reduce_bytes(M, 4, 1) == 2 * 3 / 4 * 128 * 4
    assert scale.all_reduce_bytes(M, 1, 1) == 0
    assert scale.logits_bytes(M) == 3 * 4 * 4096 * 10
    assert scale.logits_bytes(M, on_cpu=True) == 3 * 4 * 512 * 10


def test_operations_by_hand():
    assert (LOAD.completion_tokens, LOAD.prompt_tokens) == (24, 10)
    assert scale.attention_flops(M, 24, 7) == 4 * 2 * 4 * 7 * 24
    forward = 2 * 288 * 34 + 2 * 40 * 24 + 5376
    assert scale.sampling_flops(M, LOAD) == forward
    assert scale.learning_flops(M, LOAD) == 2 * forward
    assert scale.learning_flops(M, LOAD, updates=2, reference=True) == 5 * forward
    assert scale.learning_flops(M, LOAD, updates=2, again=True) == 6 * forward


def test_decoding_by_hand():
    assert scale.decode_steps(LOAD) == 6
    assert scale.decode_steps(LOAD, rows=2) == 12  # 24 tokens, two at a time
    assert scale.decode_bytes(M, LOAD) == 6 * 728 + 24 * 7 * 16
    untied = Qwen2Shape(4, 2, 2, 1, 8, 10, tied=False)
    # The embedding has 40 weights more, and only some of its rows are read.
    assert scale.decode_bytes(untied, LOAD) == scale.decode_bytes(M, LOAD)


def test_sampling_takes_the_longer_of_operations_and_bytes():
    rates = Rates(0.5, 0.5, 0.5, token_seconds=0.1)
    operations, read = scale.sampling_flops(M, LOAD), scale.decode_bytes(M, LOAD)
    machine = Machine("x", 1, 1e9, operations, read / 3, 1)
    assert scale.sampling_seconds(M, LOAD, machine, rates) == pytest.approx(6 + 6 * 0.1)
    machine = Machine("x", 1, 1e9, operations / 5, read / 3, 1)
    assert scale.sampling_seconds(M, LOAD, machine, rates) == pytest.approx(10 + 6 * 0.1)
    assert scale.learning_seconds(M, LOAD, machine, rates) == pytest.approx(20)


def test_what_fits_is_where_memory_ends():
    m, load = MODELS[2], Load()
    for size in (HALF, FOUR_BIT):
        needed = scale.needed_bytes(m, load, size)
        for factor, wanted in ((1.001, True), (0.999, False)):
            machine = Machine("x", 1, needed * factor, 1, 1, 1)
            assert scale.fits(m, load, machine, size) is wanted


# As the model cards on the hub state them: all weights, and without the embeddings, in 10⁹.
PUBLISHED = {"0.5B": (0.49, 0.36), "1.5B": (1.54, 1.31), "7B": (7.61, 6.53), "14B": (14.7, 13.1),
             "32B": (32.5, 31.0), "72B": (72.7, 70.0)}  # fmt: skip


@pytest.mark.parametrize("m", MODELS, ids=lambda m: m.name)
def test_qwen_has_as_many_weights_as_published(m):
    found = scale.all_weights(m)
    without = found - m.head_weights * (1 if m.tied else 2)
    assert (found / 1e9, without / 1e9) == pytest.approx(PUBLISHED[m.name], rel=0.01)


def test_counts_are_those_of_a_real_model():
    m = shapes.Workload(64, 3, 4, 2, 160, 300)
    model = shapes.random_model(m)
    bias = model.lm_head.bias.numel()  # of the benchmark's models alone
    assert scale.all_weights(m) == sum(p.numel() for p in model.parameters()) - bias
    linear = [w for n, w in model.named_parameters() if "proj.weight" in n]
    assert m.body_weights == sum(weight.numel() for weight in linear)
    lora = add_lora(model, r=5, alpha=10, seed=0)
    trained = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    assert scale.lora_weights(m, 5) == trained


@pytest.mark.parametrize("dtype, size", [(torch.float32, SINGLE), (torch.bfloat16, HALF)])
def test_activations_are_near_what_autograd_keeps(dtype, size):
    m = shapes.Workload(256, 2, 4, 2, 1024, 300)
    model = shapes.random_model(m, dtype=dtype)
    lora = add_lora(model, r=4, alpha=8, seed=0)
    kept = token_budget.activations(lora, 300).each(96)
    assert scale.activation_bytes(m, size, on_cpu=True) == pytest.approx(kept, rel=0.2)


def test_its_numbers_of_our_code_are_ours():
    assert scale.LOGITS.items() <= rlm.learner.lm_head.LOGITS.items()
    assert scale.SHARE == memory.SHARE
    assert token_budget.MOST["cuda"] == scale.MICRO_TOKENS
    assert token_budget.MOST["cpu"] == scale_check.CPU_TOKENS
    assert scale_check.CPU_LEAST == token_budget.LEAST
    assert scale_check.CPU_BYTES == token_budget.CPU_BYTES
    assert memory.ROWS == scale.ROWS


def test_the_points_of_the_scaling_benchmark_are_found_again():
    import scaling

    def same(m, shape):
        names = ("hidden", "layers", "heads", "kv_heads", "mlp", "vocabulary", "tied")
        return all(getattr(m, name) == getattr(shape, name) for name in names)

    for axis, values in scaling.AXES.items():
        for value in values:
            shape = scaling.work_of(axis, value)
            x = shape.body_weights if axis == "body_weights" else value
            m, load = scale_check.axis_case(axis, x)
            assert same(m, shape), (axis, value)
            assert (load.questions, load.group, load.longest) == (
                shape.prompts, shape.group, shape.max_tokens,
            )  # fmt: skip


def test_the_fit_is_exact_where_it_was_made_and_nowhere_else():
    cases = scale_check.measured()
    for case in cases:
        for figure in ("sampling_seconds", "learning_seconds"):
            ratio = case[figure] / case[f"measured_{figure}"]
            assert (ratio == pytest.approx(1.0)) is case["fitted"], (case["name"], figure)
            # What the document says of it: right within a factor of four everywhere.
            assert 1 / 4 < ratio < 4, (case["name"], figure, ratio)
    assert sum(case["fitted"] for case in cases) == 1 and len(cases) > 1


def test_ways_by_the_size_of_the_machine():
    by_name = {m.name: m for m in MODELS}
    h100 = next(m for m in scale.MACHINES if m.name == "H100")
    node = next(m for m in scale.MACHINES if m.name == "8 × H100")
    load = Load()
    assert scale_tables.way(by_name["7B"], load, h100) == "own"
    assert scale_tables.way(by_name["7B"], load, node) == "torchrun"
    assert scale_tables.way(by_name["32B"], load, h100) == "own"  # 66 of 80 GB, checkpointed
    assert scale_tables.way(by_name["72B"], load, h100) == "4bit"
    many = next(m for m in scale.MACHINES if m.name == "64 × H100")
    assert scale_tables.way(by_name["72B"], load, many) == "fsdp"
    assert scale_tables.way(by_name["72B"], replace(load, longest=20_000), h100) == "no"
    assert scale_tables.tensor_parallel(by_name["7B"], h100) == 1  # 15 of 56 GB
    assert scale_tables.tensor_parallel(by_name["72B"], h100) == 4  # 145 of 2 * 56, of 4 * 56 GB


def test_groups_are_whole_on_the_busiest_process():
    assert scale_tables.share(Load(questions=32), 8).questions == 4
    assert scale_tables.share(Load(questions=33), 8).questions == 5
    assert scale_tables.share(Load(questions=3), 64).questions == 1


def test_the_document_has_the_tables_of_the_code():
    """Run `python benchmarks/scale_tables.py` after a change of the model or of the results."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert fill(text, scale_tables.tables()) == text
    assert text.count("<!-- table ") == len(scale_tables.tables())
    kept = json.loads((ROOT / "benchmarks/results/scale_model.json").read_text(encoding="utf-8"))
    assert kept["steps"]["7B on H100"]["way"] == "own"
    assert "none is measured" in text
