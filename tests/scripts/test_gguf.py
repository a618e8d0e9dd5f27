"""Every script that takes a base model, with one in a GGUF file."""

import json

import pytest

from tests.support import tiny_gguf
from tests.support.running import ROOT, start, succeed

pytestmark = pytest.mark.slow
pytest.importorskip("gguf", reason="the package gguf is not installed: pip install -e '.[gguf]'")

SMALL = ["--num-samples", 16, "--eval-samples", 2, "--max-tokens", 16]
QUESTION = "Calculate 2 + 3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `base` holds a GGUF file, and train.py has trained both stages on it."""
    path = tmp_path_factory.mktemp("scripts")
    (path / "base").mkdir()
    tiny_gguf.write(path / "base" / "tiny.gguf", tied=True, quantized="Q8_0")
    # Of random weights no answer is right: without a shaped reward there were nothing to learn.
    file = path / "recipe.yaml"
    file.write_text("grpo: {rewards: tag_count=1, probe: 0}\n")
    steps = ["--sft-max-steps", 20, "--grpo-max-steps", 1, "--grpo-group-size", 4]
    rates = ["--sft-lr", 0.01, "--grpo-lr", 0.01]
    succeed("train.py", "--config", file, "--model", "base", *SMALL, *steps, *rates, cwd=path)
    return path


@pytest.mark.ci
def test_an_adapter_is_found_with_its_file_again(folder):
    manifest = json.loads((folder / "weights/final_rlm_lora/manifest.json").read_text())
    assert manifest["base"] == "base" and manifest["base_file"]["name"] == "tiny.gguf"
    assert "skipped" not in manifest["proof"], "the base was loaded afresh"
    asked = ["--max-tokens", 8, "--json", QUESTION]
    found = json.loads(succeed("inference.py", *asked, cwd=folder).stdout)
    named = json.loads(
        succeed("inference.py", "--model", "base/tiny.gguf", *asked, cwd=folder).stdout
    )
    assert found["text"] == named["text"]
    (folder / "away").mkdir()
    tiny_gguf.write(folder / "away" / "tiny.gguf", tied=True, quantized="Q4_0")
    adapter = ["--adapter", "weights/final_rlm_lora"]
    done = start("inference.py", "--model", "away", *adapter, *asked, cwd=folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "an adapter of base, not of away" in done.stderr


def test_the_stages_and_the_evaluation_run_alone(folder):
    base = ["--model", "base/tiny.gguf"]
    sft = ["--max-steps", 1, "--output", "weights/sft_lora", "--overwrite"]
    succeed("train_sft.py", *base, *SMALL, *sft, cwd=folder)
    grpo = ["--check", "--probe", 1, "--group-size", 2, "--adapter", "weights/sft_lora"]
    done = start("train_grpo.py", *base, *SMALL, *grpo, cwd=folder)
    assert done.returncode == 3 and "NO-GO" in done.stdout, done.stderr
    models = ["--models", "base,weights/sft_lora", "--json"]
    base_row, _ = json.loads(succeed("evaluate.py", *base, *SMALL[2:], *models, cwd=folder).stdout)
    assert base_row["questions"] == 2


def test_a_merged_model_stands_alone(folder):
    import subprocess
    import sys

    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = ["-m", "rlm.export", "merged", "--adapter", "weights/final_rlm_lora"]
    done = subprocess.run(
        [sys.executable, *asked, "--output", "out", "--dtype", "float32"],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "32 of 32 greedy answers of 64 tokens are equal" in done.stdout
    config = json.loads((folder / "out/config.json").read_text())
    assert config["dtype"] == "float32" and "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(folder / "out", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tiny_gguf.END
    assert tokenizer.chat_template == tiny_gguf.TEMPLATE
    assert json.loads((folder / "out/manifest.json").read_text())["base"] == "base"

    done = subprocess.run(
        [sys.executable, *asked[:2], "adapter", *asked[3:], "--output", "alone"],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = (folder / "alone/README.md").read_text()
    assert "GGUF file `tiny.gguf`" in card and "from_pretrained" not in card


def environment() -> dict:
    import os

    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )}  # fmt: skip
