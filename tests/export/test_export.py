"""What leaves the repository: a merged model and an adapter, each on its own."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlm import errors
from rlm.data import problems
from rlm.export import export, merging, proof
from rlm.learner.logprobs import pack, token_logprobs
from rlm.learner.optimizer import Optimizer
from rlm.models import loading
from rlm.models.prompts import sft_tokens
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

DTYPES = ("bfloat16", "float32")
ROOT = Path(__file__).resolve().parents[2]
TINY = "weights/tiny_base"
MANIFEST = {
    "format": "think",
    "task": "addition",
    "settings": {
        "data": "/home/somebody/sums.jsonl",
        "learning_rate": 0.001,
        "output": "weights/x",
    },
    "scores": {
        "validation": {
            "accuracy": 0.5,
            "accuracy_low": 0.4,
            "accuracy_high": 0.6,
            "accuracy_lenient": 0.75,
            "accuracy_lenient_low": 0.7,
            "accuracy_lenient_high": 0.8,
        }
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `adapter`, a LoRA of the tiny base that changes it, has been exported three ways."""
    path = tmp_path_factory.mktemp("export")
    loading.save_adapter(taught(), path / "adapter", MANIFEST)
    for dtype in DTYPES:
        run("merged", path, path / dtype, "--dtype", dtype, "--device", "cpu")
    run("adapter", path, path / "alone")
    return path


def taught():
    """Return the tiny base with a LoRA that has just learned to write the tags."""
    model, tokenizer = loading.load_base(TINY, device="cpu")
    model = loading.add_lora(model, r=4, alpha=12, seed=0)
    shown = [sft_tokens(e, tokenizer, "think") for e in problems.additions(0, 120)]
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 0.02
    for start in range(0, len(shown), 8):
        groups = [(s["prompt_ids"], [s["completion_ids"]]) for s in shown[start : start + 8]]
        optimizer.backward(-token_logprobs(model, pack(groups))[0].mean())
        optimizer.step()
    return model.eval()


def run(kind, folder, output, *more) -> None:
    adapter = ["--adapter", str(folder / "adapter")]
    assert export.main([kind, *adapter, "--output", str(output), *map(str, more)]) == 0


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def example(folder) -> str:
    """The Python of a model card."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]


def plain_answer(folder, monkeypatch, capsys) -> str:
    """What the card's own code prints, run beside the folder, as its reader would."""
    monkeypatch.chdir(folder.parent)
    capsys.readouterr()
    exec(example(folder), {})
    return capsys.readouterr().out


