"""The model of benchmarks/scale_model.py held against what was measured on a CPU.

It reads what benchmarks/grpo_vs_trl.py and benchmarks/scaling.py have written, whatever that is;
two rates are fitted to one file and hold for all the others. torch is not imported.
"""

import json
from dataclasses import replace
from pathlib import Path

import scale_model as scale
from qwen2_shape import MIDDLE, MODELS, SIZES, SMALL, Qwen2Shape, resized
from scale_model import HALF, SINGLE, Load, Machine, Rates

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
FITTED = "grpo_vs_trl_small_float32_cpu"  # the rates come from this file, and hold for all others
CPU_TOKENS, CPU_LEAST, CPU_BYTES = 1024, 256, 2**29  # rlm.learner.token_budget


def measured(results: Path = RESULTS) -> list[dict]:
    """Return a dictionary a file of grpo_vs_trl.py: predicted and measured seconds and MB."""
    files = sorted(results.glob("grpo_vs_trl_*_cpu.json"))
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    rates = fitted(read[FITTED])
    return [compared(found, rates) | {"fitted": name == FITTED} for name, found in read.items()]


def fitted(found: dict) -> Rates:
    """Return the shares of the machine's rates that one file reached; reading is taken as 1."""
    m, load, machine, _ = case(found)
    taken = found["seconds"]["ours"]
    full = Rates(1.0, 1.0, 1.0)
    return Rates(
        learning=scale.learning_seconds(m, load, machine, full) / taken["learn"]["median"],
        sampling=scale.sampling_seconds(m, load, machine, full) / taken["rollout"]["median"],
        reading=1.0,
    )


def case(found: dict) -> tuple[Qwen2Shape, Load, Machine, int]:
    """Return the model, load and machine of a measurement, and the bytes of a number."""
    shape = {"small": SMALL, "q05": MODELS[0]}.get(found["size"]) or tiny()
    asked, tokens, machine = found["load"], found["ours_tokens"], found["machine"]
    load = Load(
        asked["prompts"], asked["group"], tokens["prompt"] / asked["prompts"],
        found["mean_completion_tokens"]["ours"], tokens["longest"],
    )  # fmt: skip
    flops, bandwidth = machine["matrix_gflops"] * 1e9, machine["memory_gbs"] * 1e9
    size = SINGLE if found["dtype"] == "float32" else HALF
    return shape, load, Machine("CPU", 1, 0, flops, bandwidth, 1), size


def tiny() -> Qwen2Shape:
    path = ROOT / "weights" / "tiny_base" / "config.json"
    c = json.loads(path.read_text(encoding="utf-8"))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "intermediate_size", "vocab_size")  # fmt: skip
    hidden, layers, heads, kv_heads, mlp, vocabulary = (c[name] for name in names)
    tied = c["tie_word_embeddings"]
    return Qwen2Shape(hidden, layers, heads, kv_heads, mlp, vocabulary, tied, "tiny")


def learning_bytes(m: Qwen2Shape, load: Load, size: float) -> float:
    """Return what learning adds on a CPU: a micro-batch's activations and the logits' chunk."""
    each = scale.activation_bytes(m, size, on_cpu=True)
    most = max(CPU_LEAST, min(CPU_TOKENS, CPU_BYTES / each))
    return min(most, load.prompt_tokens + load.completion_tokens) * each + scale.logits_bytes(
        m, on_cpu=True
    )


def compared(found: dict, rates: Rates) -> dict:
    """Return the predicted and the measured figures of one file."""
    m, load, machine, size = case(found)
    taken = found["seconds"]["ours"]
    return {
        "name": f"{found['size']}, {found['dtype']}",
        "sampling_seconds": scale.sampling_seconds(m, load, machine, rates, size),
        "measured_sampling_seconds": taken["rollout"]["median"],
        "learning_seconds": scale.learning_seconds(m, load, machine, rates),
        "measured_learning_seconds": taken["learn"]["median"],
        "learning_mb": learning_bytes(m, load, size) / 2**20,
        "measured_learning_mb": found["learning_peak_mb"]["ours"],
    }


def measured_axes(results: Path = RESULTS) -> list[dict]:
    """Return the two largest points of each axis of scaling.py, predicted and measured.

    On the machine and with the rates of FITTED, float32, every completion at its longest.
    """
    base = json.loads((results / f"{FITTED}.json").read_text(encoding="utf-8"))
    rates, machine = fitted(base), case(base)[2]
    found = json.loads((results / "scaling_cpu.json").read_text(encoding="utf-8"))
    made = []
    for axis, points in found["axes"].items():
        for point in points[-2:]:
            m, load = axis_case(axis, point["x"])
            made.append({
                "name": axis.replace("_", " "), "x": point["x"],
                "sampling_seconds": scale.sampling_seconds(m, load, machine, rates, SINGLE),
                "measured_sampling_seconds": point["rollout"]["median"],
                "learning_seconds": scale.learning_seconds(m, load, machine, rates),
                "measured_learning_seconds": point["learn"]["median"],
                "learning_mb": learning_bytes(m, load, SINGLE) / 2**20,
                "measured_learning_mb": point["learn_mb"],
            })  # fmt: skip
    return made


def axis_case(axis: str, x: int) -> tuple[Qwen2Shape, Load]:
    """Return the model and load of a point of scaling.py."""
    m, load = MIDDLE, Load(4, 8, 128, 128, 128)
    if axis == "group":
        return m, replace(load, group=x)
    if axis == "completion_tokens":
        return m, replace(load, completion=x, longest=x)
    if axis == "vocabulary":
        return replace(m, vocabulary=x), load
    shapes = [resized(m, *size) for size in SIZES.values()]
    return next(s for s in shapes if s.body_weights == x), load
