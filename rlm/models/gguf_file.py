"""A base model in one GGUF file: its tokenizer, its weights dequantised.

    model, tokenizer = load("weights/smollm2/model.gguf", dtype=torch.float32)

transformers reads the file by the package gguf (extra `gguf`). What it gets wrong is put right
here: which tokens begin and end a turn, how a text is cut up before the byte-level BPE, and a
model left quantised in name. Where such a file lies and who it belongs to is not known here.
"""

import logging
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlm.errors import InputError
from rlm.models import gguf_rope
from rlm.models.gguf_header import Header, check

logger = logging.getLogger("rlm")

FILE = "_rlm_gguf_file"  # of a loaded model: the path of its file

CONTROL, USER_DEFINED = 3, 4  # token types

# How llama.cpp cuts up a text before the BPE, by tokenizer.ggml.pre. transformers cuts up every
# Llama as GPT-2 does, and so reads the numbers of these otherwise than their models were trained.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {"gpt-2": None, "smollm": "digits", "llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}


def load(path: Path, *, dtype):
    """Return (model, tokenizer) of a checked file, the weights dequantised to `dtype`, on the CPU.

    InputError in one line: an architecture that transformers cannot read from such a file (told
    before the weights are read), tensors that are missing or do not fit.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        with _read_once():
            config, tokenizer, generation = _opened(path)
            model, info = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                config=config,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise InputError(_told(path, "its weights cannot be loaded", error)) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{path}: {len(missing)} tensors of the model are not in the file ({missing[0]}); "
            "fetch another file of it"
        )
    _make_plain(model)
    model.config.name_or_path = str(path)
    model.generation_config = generation
    setattr(model, FILE, path)
    return model, tokenizer


@contextmanager
def _read_once():
    """Inside the block transformers opens a file once, builds each table once, shows no bar.

    It would open the file for the configuration and again for the weights, and build the table of
    tensor names anew for each module: half of the time that a small model takes.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    put: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", lru_cache(gguf.GGUFReader)),
        (gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)),
        (loader, "tqdm", lambda tensors, **options: tensors),
    ]
    kept = [(place, name, getattr(place, name)) for place, name, _ in put]
    try:
        for place, name, value in put:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in kept:
            setattr(place, name, value)


def tokenizer_of(path: Path):
    """Return (tokenizer, generation config) of a checked file, without its weights."""
    return _opened(path)[1:]


def _opened(path: Path) -> tuple:
    """Return (config, tokenizer, generation config); the special tokens stand in all three."""
    from transformers import AutoConfig, GenerationConfig

    place = path.stat()
    parsed = _parsed(path, place.st_size, place.st_mtime_ns)
    header = check(path, str(path))
    metadata = header.metadata
    try:
        tokenizer = _tokenizer(path, parsed["config"]["model_type"], parsed["tokenizer"], metadata)
        ends = turn_ends(tokenizer, metadata)
        if ends:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        sizes = completed(parsed["config"], header)
        if gguf_rope.TENSOR in header.tensors:
            sizes = _with_positions(path, sizes)
        config = AutoConfig.for_model(**sizes)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(_told(path, "its tokenizer cannot be loaded", error)) from error
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in tokens.items():  # Llama's default is token 2, whatever that is here
        setattr(config, name, value)
    return config, tokenizer, GenerationConfig(**tokens)


def completed(config: dict, header: Header) -> dict:
    """Return transformers' settings of a file with what they leave out: size of heads, biases."""
    size = header.metadata.get(f"{header.metadata['general.architecture']}.attention.key_length")
    found = {"head_dim": size} if size else {}
    for name, part in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_gate")):
        if f"blk.0.{part}.bias" in header.tensors:
            found[name] = True
    return found | config


