"""GGUF files in llama.cpp's own runtime: the proof, and what it catches."""

import json

import pytest
import torch

from rlm.export import export, gguf, gguf_proof, gguf_writer, llama_cpp, proof
from rlm.models import loading
from tests.export.test_gguf import ENDS, FAMILIES, ROWS, model_of
from tests.support.bpe_tokenizers import bpe_tokenizer
from tests.support.tiny_models import tiny_lora

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install -e '.[gguf]'")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install -e '.[llamacpp]'")

CUTS = {"qwen3": "qwen2", "llama": "smollm", "qwen2": "dbrx", "mistral": "gpt-2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function: a family's name -> the folder with its `base` and its `adapter`."""
    made = {}

    def of(family: str):
        if family not in made:
            path = made[family] = tmp_path_factory.mktemp(family)
            model = model_of(family)
            model.save_pretrained(path / "base")
            bpe_tokenizer(CUTS[family]).save_pretrained(path / "base")
            manifest = {"format": "think", "base": str(path / "base")}
            loading.save_adapter(tiny_lora(model), path / "adapter", manifest)
        return made[family]

    return of


def exported(folder, tmp_path, kind: str, *more) -> dict:
    asked = [kind, "--adapter", str(folder / "adapter"), "--output", str(tmp_path / "out"), *more]
    assert export.main(asked) == 0
    return json.loads((tmp_path / "out" / "manifest.json").read_text())["export"]


def check(found: dict, *, equal: float = 0.0) -> None:
    """In F32 all is equal. Random weights like many tokens as much, so what is rounded parts soon;
    the proof itself has held that up to the gaps that rounding explains."""
    told = found["proof"]["llama_cpp"]
    assert told["equal_prompts"] == 33 and told["equal_texts"] == 7
    assert told["equal_answers_fraction"] >= equal
    assert told["logprob_difference"] < (1e-4 if equal == 1.0 else 0.25)


@pytest.mark.slow
@pytest.mark.ci
def test_llama_cpp_says_what_the_model_says(folder, tmp_path):
    check(exported(folder("llama"), tmp_path, "gguf", "--dtype", "F32"), equal=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
def test_every_family_and_kind_does(folder, tmp_path, family, dtype):
    found = exported(folder(family), tmp_path, "gguf", "--dtype", dtype)
    check(found, equal=float(dtype == "F32"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_lora_beside_its_base_does(folder, tmp_path, family):
    found = exported(folder(family), tmp_path, "lora-gguf")
    check(found, equal=1.0)
    assert found["proof"]["pairs"] == 21, "seven in each of three layers"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "out-lora.gguf", "Modelfile", "README.md", "manifest.json"}  # fmt: skip
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./base.gguf\nADAPTER ./out-lora.gguf\n")


@pytest.mark.slow
def test_the_demo_says_the_same_by_token_ids(tmp_path):
    asked = ["gguf", "--token-ids", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert export.main(asked) == 0
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["export"]
    told = found["proof"]["llama_cpp"]
    assert told["equal_answers_fraction"] == 1.0 and told["logprob_difference"] < 0.05
    assert (tmp_path / "out" / "tokenizer.json").is_file() and found["token_ids"]
    assert not (tmp_path / "out" / "Modelfile").exists()


def test_the_server_answers_as_torch_does_and_says_what_is_wrong(folder, tmp_path):
    model, file = model_of("llama"), tmp_path / "a.gguf"
    tokenizer = bpe_tokenizer("smollm")
    vocabulary = gguf.gguf_tokenizer.read(tokenizer, ENDS, rows=ROWS)
    gguf_writer.write(model, vocabulary, file, kind="F32", name="a")
    prompt = tokenizer("Calculate 2 + 3").input_ids
    with llama_cpp.Server(file, rows=2, room=64) as server, torch.inference_mode():
        assert server.tokens("Calculate 2 + 3") == prompt
        assert server.stops_at(prompt, 2) and not server.stops_at(prompt, 5)
        (said,) = server.answers([prompt], max_tokens=8)
        asked = dict(max_new_tokens=8, do_sample=False, eos_token_id=[0, 2])
        ours = model.generate(torch.tensor([prompt]), **asked)[0, len(prompt) :].tolist()
        assert said.ids == ours and not said.ended
        row = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert all(abs(float(row[i]) - p) < 1e-4 for i, p in said.logprobs.items())
        with pytest.raises(llama_cpp.RuntimeFault, match="refused /apply-template"):
            server.rendered([{"no": "role"}])
    file.write_bytes(file.read_bytes()[:-5000])
    with (
        pytest.raises(llama_cpp.RuntimeFault, match="cannot use the file; it said"),
        llama_cpp.Server(file, rows=2, room=64),
    ):
        pass


def said(*ids: int, ended: bool = False, **logprobs: float) -> llama_cpp.Said:
    return llama_cpp.Said(list(ids), ended, {int(k[1:]): v for k, v in logprobs.items()})


class Fixed:
    """A network that likes token 1 best, by 0.5 nats before token 2 and by 3 before token 0."""

    device = "cpu"

    def __call__(self, ids):
        logits = torch.tensor([0.0, 3.0, 2.5]).expand(1, ids.shape[1], 3)
        return type("Output", (), {"logits": logits})


ROW = torch.tensor([[0.0, 3.0, 2.5]])
P = {f"t{i}": float(p) for i, p in enumerate(ROW[0].log_softmax(-1))}


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (said(1, 1, **P), None),
        (said(1, 1, **P | {"t1": P["t1"] - 0.2}), None),
        (said(1, 1, **P | {"t1": P["t1"] - 0.3}), "differ by up to 0.3 nats .0.25 is allowed"),
        (said(1, 1), None),
        (said(1, 2), "better by up to 0.5 nats"),
        (said(1, 2, **P), "better by up to 0.5 nats"),
        (said(1, 2, **P | {"t1": P["t1"] - 0.2}), None),  # 0.5 is less than four times that
        (said(1, 0, ended=True, **P), "better by up to 3 nats"),
        (said(1, ended=True, **P), "better by up to 3 nats"),
        (said(1, 1, ended=True, **P), "better by up to 3 nats"),
    ],
)
def test_what_passes_for_an_equal_answer(theirs, told):
    seen = proof.Seen(ROW, [[1, 1]], 2)
    prompts = [type("Prompt", (), {"ids": [2]})]

    def compare(exact: bool) -> dict:
        return gguf_proof._compare_answers([theirs], seen, Fixed(), prompts, {0}, exact)

    if told is None:
        assert compare(True)["logprob_difference"] < 0.21
    else:
        with pytest.raises(proof.ProofError, match=told):
            compare(True)
    if told and "better" in told:
        assert compare(False)["equal_answers_fraction"] == 0.0, "of a rounded model it is told"


def test_every_family_is_tried():
    assert set(CUTS) == set(FAMILIES) == set(gguf_writer.FAMILIES)
