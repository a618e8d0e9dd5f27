"""A base model in a GGUF file: its weights, its tokenizer, and what is refused in one line."""

import os
from pathlib import Path

import pytest
import torch

from rlm.errors import InputError
from rlm.models import adapters, gguf_file, gguf_header, loading, lookup
from rlm.models.prompts import end_ids, make_prompt
from tests.support import tiny_gguf
from tests.support.tiny_gguf import END, START, TEMPLATE, TEXT_END, vocabulary
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install -e '.[gguf]'")

IDS = torch.tensor([[5, 60, 61, 7, 99, 200, 31]])


def load(place, **options):
    return loading.load_base(str(place), device="cpu", **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return (file, the model that was written to it)."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return file, tiny_gguf.write(file)


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_are_those_that_were_written(tmp_path, tied):
    written = tiny_gguf.write(tmp_path / "a.gguf", tied=tied)
    model, _ = load(tmp_path / "a.gguf")
    assert model.config.tie_word_embeddings is tied
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) is tied
    for name, weight in written.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert torch.equal(model(IDS).logits, written(IDS).logits)
    assert not model.training and not hasattr(model.config, "quantization_config")


def test_quantised_weights_come_out_in_the_asked_format(tmp_path):
    written = tiny_gguf.write(tmp_path / "a.gguf", quantized="Q8_0")
    for dtype in ("float32", "bfloat16"):
        model, _ = load(tmp_path / "a.gguf", dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
        for name, weight in written.state_dict().items():
            # Q8_0: 32 values share a scale of their largest / 127, rounded to half of it.
            bound = weight.abs().max() / 127 * 0.6 + (0.02 if dtype == "bfloat16" else 0.0)
            assert (model.state_dict()[name].float() - weight).abs().max() <= bound, name
    assert not any(p.requires_grad and "uint" in str(p.dtype) for p in model.parameters())


def test_a_folder_of_one_file_is_that_file(tiny):
    file, _ = tiny
    assert lookup.gguf_of(str(file.parent)) == lookup.gguf_of(str(file)) == file
    assert lookup.same_model(str(file.parent), str(file))
    assert loading.find(str(file.parent)) == (str(file), True)
    model, _ = load(file.parent)
    assert getattr(model, gguf_file.FILE) == file


def test_a_folder_with_a_model_beside_it_is_that_model(tmp_path):
    tiny_gguf.write(tmp_path / "a.gguf")
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert lookup.gguf_of(str(tmp_path)) is None
    assert not hasattr(load(tmp_path)[0], gguf_file.FILE)


def test_the_tokenizer_is_the_files(tiny):
    file, _ = tiny
    tokenizer, generation = loading.load_tokenizer(str(file))
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_ids_to_tokens([START, END]) == [tokenizer.bos_token, "<|im_end|>"]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == generation.eos_token_id == END
    text = "Calculate 12 + 3 ünd\n  <|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and ids.count(END) == 1
    # Digits one by one, though the file has a merge for "12".
    assert [vocabulary()[i] for i in ids][8:12] == ["Ġ", "1", "2", "Ġ"]
    prompt = make_prompt("What is 1 + 2?", tokenizer, "think")
    assert prompt.ids[0] == START and prompt.ids.count(END) == 2
    assert end_ids(tokenizer, generation) == [END]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["12", "3", "4", "Ġ", "Ġ", "x"]),
        ("qwen2", ["1", "2", "3", "4", "Ġ", "Ġ", "x"]),
        ("llama-bpe", ["12", "3", "4", "Ġ", "Ġ", "x"]),
    ],
)
def test_texts_are_cut_up_as_the_file_says(tmp_path, pre, pieces):
    tiny_gguf.write(tmp_path / "a.gguf", pre=pre)
    tokenizer, _ = loading.load_tokenizer(str(tmp_path))
    ids = tokenizer("1234  x", add_special_tokens=False)["input_ids"]
    assert [vocabulary()[i] for i in ids] == pieces


def test_an_unknown_way_to_cut_up_is_told(tmp_path, caplog):
    tiny_gguf.write(tmp_path / "a.gguf", pre="something-new")
    loading.load_tokenizer(str(tmp_path))
    assert "(something-new) cuts up a text is not known" in caplog.text


@pytest.mark.parametrize(
    ("facts", "ends"),
    [
        ({"eos": START}, [END]),  # the token that opens each turn
        ({"eos": TEXT_END}, [END, TEXT_END]),  # a base model's end, not a turn's
        ({"eos": 9999}, [END]),  # beyond the vocabulary
        ({"eos": TEXT_END, "template": None}, [TEXT_END]),
        ({"eos": START, "template": None}, [START]),  # nothing says otherwise
        ({"eos": END, "padding": 9999}, [END]),
    ],
)
def test_what_ends_a_turn_is_found_in_the_template(tmp_path, facts, ends):
    tiny_gguf.write(tmp_path / "a.gguf", **facts)
    model, tokenizer = load(tmp_path)
    assert end_ids(tokenizer, model.generation_config) == ends
    assert tokenizer.eos_token_id == ends[0] and tokenizer.pad_token_id == ends[0]
    told = model.config.eos_token_id
    assert (told if isinstance(told, list) else [told]) == ends


