"""Base models and their tokenizers: find, load, put a LoRA on. The door to all of it.

It does not know how a model is trained or sampled from, and it imports torch only once a
model is really loaded. What lies in an adapter's folder is the matter of rlm.models.adapters.
"""

import json
import re
from pathlib import Path

from rlm.data import hub
from rlm.models import gguf_file
from rlm.models.adapters import (
    CONFIG,
    ModelError,
    check_overwrite,
    failed,
    fingerprint,
    load_adapter,
    read_manifest,
    save_adapter,
)
from rlm.models.lookup import check_gguf, folder_of, gguf_of
from rlm.seeds import derive

__all__ = [
    "ModelError",
    "add_lora",
    "check_finite",
    "check_overwrite",
    "dtype_of",
    "find",
    "fingerprint",
    "load_adapter",
    "load_base",
    "load_tokenizer",
    "pick_device",
    "read_manifest",
    "save_adapter",
]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(name: str = "auto"):
    """Return a torch.device: "auto" is CUDA, then MPS, then CPU. ModelError if it is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind, found in there.items() if found), "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ModelError(f"device {name!r}: unknown; use auto, cuda, mps or cpu")
    if not there.get(kind, True):
        raise ModelError(f"device {name!r}: this machine has none; use auto or cpu")
    return torch.device(name)


def load_base(name_or_path: str, *, device="auto", dtype: str = "auto", quantize: str = "none"):
    """Return (model, tokenizer) of a folder, a GGUF file or a hub's name, in evaluation mode.

    dtype "auto": float32 on CPU and MPS; on CUDA bfloat16 where the chip computes in it, else
    float16. quantize "4bit": the linear layers' weights as NF4 (arXiv:2305.14314), CUDA only.
    Only safetensors and GGUF (its weights dequantised) are read, and no code that comes with a
    model is run. A tokenizer without a pad token gets its eos token for it; masks are nobody's
    business here.
    ModelError in one line: no weights, no tokenizer, neither a folder nor reachable (asked
    before any heavy import, so within 3 seconds).
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: unknown; use one of {', '.join(DTYPES)}")
    place, local_only = find(name_or_path)
    from safetensors import SafetensorError
    from transformers.utils import logging

    from rlm.models import text_model

    logging.disable_progress_bar()  # a bar of a tenth of a second, in the middle of the output
    device = pick_device(str(device))
    torch_dtype = dtype_of(dtype, device)
    if file := gguf_of(name_or_path):
        if quantize != "none":
            raise ModelError(
                f"quantize {quantize}: {file.name} is a GGUF file, which is dequantised; leave "
                "--quantize out, or halve the weights with --dtype bfloat16"
            )
        model, tokenizer = gguf_file.load(file, dtype=torch_dtype)
        text_model.choose_attention(model)
        return model.to(device).eval(), tokenizer
    if quantize != "none":
        more = {"quantization_config": _four_bit(device, torch_dtype), "device_map": {"": device}}
    else:
        more = {}
    options = {"trust_remote_code": False, "local_files_only": local_only}
    tokenizer = _tokenizer(name_or_path, place, options)
    how = text_model.look(name_or_path, place, options)
    try:
        model = how.load(place, dtype=torch_dtype, use_safetensors=True, **options, **more)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(failed(name_or_path, "its weights cannot be loaded", error)) from error
    return (model if more else model.to(device)).eval(), tokenizer


def load_tokenizer(name_or_path: str):
    """Return (tokenizer, generation config or None) of a model without its weights.

    ModelError as `load_base` has it; a folder needs a tokenizer and no weights.
    """
    place, local_only = find(name_or_path, weights=False)
    if file := gguf_of(name_or_path):
        return gguf_file.tokenizer_of(file)
    from transformers import AutoConfig, GenerationConfig

    options = {"trust_remote_code": False, "local_files_only": local_only}
    tokenizer = _tokenizer(name_or_path, place, options)
    try:
        return tokenizer, GenerationConfig.from_pretrained(place, local_files_only=local_only)
    except (OSError, ValueError):
        pass
    try:  # as transformers does it for a model without such a file
        config = AutoConfig.from_pretrained(place, **options)
        return tokenizer, GenerationConfig.from_model_config(config)
    except (OSError, ValueError):
        return tokenizer, None


