"""A whole model on the disk: proved, complete, loaded by plain transformers, never half-written."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlm.errors import InputError
from rlm.evaluation.measure import Evaluation
from rlm.export import export, proof, save, whole
from rlm.models.policy import open_policy
from tests.support.saving import Run
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import byte_tokenizer, tiny_model

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
FACTS = {"format": "think", "task": "addition", "train": "full", "step": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base's folder with a chat template, two end tokens and a tied head."""
    folder = tmp_path_factory.mktemp("models") / "base"
    network = tiny_model(max_position_embeddings=512, tie_word_embeddings=True)
    network.generation_config.eos_token_id = [256, 255]
    network.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def trained(base, dtype="float32"):
    """A policy all of whose weights have moved a little."""
    policy = open_policy(str(base), None, device="cpu", dtype=dtype, full=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_((0.02 * noise).to(weight.dtype))
    return policy


def kept(policy, tmp_path, accuracy=0.5, **facts):
    run = Run(tmp_path / "run")
    found = Evaluation("x", [], {"accuracy": accuracy, "questions": 4})
    options = {"overwrite": False} | FACTS | facts
    return save.save_policy(policy, tmp_path / "out", found, run, **options), run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_transformers_load_it_and_have_the_same_logits(base, tmp_path, dtype):
    policy = trained(base, dtype)
    saved, run = kept(policy, tmp_path)
    network = AutoModelForCausalLM.from_pretrained(saved, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert network.dtype == policy.model.dtype and tokenizer.chat_template == TEMPLATE
    chat = [{"role": "user", "content": "Calculate 1 + 2"}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        assert torch.equal(network(ids).logits, policy.model(ids).logits)
    assert network.generation_config.eos_token_id == [256, 255]
    assert "32 of 32 greedy answers" in run.said[0] and str(run.path / "model") in run.said[0]
    assert run.said[-1].startswith(f"model: {saved}, validation accuracy 0.500")


def test_the_folder_says_what_it_is(base, tmp_path):
    saved, run = kept(trained(base), tmp_path, settings={"train": "full", "data": "/home/me/x"})
    manifest = json.loads((saved / "manifest.json").read_text())
    start = json.loads((saved / "config.json").read_text())
    assert (manifest["train"], manifest["base"], manifest["step"]) == ("full", str(base), 2)
    assert manifest["base_fingerprint"] and manifest["versions"]["torch"]
    assert manifest["proof"]["logit_difference"] == 0.0
    assert manifest["scores"]["validation"]["accuracy"] == 0.5
    assert start["dtype"] == "float32" and start["architectures"] == ["Qwen2ForCausalLM"]
    card = (saved / "README.md").read_text()
    assert "all of whose weights were trained further, in float32" in card
    assert "32 of 32 greedy answers" in card and "vllm serve out" in card and "lora" not in card
    assert "PeftModel" not in card and "/home/me" not in card and str(base) not in card
    # The weights lie there once, as those that were proved.
    one, two = (folder / "model.safetensors" for folder in (saved, run.path / "model"))
    assert os.path.samefile(one, two)
    assert not [p for p in (*saved.parent.iterdir(), *run.path.iterdir()) if p.name[0] == "."]


def test_where_nothing_can_be_linked_it_is_copied(base, tmp_path, monkeypatch):
    def refused(*places):
        raise OSError("another disk")

    monkeypatch.setattr(whole.os, "link", refused)
    saved, run = kept(trained(base), tmp_path)
    one, two = (folder / "model.safetensors" for folder in (saved, run.path / "model"))
    assert not os.path.samefile(one, two) and one.read_bytes() == two.read_bytes()


def test_a_better_one_stays_and_nothing_is_half_written(base, tmp_path, monkeypatch):
    policy = trained(base)
    saved, _ = kept(policy, tmp_path, accuracy=0.8)
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(InputError, match=r"validation score 0.8000.*\(the new one is in .*run/mod"):
        kept(policy, tmp_path, accuracy=0.6)

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole, "_describe", full_disk)
    with pytest.raises(OSError, match="No space"):
        kept(policy, tmp_path, accuracy=0.9)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert not [p for p in (*tmp_path.iterdir(), *(tmp_path / "run").iterdir()) if p.name[0] == "."]


def test_another_weight_on_the_disk_is_found_without_memory_for_a_second_model(
    base, tmp_path, monkeypatch
):
    policy, write = trained(base), whole.write_model

    def spoiled(*arguments):
        folder = write(*arguments)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1.0
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    monkeypatch.setattr(save, "_fits", lambda network: False)
    _, run = kept(policy, tmp_path / "right")
    assert "logits not compared: there is no memory for a second copy" in run.said[0]
    monkeypatch.setattr(whole, "write_model", spoiled)
    with pytest.raises(proof.ProofError, match=r"1 of 38 tensors .* \(model.norm.weight\)"):
        kept(policy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_another_configuration_on_the_disk_is_found(base, tmp_path, monkeypatch):
    policy, write = trained(base), whole.write_model

    def spoiled(*arguments):
        folder = write(*arguments)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
        return folder

    monkeypatch.setattr(whole, "write_model", spoiled)
    with pytest.raises(proof.ProofError, match=r"loaded afresh it is not .* logits differ"):
        kept(policy, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_family_whose_file_names_weights_otherwise(tmp_path):
    tiny_family("qwen3_moe", max_position_embeddings=512).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    policy = trained(tmp_path / "base")
    saved, _ = kept(policy, tmp_path)
    names = load_file(saved / "model.safetensors").keys()
    assert names != policy.model.state_dict().keys(), "experts are written one by one"


def test_nothing_is_left_to_export(base, tmp_path):
    saved, _ = kept(trained(base), tmp_path)
    for kind in ("merged", "adapter"):
        with pytest.raises(InputError, match="a whole model, of which nothing is left to merge"):
            export.main([kind, "--adapter", str(saved), "--output", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_nothing_learned_is_refused(base, tmp_path):
    policy = open_policy(str(base), None, device="cpu", full=True)
    with pytest.raises(InputError, match="nothing was learned"):
        kept(policy, tmp_path)
    saved, _ = kept(policy, tmp_path, step=0)  # the best was the start: that is kept
    assert json.loads((saved / "manifest.json").read_text())["step"] == 0
