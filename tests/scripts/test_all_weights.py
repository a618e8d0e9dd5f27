"""All weights by the scripts: SFT, then GRPO, then everything that may take what comes out."""

import ast
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.running import ROOT, rows, start, succeed

pytestmark = [pytest.mark.slow]

TINY = ROOT / "weights" / "tiny_base"
SMALL = [
    "--train", "full", "--num-samples", 16, "--eval-samples", 4, "--max-tokens", 64,
    "--model", TINY,
]  # fmt: skip
# Rewarded for being short: so early few answers are right, and equal rewards would teach nothing.
GRPO = [
    "--max-steps", 2, "--questions-per-step", 4, "--group-size", 4, "--probe", 0,
    "--rewards", "length=1", "--overlong-tokens", 60, "--learning-rate", 0.0005,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where SFT has trained all weights, and GRPO has gone on from there."""
    path = tmp_path_factory.mktemp("scripts")
    sft = ["--max-steps", 12, "--learning-rate", 0.001]
    said = succeed("train_sft.py", *SMALL, *sft, cwd=path).stderr
    said += succeed("train_grpo.py", *SMALL, *GRPO, "--kl-weight", 0.01, cwd=path).stderr
    (path / "said").write_text(said)
    return path


@pytest.mark.ci
def test_both_stages_learn_and_leave_whole_models(folder):
    said = (folder / "said").read_text()
    told = "numbers learn, 16 bytes each (the weight 4, its gradient 4, AdamW's moments 8)"
    assert said.count(told) == 2 and said.count("for all weights, which want about a tenth") == 2
    sft, last = (load_file(folder / place / "model.safetensors")
                 for place in ("weights/sft_full", "runs/grpo/model"))  # fmt: skip
    base = load_file(TINY / "model.safetensors")
    moved = [name for name in base if not torch.equal(base[name].float(), sft[name])]
    assert len(moved) == len(base) > 30, "each weight has learned: embeddings, norms, biases, all"
    log = rows(folder / "runs/grpo/log.csv")
    assert [row["step"] for row in log] == ["0", "1", "2"]
    assert all(float(row["gradient_norm"]) > 0 and float(row["kl"]) >= 0 for row in log[1:])
    assert all(float(row["sampler_gap"]) < 1e-4 for row in log[1:]), "one policy samples and learns"
    manifest = json.loads((folder / "weights/final_rlm_full/manifest.json").read_text())
    assert manifest["train"] == "full" and manifest["base"] == "weights/tiny_base"
    assert manifest["settings"]["adapter"] == "weights/sft_full"
    changed = any(not torch.equal(sft[name], last[name]) for name in sft)
    assert changed == (manifest["step"] > 0), "the best of the start and the two steps is kept"

    # And transformers alone say what inference.py says.
    place = folder / "weights/final_rlm_full"
    network, tokenizer = (
        kind.from_pretrained(place) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    question = ["--max-tokens", 24, "--json", "Calculate 1 + 2 + 3"]
    asked = succeed("inference.py", "--adapter", place, *question, cwd=folder).stdout
    code = (place / "README.md").read_text()
    chat = code.split("chat = ")[1].splitlines()[0].replace("23 + 15 + 8", "1 + 2 + 3")
    chat = ast.literal_eval(chat)
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    told = network.eval().generate(**ids, max_new_tokens=24, do_sample=False)[0]
    text = tokenizer.decode(told[ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert json.loads(asked)["text"].endswith(text.strip()) and len(text) > 10


def test_it_is_measured_and_goes_on_as_an_adapter_does(folder):
    models = "base,sft_full,weights/final_rlm_full"
    small = ["--eval-samples", 4, "--max-tokens", 48, "--model", TINY]
    done = succeed("evaluate.py", *small, "--models", models, "--json", cwd=folder)
    assert [row["model"] for row in json.loads(done.stdout)] == models.split(",")
    # A LoRA on top of it, which names it as its base; and SFT of all weights once more.
    lora = ["--train", "lora", "--adapter", "weights/sft_full", "--output", "weights/on_it"]
    lora += ["--learning-rate", 0.01, "--run", "lora"]
    succeed("train_grpo.py", *SMALL, *GRPO, *lora, cwd=folder)
    manifest = json.loads((folder / "weights/on_it/manifest.json").read_text())
    assert manifest["base"] == "weights/sft_full" and "train" not in manifest
    done = succeed("inference.py", "--adapter", "weights/on_it", "Calculate 1 + 2", cwd=folder)
    more = ["--adapter", "weights/sft_full", "--max-steps", 2, "--output", "weights/more"]
    succeed("train_sft.py", *SMALL, *more, "--run", "more", cwd=folder)
    manifest = json.loads((folder / "weights/more/manifest.json").read_text())
    assert manifest["base"] == "weights/tiny_base"


def test_what_is_there_is_not_replaced(folder):
    refusals = {
        ("--output", TINY): "exists and is no whole model",
        ("--train", "lora", "--output", "weights/sft_full"): "holds an earlier whole model",
        ("--adapter", ROOT / "weights/final_rlm_lora"): "a LoRA, of which --train full has none",
    }
    for argv, says in refusals.items():
        done = start("train_grpo.py", *SMALL, *GRPO, *argv, "--run", "x", forked=True, cwd=folder)
        assert done.returncode == 2 and says in done.stderr, done.stderr
    learned = ["--learning-rate", 1e-60, "--output", "weights/none", "--run", "none"]
    done = start("train_sft.py", *SMALL, "--max-steps", 1, *learned, forked=True, cwd=folder)
    assert done.returncode == 2 and "no weight of the model is another" in done.stderr


def test_both_stages_in_one_go(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps({
        "sft": {"max_steps": 20, "learning_rate": 0.001},
        "grpo": {"max_steps": 1, "questions_per_step": 2, "group_size": 4, "probe": 0,
                 "rewards": "length=1", "overlong_tokens": 60},
    }))  # fmt: skip
    done = succeed("train.py", "--config", file, *SMALL, cwd=tmp_path)
    assert "| grpo" in done.stdout
    for name in ("sft_full", "final_rlm_full"):
        assert json.loads((tmp_path / f"weights/{name}/manifest.json").read_text())["scores"]