def read_tokenizer(folder: str):
    """Return the tokenizer of a folder, whatever else is in it. ModelError if it has none."""
    return _tokenizer(folder, folder, {"trust_remote_code": False, "local_files_only": True})


def _tokenizer(name: str, place: str, options: dict):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(failed(name, "its tokenizer cannot be loaded", error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"{name}: has no tokenizer; put tokenizer.json and "
            "tokenizer_config.json beside its weights"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def add_lora(
    model,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int,
    targets: tuple[str, ...] = ("all-linear",),
    rank_stabilized: bool = False,
):
    """Return a PeftModel with a fresh LoRA on the layers that `targets` names.

    targets: see `rlm.models.lora_targets`; all linear layers but the output head by default.
    dropout: share of a LoRA's input that is left out in training. rank_stabilized: its output is
    scaled by alpha / sqrt(r) (arXiv:2312.03732) in place of alpha / r.
    Its A is random and the same for the same seed, its B is zero: at first it changes nothing.
    LoRA weights are float32 whatever the base's dtype. ModelError for a target that is not there.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    from rlm.models.lora_targets import found

    places = found(model, targets)
    if dropout and "target_parameters" in places:
        raise ModelError(
            f"--lora-dropout {dropout:g}: with the target "
            f"{' and '.join(t for t in targets if t in ('experts', 'router'))} there can be none, "
            "since those weights are learned as a whole; leave --lora-dropout out"
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rank_stabilized,
        task_type=TaskType.CAUSAL_LM,
        **places,
    )
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type in ("cuda", "mps") else []):
        torch.manual_seed(derive(seed, "lora"))
        return get_peft_model(model, config)


def check_finite(model) -> None:
    """ModelError if a weight of the model or of its adapter is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise ModelError(
                f"{name}: holds values that are not finite, so no answer could be right; "
                "train it again or give another model"
            )


# Where a model is.


def find(name: str, *, weights: bool = True) -> tuple[str, bool]:
    """Return (place, whether no network may be used) of a model; ModelError if there is none.

    weights: whether they are needed, or the tokenizer alone. It imports no torch and answers
    within 3 seconds, with a network and without.
    """
    check_gguf(name, f"model {name!r}")
    if file := gguf_of(name):
        return str(file), True
    if folder := folder_of(name):
        if weights:
            _check_folder(name, folder)
        return str(folder), True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(
            f"model {name!r}: neither a folder nor a GGUF file nor a name like owner/model"
        )
    if _cached(name, weights):
        return name, True
    switch = hub.offline_switch()
    why = f"{switch} is set" if switch else f"{hub.endpoint()} does not answer"
    if switch or not hub.reachable():
        raise ModelError(
            f"model {name!r}: neither a folder nor reachable ({why}, and it is not in the local "
            "cache); give a model's folder, or connect to the network once"
        )
    return name, False


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / CONFIG).is_file():
            raise ModelError(f"model {name!r}: the folder is an adapter; give it by --adapter")
        raise ModelError(f"model {name!r}: the folder has no config.json; give a model's folder")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name!r}: the folder has no weights in safetensors, the only form that is "
            "read; save the model there with save_pretrained"
        )


def _cached(name: str, weights: bool) -> bool:
    """Return whether the local cache holds the whole model, or its tokenizer."""
    from huggingface_hub import try_to_load_from_cache

    def path(file: str) -> str | None:
        found = try_to_load_from_cache(name, file)
        return found if isinstance(found, str) else None

    if not path("config.json"):
        return False
    if not weights:
        return bool(path("tokenizer_config.json"))
    index = path("model.safetensors.index.json")
    if not index:
        return bool(path("model.safetensors"))
    shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return all(path(shard) for shard in set(shards))


def _four_bit(device, torch_dtype):
    """Return the configuration that loads weights in 4 bits; ModelError where that cannot be."""
    from importlib.util import find_spec

    if device.type != "cuda":
        raise ModelError(
            f"quantize 4bit: needs a CUDA device, this is {device.type}; leave --quantize out, or "
            "halve the weights with --dtype bfloat16"
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError("quantize 4bit: bitsandbytes is not installed; `pip install bitsandbytes`")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype,
    )


def dtype_of(name: str, device):
    """Return the torch.dtype of a name on a device; auto: see `load_base`."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float16
