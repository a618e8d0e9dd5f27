"""Base models and adapters on the disk: what is loaded, saved, and refused."""

import json
import time

import pytest
import torch

from rlm import files
from rlm.data import hub
from rlm.models import adapters, loading
from rlm.models.loading import ModelError
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load(folder):
    return loading.load_base(str(folder), device="cpu")[0]


def lora_weights(model) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items() if "lora_" in k}


def test_a_base_comes_back_as_it_was_saved(base_folder):
    model, tokenizer = loading.load_base(str(base_folder), device="cpu")
    assert tokenizer("hé").input_ids == byte_tokenizer()("hé").input_ids
    assert not model.training
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    half, _ = loading.load_base(str(base_folder), device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert loading.fingerprint(half) == loading.fingerprint(model)


def test_a_tokenizer_without_a_pad_token_gets_one(base_folder, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, loaded = loading.load_base(str(tmp_path), device="cpu")
    assert loaded.pad_token_id == loaded.eos_token_id == 256


def test_folders_that_are_no_model_are_refused_in_one_line(base_folder, tmp_path):
    def refused(name, words, **options):
        with pytest.raises(ModelError, match=words) as caught:
            loading.load_base(str(name), device="cpu", **options)
        assert "\n" not in str(caught.value)

    refused(tmp_path, "no config.json")
    (tmp_path / "config.json").write_text((base_folder / "config.json").read_text())
    refused(tmp_path, "no weights in safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path, "no weights in safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(tmp_path, "no tokenizer|tokenizer cannot be loaded")
    byte_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "weights cannot be loaded")
    refused(tmp_path / "not" / "here", "neither a folder nor")
    refused(base_folder, "dtype 'int3'", dtype="int3")
    with pytest.raises(ModelError, match="unknown"):
        loading.pick_device("tpu")


def test_a_name_that_cannot_be_reached_is_told_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # An address of a net reserved for documentation: packets to it are lost (RFC 5737).
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")
    start = time.perf_counter()
    with pytest.raises(ModelError, match="neither a folder nor reachable"):
        loading.load_base("nobody/nothing")
    assert time.perf_counter() - start < 3.0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("asked the network"))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        loading.load_base("nobody/nothing")


def test_a_fresh_lora_asks_nothing_of_gpus_that_the_model_is_not_on(monkeypatch, recwarn):
    # torch warns of several where it is not told which of them matter, and would open them all.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    model = tiny_model()
    before = torch.random.get_rng_state()
    loading.add_lora(model, r=4, alpha=8, seed=0)
    assert not [w for w in recwarn if "devices" in str(w.message)]
    assert torch.random.get_rng_state().equal(before)


def test_a_fresh_lora_depends_on_its_seed_alone(base_folder):
    one = lora_weights(loading.add_lora(load(base_folder), r=4, alpha=8, seed=1))
    torch.rand(5)
    state = torch.get_rng_state()
    two = lora_weights(loading.add_lora(load(base_folder), r=4, alpha=8, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    three = lora_weights(loading.add_lora(load(base_folder), r=4, alpha=8, seed=2))
    half = loading.add_lora(load(base_folder).to(torch.bfloat16), r=4, alpha=8, seed=1)
    assert len(one) == 3 * 7 * 2  # layers, linear layers of each, A and B
    assert not any("lm_head" in name for name in one)
    assert all(weight.dtype == torch.float32 for weight in lora_weights(half).values())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)
    assert all(not weight.any() for name, weight in one.items() if "lora_B" in name)


def test_an_adapter_comes_back_as_it_was_saved(base_folder, tmp_path):
    model = tiny_lora(load(base_folder))
    path = tmp_path / "out" / "adapter"
    settings = {"format": "think", "scores": {"validation": {"accuracy": 0.5}}}
    assert loading.save_adapter(model, path, settings, overwrite=False) == path
    manifest = loading.read_manifest(path)
    assert manifest["base"] == str(base_folder)
    assert manifest["format"] == "think"
    assert manifest["base_fingerprint"] == loading.fingerprint(load(base_folder))
    assert set(manifest["versions"]) == {"torch", "transformers", "peft"}
    assert [p.name for p in path.parent.iterdir()] == ["adapter"]
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}
    for trainable in (False, True):
        loaded = loading.load_adapter(load(base_folder), path, trainable=trainable)
        before, after = lora_weights(model), lora_weights(loaded)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert any(p.requires_grad for p in loaded.parameters()) == trainable


def test_a_base_inside_the_repository_is_named_relative_to_it(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "ROOT", base_folder.parent)
    path = loading.save_adapter(tiny_lora(load(base_folder)), tmp_path / "a", {}, overwrite=False)
    assert loading.read_manifest(path)["base"] == "base"


def test_an_adapter_of_another_base_is_refused(base_folder, tmp_path):
    path = loading.save_adapter(tiny_lora(load(base_folder)), tmp_path / "a", {}, overwrite=False)
    other = tiny_model(seed=1)  # the same shape, other weights
    with pytest.raises(ModelError, match=r"an adapter of .*base, but .* use --model"):
        loading.load_adapter(other, path, trainable=False)


def test_an_adapter_made_elsewhere_is_known_by_its_layers(base_folder, tmp_path, caplog):
    path = loading.save_adapter(tiny_lora(load(base_folder)), tmp_path / "a", {}, overwrite=False)
    (path / "manifest.json").unlink()
    assert loading.read_manifest(path) == {"base": str(base_folder)}
    loading.load_adapter(load(base_folder), path, trainable=False)
    assert not caplog.text
    other = tiny_model(seed=1)
    other.config._name_or_path = "somebody/else"
    loading.load_adapter(other, path, trainable=False)
    assert "by its own words" in caplog.text and "somebody/else" in caplog.text
    for sizes, words in ({"hidden_size": 16}, "size mismatch"), ({"num_hidden_layers": 2}, "place"):
        with pytest.raises(ModelError, match=words):
            loading.load_adapter(tiny_model(**sizes), path, trainable=False)


def test_a_pickled_adapter_is_refused(base_folder, tmp_path):
    path = loading.save_adapter(tiny_lora(load(base_folder)), tmp_path / "a", {}, overwrite=False)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        loading.load_adapter(load(base_folder), path, trainable=False)
    with pytest.raises(ModelError, match="no such folder"):
        loading.load_adapter(load(base_folder), tmp_path / "b", trainable=False)
    (path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="no adapter"):
        loading.read_manifest(path)


def test_a_better_adapter_and_one_of_another_base_are_not_overwritten(base_folder, tmp_path):
    model, path = tiny_lora(load(base_folder)), tmp_path / "a"

    def save(score, of=model, task="addition", **options):
        manifest = {"task": task, "scores": {"validation": {"accuracy": score}}}
        loading.save_adapter(of, path, manifest, **options)
        return loading.read_manifest(path)["scores"]["validation"]["accuracy"]

    assert save(0.5) == 0.5
    assert save(0.7) == 0.7
    with pytest.raises(ModelError, match=r"score 0.7000, the new one has 0.6000; use --overwrite"):
        save(0.6)
    assert save(0.7) == 0.7
    other = tiny_lora(tiny_model(seed=1))
    with pytest.raises(ModelError, match=r"holds an adapter of .*--overwrite"):
        save(0.9, of=other)
    assert loading.read_manifest(path)["scores"]["validation"]["accuracy"] == 0.7
    assert save(0.1, task="word_problems") == 0.1  # another task's score says nothing
    assert save(0.0, of=other, overwrite=True) == 0.0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ModelError, match="is no adapter"):
            loading.save_adapter(model, tmp_path / "mine", {}, overwrite=overwrite)


@pytest.mark.parametrize("step", ["write_json", "fsync", "rename"])
def test_a_failure_while_saving_leaves_the_old_adapter(base_folder, tmp_path, monkeypatch, step):
    model = tiny_lora(load(base_folder))
    path = loading.save_adapter(model, tmp_path / "a", {"format": "think"}, overwrite=False)

    def fail(source, *rest):
        if step != "rename" or str(source).endswith(".new"):
            raise OSError("disk full")
        return rename(source, *rest)

    rename = files.os.rename
    monkeypatch.setattr(files if step == "write_json" else files.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        loading.save_adapter(model, path, {"format": "xml"}, overwrite=True)
    monkeypatch.undo()
    assert json.loads((path / "manifest.json").read_text())["format"] == "think"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    loading.load_adapter(load(base_folder), path, trainable=False)


def test_four_bits_need_cuda():
    with pytest.raises(ModelError, match="quantize 4bit: needs a CUDA device, this is cpu"):
        loading.load_base("weights/tiny_base", device="cpu", quantize="4bit")
