"""Every script on tiny random models of families that do more than plain attention."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.running import start, succeed
from tests.support.tiny_families import EXPERTS, save, tiny_family

pytestmark = pytest.mark.slow
SIZES = {"max_position_embeddings": 1024, "num_hidden_layers": 2}
TWO = {"layer_types": ["sliding_attention", "full_attention"]}
STATES = {"layer_types": ["linear_attention", "full_attention"]}
# Families, settings of their own, and what the checkpoint wraps its text model in.
FAMILIES: dict[str, tuple[str, dict, str]] = {
    "gemma3": ("gemma3_text", TWO, "gemma3"),
    "gemma4": ("gemma4_text", {"num_hidden_layers": 4} | EXPERTS["gemma4_text"], ""),
    "qwen3_5": ("qwen3_5_text", STATES, "qwen3_5"),
    "gpt_oss": ("gpt_oss", TWO, ""),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}, ""),
    "granite4": ("granitemoehybrid", STATES, ""),
    "mistral": ("mistral", {}, ""),
    "qwen3_moe": ("qwen3_moe", {}, ""),
}
# Families whose experts learn, too.
LEARNED = {"gemma4": "attention,experts", "gpt_oss": "experts", "qwen3_moe": "attention,experts"}
QUESTION = "Calculate 2 + 3"


def wrap(folder, kind: str) -> None:
    """Make a folder's checkpoint one of a wrapper for pictures, with a weight of its own."""
    weights = load_file(folder / "model.safetensors")
    inner = {f"model.language_model.{n.removeprefix('model.')}": w for n, w in weights.items()
             if n.startswith("model.")}  # fmt: skip
    rest = {n: w for n, w in weights.items() if not n.startswith("model.")}
    seen = {"model.vision_tower.weight": torch.zeros(2)}
    save_file(inner | rest | seen, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    config = {"model_type": kind, "text_config": text, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))


def answered(folder, *more) -> str:
    asked = ["--max-tokens", 8, "--json", QUESTION, *more]
    return json.loads(succeed("inference.py", *asked, cwd=folder).stdout)["text"]


@pytest.mark.parametrize("name", FAMILIES)
def test_both_stages_an_evaluation_a_question_and_a_merged_export(name, tmp_path):
    family, settings, wrapper = FAMILIES[name]
    save(tiny_family(family, **SIZES | settings), tmp_path / "base")
    if wrapper:
        wrap(tmp_path / "base", wrapper)
    # Of random weights no answer is right: without a shaped reward there were nothing to learn.
    (tmp_path / "recipe.yaml").write_text(
        "grpo: {rewards: 'repetition=1,length=1', probe: 0, temperature: 2.0}\n"
    )
    base = ["--model", "base", "--config", "recipe.yaml", "--eval-samples", 2, "--max-tokens", 16]
    base += ["--lora-targets", LEARNED.get(name, "all-linear")]
    steps = ["--sft-max-steps", 2, "--grpo-max-steps", 2, "--grpo-group-size", 4, "--grpo-lr", 0.01]
    succeed("train.py", *base, "--num-samples", 16, "--sft-lr", 0.01, *steps, cwd=tmp_path)
    own = answered(tmp_path)
    logs = [path.read_text() for path in tmp_path.glob("runs/**/log.csv")]
    assert logs and any("router_gap" in log for log in logs) == (name in LEARNED)
    manifest = json.loads((tmp_path / "weights/final_rlm_lora/manifest.json").read_text())
    assert manifest["base"] == "base" and "skipped" not in manifest["proof"]
    places = ["--adapter", tmp_path / "weights/final_rlm_lora", "--output", tmp_path / "out"]
    merged = ["merged", *places, "--model", tmp_path / "base", "--dtype", "float32"]
    succeed("-m", "rlm.export", *merged)
    exported = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert exported["export"]["proof"]["equal_answers_fraction"] == 1.0
    assert answered(tmp_path, "--model", "out", "--adapter", "none") == own


def test_what_cannot_be_a_language_model_is_refused_before_its_weights(tmp_path):
    save(tiny_family("mistral"), tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    (tmp_path / "base" / "model.safetensors").write_bytes(b"no weights")
    for change, words in (
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "kind t5"),
        ({"model_type": "bert", "is_decoder": False}, "writes no text by itself"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes is not"),
    ):
        path.write_text(json.dumps(config | change))
        done = start("inference.py", "--model", "base", QUESTION, cwd=tmp_path, forked=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr
