"""A GGUF file of a Llama of a few thousand weights, written on the spot by the gguf library."""

from pathlib import Path

import numpy
import pytest
from tokenizers import pre_tokenizers

from tests.support.tiny_models import tiny_model

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT_END, START, END = 0, 1, 2
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# "1 2" is a merge that a tokenizer which takes digits one by one never gets to use.
MERGES = ["1 2", "Ġ a", "a t"]


def vocabulary() -> list[str]:
    return (
        SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + [m.replace(" ", "") for m in MERGES]
    )


def write(path: Path, *, tied: bool = False, architecture: str = "llama", quantized: str = "F32",
          without: tuple = (), template: str | None = TEMPLATE, **facts):  # fmt: skip
    """Write the file; return the model that it holds, before it was quantised.

    facts: eos, bos, padding (ids), pre, count (parts): of the metadata. without: tensors that are
    left out.
    """
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    tokens = vocabulary()
    model = tiny_model(
        "llama",
        vocabulary=len(tokens),
        tie_word_embeddings=tied,
        eos_token_id=END,
        pad_token_id=END,
        max_position_embeddings=1024,
    )
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    _add_tokenizer(writer, tokens, template, facts)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        target = f"{names.get_name(stem)}.{kind}"
        if target in without or (tied and target == "output.weight"):
            continue
        values = weight.float().numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if part := next((p for p in heads if f".{p}_proj." in name), None):
            values = _permuted(values, heads[part])
        if quantized != "F32" and values.ndim == 2:
            form = gguf.GGMLQuantizationType[quantized]
            writer.add_tensor(target, gguf.quantize(values, form), raw_dtype=form)
        else:
            writer.add_tensor(target, numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tokenizer(writer, tokens: list[str], template: str | None, facts: dict) -> None:
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(facts.get("pre", "smollm"))
    writer.add_token_list(tokens)
    kinds = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL))
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(facts.get("bos", START))
    writer.add_eos_token_id(facts.get("eos", END))
    if facts.get("padding") is not None:
        writer.add_pad_token_id(facts["padding"])
    if template:
        writer.add_chat_template(template)
    if "count" in facts:
        writer.add_uint16("split.count", facts["count"])


def _permuted(values, heads: int):
    """Return a projection's rows in llama.cpp's order of the two halves of a head."""
    shape = values.shape
    halves = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)