def refused(place, *words):
    """What settings say and what loading says: the same, in one line."""
    with pytest.raises(InputError) as first:
        lookup.check_model(str(place), "--model x")
    with pytest.raises(InputError) as second:
        loading.find(str(place))
    for error in (first, second):
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_refused_in_one_line(tiny, tmp_path, monkeypatch):
    file, _ = tiny
    whole = file.read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:-100])
    refused(tmp_path, "a.gguf is cut off", f"{len(whole):,} bytes")
    (tmp_path / "a.gguf").write_bytes(whole[:500])
    refused(tmp_path, "broken or cut off in its header")
    for length in (0, 3, 10):
        (tmp_path / "a.gguf").write_bytes(whole[:length])
        refused(tmp_path, "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1 and more")
    refused(tmp_path, "does not begin with GGUF")
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x01" + whole[5:])
    refused(tmp_path, "GGUF version 1")
    (tmp_path / "b.gguf").write_bytes(whole)
    refused(tmp_path, "2 GGUF files (a.gguf, b.gguf)", "name one")
    tiny_gguf.write(tmp_path / "b.gguf", count=3)
    refused(tmp_path / "b.gguf", "one of 3 parts")
    monkeypatch.setattr(gguf_header, "find_spec", lambda name: None)
    refused(file, "package gguf", "pip install -e '.[gguf]'")


def test_an_architecture_that_is_not_read_is_told_before_the_weights(tmp_path):
    tiny_gguf.write(tmp_path / "a.gguf", architecture="rwkv6")
    with pytest.raises(
        InputError, match="architecture rwkv6, which transformers does not read"
    ) as e:
        load(tmp_path)
    assert "llama" in str(e.value) and "\n" not in str(e.value)


def test_a_file_without_all_tensors_is_refused(tmp_path):
    tiny_gguf.write(tmp_path / "a.gguf", without=("blk.1.ffn_up.weight",))
    with pytest.raises(InputError, match=r"1 tensors .* not in the file .*layers.1.mlp.up_proj"):
        load(tmp_path)


def test_4_bits_are_refused(tiny):
    with pytest.raises(InputError, match="a GGUF file, which is dequantised"):
        load(tiny[0], quantize="4bit")


def test_an_adapter_knows_its_file(tiny, tmp_path, caplog):
    file, _ = tiny
    adapter = adapters.save_adapter(
        tiny_lora(load(file)[0]), tmp_path / "adapter", {"base": str(file)}
    )
    manifest = adapters.read_manifest(adapter)
    assert manifest["base"] == lookup.adapter_base(str(adapter)) == str(file)
    assert manifest["base_file"] == {"name": "tiny.gguf", "sha256": gguf_header.sha256(file)}
    lookup.check_adapter(str(adapter), "--adapter a", str(file.parent))

    loaded = adapters.load_adapter(load(file)[0], adapter, trainable=False)
    assert not caplog.text
    assert not torch.equal(loaded(IDS).logits, load(file)[0](IDS).logits)

    # The same weights under another template: it is used, with a word.
    tiny_gguf.write(tmp_path / "other.gguf", template=TEMPLATE + " ")
    adapters.load_adapter(load(tmp_path / "other.gguf")[0], adapter, trainable=False)
    assert "the file is another one: (other.gguf" in caplog.text

    # Other weights: it is refused, and both files are named.
    tiny_gguf.write(tmp_path / "q.gguf", quantized="Q4_0")
    with pytest.raises(InputError) as caught:
        adapters.load_adapter(load(tmp_path / "q.gguf")[0], adapter, trainable=False)
    assert "(tiny.gguf, SHA-256 " in str(caught.value) and "(q.gguf, SHA-256 " in str(caught.value)


def test_a_hash_is_of_the_file_as_it_is(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert gguf_header.sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")
    path.write_bytes(b"abcd")
    os.utime(path, ns=(1, 1))
    assert not gguf_header.sha256(path).startswith("ba7816bf")


def smollm2() -> Path | None:
    """Return the real file, where there is one."""
    named = os.environ.get("RLM_TEST_GGUF", "weights/smollm2")
    return lookup.gguf_of(named)


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="needs `make smollm2`, or RLM_TEST_GGUF=FILE.gguf")
def test_smollm2_answers_and_ends_its_turn():
    from rlm.engine.engine import Engine, Sampling
    from rlm.records import Prompt

    model, tokenizer = load(smollm2())
    assert tokenizer.eos_token == "<|im_end|>" and model.config.tie_word_embeddings
    # As its own tokenizer.json has it: digits stand alone.
    assert len(tokenizer("4821")["input_ids"]) == 4
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    asked = Prompt(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ((answer,),) = Engine(model, tokenizer).generate(
        [asked], 1, Sampling(48, temperature=0.0), seed=0
    )
    assert "Paris" in answer.text and answer.finish == "stop"