def our_answer(folder) -> str:
    """What the adapter answers to "Calculate 23 + 15 + 8" in inference.py."""
    import inference
    from config import InferenceSettings

    settings = InferenceSettings(model=TINY, adapter=str(folder / "adapter"), device="cpu")
    return inference.Reasoner(settings).ask("Calculate 23 + 15 + 8")["text"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_folder_answers_in_plain_transformers_as_here(folder, dtype, monkeypatch, capsys):
    said = plain_answer(folder / dtype, monkeypatch, capsys)
    question, _, answer = said.partition("assistant\n")
    assert "Calculate 23 + 15 + 8" in question, "digits come back from their places"
    monkeypatch.chdir(ROOT)
    ours = our_answer(folder)
    assert answer.strip().removesuffix("<|im_end|>").strip() == ours.strip()
    assert "<think>" in ours and "23 + 15 = 38" in ours, "the base alone writes no tags"


def test_a_merged_folder_has_all_that_is_needed_and_the_bases_own_files(folder):
    for dtype in DTYPES:
        names = {p.name for p in (folder / dtype).iterdir()}
        assert names == {
            "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
            "tokenizer_config.json", "chat_template.jinja", "README.md", "manifest.json",
        }  # fmt: skip
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (folder / dtype / name).read_bytes() == (ROOT / TINY / name).read_bytes()
        config = json.loads((folder / dtype / "config.json").read_text())
        assert config["dtype"] == dtype
        weights = load_file(folder / dtype / "model.safetensors")
        assert {str(w.dtype) for w in weights.values()} == {f"torch.{dtype}"}
        assert not any("lora" in name for name in weights)


def test_the_weights_are_base_plus_scale_times_b_a(folder):
    lora = load_file(folder / "adapter" / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    down, up = (lora[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    base = load_file(ROOT / TINY / "model.safetensors")[f"{name}.weight"].float()
    merged = base + (12 / 4) * up @ down
    found = load_file(folder / "float32" / "model.safetensors")[f"{name}.weight"]
    assert torch.allclose(found, merged, atol=1e-6) and not torch.allclose(found, base, atol=1e-3)
    half = load_file(folder / "bfloat16" / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(half, found.bfloat16()), "rounded once"


def test_the_proof_is_in_the_manifest(folder):
    exact = manifest(folder / "float32")["export"]["proof"]
    assert exact["logit_difference"] <= exact["logit_tolerance"] == proof.REORDERED
    assert exact["equal_answers_fraction"] == 1.0
    half = manifest(folder / "bfloat16")["export"]["proof"]
    # The mirrored errors move the logits as far, and twice that is allowed: the ratio is near 1/2.
    assert 0.35 < half["logit_difference"] / half["logit_tolerance"] < 0.75
    assert 0.0 < half["equal_answers_fraction"] <= 1.0


def small(seed: int):
    return tiny_lora(tiny_model(seed=seed, max_position_embeddings=512), seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_rounding_is_told_from_a_wrong_merge(seed):
    tokenizer = byte_tokenizer()
    questions = proof.prompts(tokenizer, "think")

    def look(model):
        return proof.look(model, tokenizer, questions, max_tokens=1)

    live = look(small(seed))
    rounded = small(seed).merge_and_unload()
    weights = [w.clone() for w in rounded.parameters()]
    bound = merging.round_weights(rounded, tokenizer, questions, live, merging.to_bfloat16)
    assert all(
        torch.equal(w.bfloat16(), r) for w, r in zip(weights, rounded.parameters(), strict=True)
    )
    assert 0.35 * bound < proof.difference(live, look(rounded.float())) < 0.75 * bound
    scaled = small(seed)
    for name, weight in scaled.named_parameters():
        if "lora_B" in name:
            weight.data *= 1.2
    for wrong in (small(seed).unload(), scaled.merge_and_unload()):
        assert proof.difference(live, look(wrong)) > bound
        with pytest.raises(proof.ProofError, match="logits differ"):
            merging.round_weights(wrong, tokenizer, questions, live, merging.to_bfloat16)


def test_a_merge_that_went_wrong_is_told_and_nothing_is_written(folder, tmp_path, monkeypatch):
    from peft import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    for dtype in DTYPES:
        with pytest.raises(
            proof.ProofError, match=r"not the model with the adapter.*logits differ"
        ):
            run("merged", folder, tmp_path / "out", "--dtype", dtype, "--device", "cpu")
        assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_told(folder, tmp_path, monkeypatch):
    copy = merging.copy_from_base

    def spoiled(base, new, dtype, ends):
        copy(base, new, dtype, ends)
        path = new / "chat_template.jinja"
        path.write_text(path.read_text().replace("assistant", "model"))

    monkeypatch.setattr(merging, "copy_from_base", spoiled)
    with pytest.raises(proof.ProofError, match="tokenizer makes other tokens"):
        run("merged", folder, tmp_path / "out", "--device", "cpu")


def test_every_token_that_ends_an_answer_here_ends_it_there(tmp_path):
    base, new = tmp_path / "base", tmp_path / "new"
    base.mkdir(), new.mkdir()
    (base / "config.json").write_text('{"torch_dtype": "float16", "rope_theta": 5.0}')
    (base / "generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.7}')
    (base / "LICENSE").write_text("free")
    merging.copy_from_base(base, new, "bfloat16", ([7, 8], 9))
    generation = json.loads((new / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [7, 8, 9], "temperature": 0.7}
    config = json.loads((new / "config.json").read_text())
    assert config == {"torch_dtype": "bfloat16", "rope_theta": 5.0}, "as the base has it"
    assert (new / "LICENSE").read_text() == "free"


def test_a_merged_model_does_not_tell_where_its_base_lay(folder, tmp_path):
    told = merging.write_manifest(
        folder / "adapter", str(ROOT / TINY), tmp_path, {"kind": "merged"}
    )
    assert told["base"] == "tiny_base"
    found = merging.write_manifest(
        folder / "adapter", str(ROOT / TINY), tmp_path, {"kind": "adapter"}
    )
    assert found["base"] == str(ROOT / TINY), "an adapter has to find its base"


def test_an_adapter_alone_works_with_peft(folder, monkeypatch):
    from peft import PeftModel

    names = {p.name for p in (folder / "alone").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json",
    }  # fmt: skip
    one, two = (
        PeftModel.from_pretrained(loading.load_base(TINY, device="cpu")[0], folder / name).eval()
        for name in ("adapter", "alone")
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(one(ids).logits, two(ids).logits)
    loading.load_adapter(
        loading.load_base(TINY, device="cpu")[0], folder / "alone", trainable=False
    )
    assert "--max-lora-rank 8" in (folder / "alone" / "README.md").read_text()  # its rank is 4


def test_the_cards_say_what_is_known_and_no_place_on_this_machine(folder):
    for name in (*DTYPES, "alone"):
        card = (folder / name / "README.md").read_text()
        _, front, text = card.split("---\n", 2)
        library = "peft" if name == "alone" else "transformers"
        assert yaml.safe_load(front)["library_name"] == library
        assert "tiny_base" in text and "Use exactly this shape" in text
        assert "0.400 to 0.600" in text and "learning_rate: 0.001" in text
        assert "vllm serve" in text and len(example(folder / name).splitlines()) <= 8
        for file in ("README.md", "manifest.json"):
            words = (folder / name / file).read_text()
            assert "somebody" not in words and str(folder) not in words
    assert "rounded to bfloat16" in (folder / "bfloat16" / "README.md").read_text()
    assert "| right by the last number, whatever the format, of all questions | 0.75 |" in card
    assert "accuracy: 0.400 to 0.600; by the last number: 0.700 to 0.800." in card
    named = export.model_card.write(manifest(folder / "alone"), "a", local=False)
    assert yaml.safe_load(named.split("---")[1])["base_model"] == TINY


def refused(words, *arguments) -> None:
    with pytest.raises(errors.InputError, match=words) as error:
        export.main([str(a) for a in arguments])
    assert "\n" not in str(error.value)


def test_what_is_there_is_not_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    words = ["adapter", "--adapter", folder / "adapter", "--output", out]
    export.main([str(w) for w in words])
    (out / "old").write_text("here")
    refused("exists; use --overwrite", *words)
    assert (out / "old").exists()
    export.main([str(w) for w in (*words, "--overwrite")])
    assert not (out / "old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (out / "manifest.json").unlink()
    refused("is no export", *words, "--overwrite")
    words[-1] = folder / "adapter"
    refused("is read from there", *words, "--overwrite")
    words[-1] = folder
    refused("is read from there", *words, "--overwrite")
    words[-1] = ROOT / "weights"
    refused("is read from there", *words, "--overwrite")


def test_a_failure_leaves_the_earlier_export(folder, tmp_path, monkeypatch):
    run("adapter", folder, tmp_path / "out")
    before = (tmp_path / "out" / "README.md").read_text()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.files.os, "fsync", full_disk)
    with pytest.raises(errors.InputError, match="No space left"):
        run("adapter", folder, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "README.md").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_wrong_input_is_one_line_and_exit_code_2(folder, tmp_path, capsys):
    adapter = ["--adapter", folder / "adapter", "--output", tmp_path / "out"]
    refused("no folder nowhere", "merged", "--adapter", "nowhere", "--output", tmp_path / "out")
    refused("invalid choice: 'int3'", "merged", *adapter, "--dtype", "int3")
    refused("--output", "merged", "--adapter", folder / "adapter")
    refused("required: kind")
    refused("an adapter of weights/tiny_base, not of tests", "merged", *adapter, "--model", "tests")
    (tmp_path / "file").write_text("")
    refused("a file; give a folder", "adapter", *adapter[:3], tmp_path / "file")
    refused("cannot be written", "adapter", *adapter[:3], tmp_path / "file" / "out")
    assert errors.run_main(lambda: export.main(["adapter"])) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
