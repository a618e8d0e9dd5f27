"""A model as one GGUF file: its sizes, its weights under llama.cpp's names and in its order.

    check(model.config)
    write(model, vocabulary, "model-F16.gguf", kind="F16", name="my model")

Families are those of FAMILIES; what llama.cpp computes otherwise for one of them is refused before
anything is written. A weight of one axis stays in float32, as llama.cpp wants it; one whose rows no
block of the kind divides is written in F16. The tokenizer is the matter of gguf_tokenizer.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlm.errors import InputError
from rlm.models import gguf_rope

# transformers' model_type -> llama.cpp's architecture.
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
EXACT_KINDS = ("F32", "F16", "BF16")  # no blocks: each weight is rounded by itself
FINE = "Q8_0"  # of embedding and head, where the other weights have 4 or 5 bits


def check(config, given: str) -> None:
    """InputError in one line, telling `given`, for a model that GGUF or llama.cpp has otherwise."""
    family = config.model_type
    if family not in FAMILIES:
        raise InputError(
            f"{given}: of the family {family}; written as GGUF are {', '.join(FAMILIES)}: use the "
            "kind merged, and llama.cpp's convert_hf_to_gguf.py on its folder"
        )
    reasons = []
    kind = rope(config)["rope_type"]
    if kind not in ("default", "llama3"):
        reasons.append(f"positions of the kind {kind}")
    if rope(config).get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append("heads that are turned in part")
    window = getattr(config, "sliding_window", None)
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window and window < config.max_position_embeddings and windows:
        reasons.append(f"a window of {window} tokens")
    if config.hidden_act != "silu":
        reasons.append(f"the activation {config.hidden_act}")
    if family == "qwen3" and config.attention_bias:
        reasons.append("biases in its attention")
    if reasons:
        raise InputError(
            f"{given}: has {' and '.join(reasons)}, which is not written as GGUF; use the kind "
            "merged"
        )


def rope(config) -> dict:
    """Return the settings of the positions: rope_theta, rope_type and what belongs to it."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    return {"rope_theta": 10000.0, "rope_type": "default"} | found


def head_size(config) -> int:
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def write(model, vocabulary, path: Path, *, kind: str, name: str) -> list[str]:
    """Write the file; return the names of weights that are of another kind than `kind`.

    vocabulary: of gguf_tokenizer.read; None leaves the tokenizer out. InputError if a weight is too
    large for F16.
    """
    import gguf

    config, odd = model.config, []
    writer = gguf.GGUFWriter(path, FAMILIES[config.model_type])
    try:
        _add_sizes(writer, config, name)
        writer.add_file_type(_file_type(kind))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if vocabulary:
            vocabulary.write(writer)
        else:
            writer.add_tokenizer_model("none")
        for tensor, values in tensors(model):
            own = kind_of(tensor, values.shape, kind)
            if own != kind and values.dim() > 1:
                odd.append(tensor)
            data, raw = encoded(values, own, tensor)
            writer.add_tensor(tensor, data, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return odd


def tensors(model) -> Iterator[tuple[str, Any]]:
    """Yield (name in the file, values [rows, columns] or [rows]) of each weight, in its order."""
    import gguf
    import torch

    config = model.config
    names = gguf.get_tensor_name_map(architecture(config), config.num_hidden_layers)
    if rope(config)["rope_type"] == "llama3":
        factors = gguf_rope.llama3_factors(rope(config), head_size(config))
        yield gguf_rope.TENSOR, torch.tensor(factors)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embedding where there is none
        yield file_name(names, name), ordered(name, weight.detach().float().cpu(), config)


def file_name(names, name: str) -> str:
    """Return the name that a weight of transformers has in the file."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise InputError(f"the model's weight {name} has no name in GGUF; use the kind merged")
    return found


def ordered(name: str, values, config):
    """Return a weight with its rows, or its entries, in the order that llama.cpp wants.

    Its Llamas turn neighbouring pairs of a head's entries, transformers an entry of the first half
    with one of the second; so the rows of the queries' and keys' projections change places.
    """
    if FAMILIES[config.model_type] != "llama":
        return values
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if part not in heads:
        return values
    halves = values.reshape(heads[part], 2, len(values) // heads[part] // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def kind_of(name: str, shape, kind: str) -> str:
    """Return in which kind a weight is written when the file is of `kind`."""
    import gguf

    if len(shape) == 1:
        return "F32"
    if kind.startswith(("Q4", "Q5")) and name in ("token_embd.weight", "output.weight"):
        kind = FINE
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return kind if shape[-1] % block == 0 else "F16"


def encoded(values, kind: str, name: str):
    """Return (array, raw type for the gguf library) of a weight; InputError where F16 overflows."""
    import gguf
    import numpy

    array = numpy.ascontiguousarray(values.numpy())
    raw = gguf.GGMLQuantizationType[kind]
    if kind == "F16" and not numpy.abs(array).max(initial=0.0) <= numpy.finfo(numpy.float16).max:
        raise InputError(
            f"the weight {name} has values beyond 65504, which F16 cannot hold; use --dtype BF16"
        )
    return gguf.quants.quantize(array, raw), raw


def rounded(values, kind: str, name: str):
    """Return a weight as it comes back out of a file in which it has this kind, in float32."""
    import gguf
    import torch

    data, raw = encoded(values, kind, name)
    return torch.from_numpy(gguf.quants.dequantize(data, raw).astype("float32"))


def architecture(config) -> Any:
    """Return llama.cpp's architecture of a model, as the gguf library numbers it."""
    import gguf

    wanted = FAMILIES[config.model_type]
    return next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == wanted)


def _file_type(kind: str) -> int:
    import gguf

    return gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]


def _add_sizes(writer, config, name: str) -> None:
    size = head_size(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