def _with_positions(path: Path, config: dict) -> dict:
    """Return the settings with positions of kind llama3, of which transformers reads nothing."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    factors = next(each.data for each in tensors if each.name == gguf_rope.TENSOR).tolist()
    rest = {name: value for name, value in config.items() if name != "rope_theta"}
    found = gguf_rope.llama3_settings(factors, float(config.get("rope_theta", 10000.0)))
    if found is None:
        raise InputError(
            f"{path}: its positions are stretched in a way that is not known here "
            f"({gguf_rope.TENSOR}); give the model as a folder of safetensors"
        )
    return rest | {"rope_parameters": found}


@lru_cache(maxsize=2)
def _parsed(path: Path, size: int, changed: int) -> dict:
    """Return what transformers makes of the metadata: config, tokenizer. It takes seconds."""
    from transformers.integrations.gguf import (
        GGUF_CONFIG_ARCHS,
        GGUF_TOKENIZER_ARCHS,
        get_gguf_config,
        get_gguf_tokenizer,
        read_gguf_metadata,
    )
    from transformers.modeling_gguf_pytorch_utils import (
        GGUF_SUPPORTED_ARCHITECTURES,
        load_gguf_checkpoint,
    )

    architecture = check(path, str(path)).metadata["general.architecture"]
    try:
        if architecture in GGUF_CONFIG_ARCHS and architecture in GGUF_TOKENIZER_ARCHS:
            metadata, names = read_gguf_metadata(str(path))
            kind, vocabulary, _ = get_gguf_tokenizer(str(path))
            config = get_gguf_config(metadata, names) | {"model_type": kind}
            return {"config": config, "tokenizer": vocabulary}
        return load_gguf_checkpoint(str(path))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        known = sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS})
        if architecture in known:
            raise InputError(_told(path, "its header cannot be read", error)) from error
        raise InputError(
            f"{path}: of the architecture {architecture}, which transformers does not read from "
            f"GGUF; it reads {', '.join(known)}. Give the model as a folder of safetensors"
        ) from error


def _tokenizer(path: Path, kind: str, vocabulary: dict, metadata: dict):
    """Return the tokenizer of a vocabulary: special tokens by their ids in the metadata.

    transformers' converter of Llamas swaps the token that begins a text and the one that ends it,
    and knows no padding token.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.ggml import GGUF_TO_FAST_CONVERTERS, convert_gguf_tokenizer

    if kind not in GGUF_TO_FAST_CONVERTERS:
        raise ValueError(f"transformers knows none for {kind}")
    tokens = vocabulary["tokens"]
    # The converter asks for a token that begins a text where the file has none, too.
    any_bos = {"bos_token_id": vocabulary.get("eos_token_id")}
    fast, _ = convert_gguf_tokenizer(kind, any_bos | vocabulary)
    types = vocabulary.get("token_type") or []
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _cut_up(path, fast, metadata.get("tokenizer.ggml.pre", "default"))
        for special in (CONTROL, USER_DEFINED):
            named = [t for t, of in zip(tokens, types, strict=False) if of == special]
            added = [AddedToken(t, normalized=False, special=special == CONTROL) for t in named]
            fast.add_special_tokens(added) if special == CONTROL else fast.add_tokens(added)

    def token(name: str) -> str | None:
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[number] if number is not None and 0 <= number < len(tokens) else None

    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding"),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=metadata.get(f"{metadata['general.architecture']}.context_length"),
    )


def _cut_up(path: Path, fast, name: str) -> None:
    """Give a byte-level BPE the way its model cuts up texts, and the decoder of all of them."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    if name not in SPLITS:
        logger.warning(
            "%s: how its tokenizer (%s) cuts up a text is not known here, so numbers may be cut up "
            "otherwise than it was trained; %s are known", path, name, ", ".join(SPLITS)
        )  # fmt: skip
        return
    options = {"add_prefix_space": False, "trim_offsets": True}
    by_gpt2 = pre_tokenizers.ByteLevel(**options, use_regex=True)
    split = SPLITS[name]
    if split is None:
        parts = [by_gpt2]
    elif split == "digits":
        parts = [pre_tokenizers.Digits(individual_digits=True), by_gpt2]
    else:
        pieces = pre_tokenizers.Split(Regex(split), behavior="isolated")
        parts = [pieces, pre_tokenizers.ByteLevel(**options, use_regex=False)]
    fast.pre_tokenizer = pre_tokenizers.Sequence(parts)
    fast.normalizer = normalizers.NFC() if name == "qwen2" else normalizers.Sequence([])
    fast.decoder = decoders.ByteLevel()


def turn_ends(tokenizer, metadata: dict) -> list[int]:
    """Return the ids that end an assistant's turn, the template's own first; [] if none is known.

    The first is the control token that the chat template writes after an assistant's words. The
    others are those of the metadata (eos, eot), but for one that the template opens the assistant's
    turn with: a file that names it as its end is wrong, and no turn would have a word.
    """
    number = len(tokenizer)
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    told: list[int] = [i for i in named if i is not None and 0 <= i < number]
    closing, opening = _around_turn(tokenizer)
    ends = [i for i in told if i not in opening or i in closing[:1]]
    return list(dict.fromkeys([*closing[:1], *ends]))


MARK = "0451"  # stands for the assistant's words


def _around_turn(tokenizer) -> tuple[list[int], list[int]]:
    """Return the control tokens (after, before) an assistant's words by the chat template."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return [], []
    asked = [{"role": "user", "content": "?"}]
    try:
        whole = tokenizer.apply_chat_template(
            [*asked, {"role": "assistant", "content": MARK}], tokenize=False
        )
        before = tokenizer.apply_chat_template(asked, tokenize=False)
    except TemplateError:
        return [], []
    words = whole.rpartition(MARK)
    opening = words[0].removeprefix(before)
    return _control(tokenizer, words[2]), _control(tokenizer, opening)


def _control(tokenizer, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [i for i in ids if i in special]


def _make_plain(model) -> None:
    """Have a dequantised model say that it is one, so that it can be trained and saved."""
    if quantizer := getattr(model, "hf_quantizer", None):
        quantizer.remove_quantization_config(model)


def _told(path: Path, what: str, error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{path}: {what} ({' '.join(lines[:2]).strip()[:300]})"
