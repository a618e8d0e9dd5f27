"""LoRA adapters on the disk: which base they belong to, load, save.

An adapter is a PEFT folder (safetensors only) with a manifest.json beside the weights: base,
base_fingerprint, base_file (of a GGUF base: name, sha256), format, task, settings, scores,
versions. It belongs to one base and is refused on every other one. How it was trained is not known
here; others use it by rlm.models.loading.
"""

import copy
import hashlib
import json
import logging
import shutil
from pathlib import Path

from rlm import files
from rlm.errors import InputError
from rlm.models import gguf_file, gguf_header
from rlm.models.lookup import ROOT, gguf_of, is_trained, is_whole

logger = logging.getLogger("rlm")

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"

FINGERPRINT = "_rlm_fingerprint"  # of a model that knows its own: one whose weights are spread

# What tells one architecture from another, whatever the names in front of it.
SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)


def network_of(model):
    """Return the transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class ModelError(InputError):
    """A model or an adapter that cannot be used: what was given, what is allowed, what to do."""


def load_adapter(model, path: str | Path, *, trainable: bool):
    """Return a PeftModel: `model` with the adapter of the folder `path`, as "default".

    ModelError if the folder is no adapter, or if the adapter is one of another base: by the
    manifest's fingerprint, or, made elsewhere, by its layers, with a warning where its own
    configuration names another base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    path = _adapter_folder(path)
    check_kind(path)
    manifest = read_manifest(path)
    if not _belongs(manifest, model):
        its, given = _file_words(manifest.get("base_file")), _file_words(_file(model))
        raise ModelError(
            f"{path}: an adapter of {manifest['base']}{its}, but the model given is "
            f"{_name(model)}{given}; "
            f"use --model {manifest['base']}, or train an adapter of your own"
        )
    if manifest.get("base_file") and (here := _file(model)) and here != manifest["base_file"]:
        logger.warning(
            "%s: the weights are those that the adapter was trained on, but the file is another "
            "one:%s, not%s; its tokenizer or template may differ",
            path, _file_words(here), _file_words(manifest["base_file"]),
        )  # fmt: skip
    given = manifest["base"]
    if given and not manifest.get("base_fingerprint") and not _same_base(manifest, _named(model)):
        logger.warning(
            "%s: an adapter of %s by its own words; its layers are put on %s",
            path, given, _name(model),
        )  # fmt: skip
    try:
        loaded = PeftModel.from_pretrained(
            model, str(path), is_trainable=trainable, key_mapping=_key_mapping(path, model)
        )
        _check_loaded(loaded, path)
    except (
        ImportError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError
    ) as error:  # fmt: skip
        raise ModelError(failed(path, f"does not fit {_name(model)}", error)) from error
    return loaded if trainable else loaded.eval()


def save_adapter(model, path: str | Path, manifest: dict, *, overwrite: bool = False) -> Path:
    """Write the adapter "default" of `model` and its manifest as the folder `path`; return it.

    base, base_fingerprint and versions are filled in. All is written beside `path`, flushed to
    the disk and renamed into place. ModelError where `check_overwrite` says no.
    """
    path = Path(path)
    manifest = completed(manifest, model)
    check_overwrite(path, manifest, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = files.beside(path, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        model.save_pretrained(
            str(new),
            selected_adapters=["default"],
            # PEFT's "auto" would ask the hub for the base's vocabulary.
            save_embedding_layers=False,
        )
        (new / "README.md").unlink(missing_ok=True)  # an empty model card
        config = json.loads((new / CONFIG).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = manifest["base"]
        if isinstance(config.get("target_modules"), list):  # a set, in another order every time
            config["target_modules"].sort()
        files.write_json(new / CONFIG, config)
        files.write_json(new / MANIFEST, manifest)
        files.put_folder(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def check_overwrite(path: str | Path, manifest: dict, *, overwrite: bool = False) -> None:
    """ModelError if `path` holds what an adapter or a whole model of this manifest may not replace.

    That is one of another base, one of a better validation score in the same task, an adapter by a
    whole model or the other way round, or a folder that is neither. `overwrite` allows all but the
    last. Worth a call before training.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    new = "whole model" if manifest.get("train") == "full" else "adapter"
    if not is_trained(str(path)):
        raise ModelError(f"{path}: exists and is no {new}; give another folder by --output")
    if overwrite:
        return
    there = read_manifest(path)
    kind = "whole model" if is_whole(str(path)) else "adapter"
    if kind != new:
        raise ModelError(
            f"{path}: holds an earlier {kind}, what is trained is a new {new}; use --overwrite to "
            "replace it, or --output for another folder"
        )
    if not _same_base(there, manifest):
        raise ModelError(
            f"{path}: holds {_article(kind)} of {there['base']}, the new one is of "
            f"{manifest.get('base')}; use --overwrite to replace it, or --output for another folder"
        )
    before, now = _score(there), _score(manifest)
    if before is None or now is None or there.get("task") != manifest.get("task"):
        return
    if before > now:
        raise ModelError(
            f"{path}: holds {_article(kind)} of validation score {before:.4f}, the new one has "
            f"{now:.4f}; use --overwrite to replace it, or --output for another folder"
        )


def read_manifest(path: str | Path) -> dict:
    """Return the manifest of an adapter's folder; {"base": its base's name} if it has none.

    base is None where the adapter does not name it. Of a whole model that was trained here it is
    its own. ModelError if `path` is neither.
    """
    path = Path(path)
    if not is_trained(str(path)):
        raise ModelError(f"{path}: no adapter ({CONFIG} is missing); give a PEFT adapter's folder")
    source = path / (MANIFEST if (path / MANIFEST).is_file() else CONFIG)
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        if source.name == MANIFEST:
            return {"base": None} | found
        return {"base": found.get("base_model_name_or_path")}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: cannot be read ({error}); train the adapter again") from error


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def fingerprint(model) -> str:
    """Return "<architecture>-<weights>", two hashes that tell a base model from others.

    The second covers the signs of up to 64 spread weights of every tensor: signs are the same
    in float32, bfloat16 and float16. It is empty where weights are quantised. A LoRA on the
    model changes nothing.
    """
    import torch

    network = network_of(model)
    if known := getattr(network, FINGERPRINT, None):
        return known
    shape = {key: _fact(network.config, key) for key in SHAPE}
    architecture = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for weight in _weights(network):
        if not weight.is_floating_point():
            return f"{architecture}-"
        flat = weight.detach().reshape(-1)
        signs = torch.signbit(flat[:: max(1, flat.numel() // 64)][:64])
        digest.update(signs.to("cpu", torch.uint8).numpy().tobytes())
    return f"{architecture}-{digest.hexdigest()[:16]}"


def _weights(network) -> list:
    """Return the base's weights in the order of its class.

    A forward with a LoRA on experts puts them behind the others of their module.
    """
    import torch

    weights = {
        name.replace("base_layer.", ""): weight
        for name, weight in network.named_parameters()
        if "lora_" not in name and "modules_to_save" not in name
    }
    if not any(hasattr(module, "parameter_name") for module in network.modules()):
        return list(weights.values())
    with torch.device("meta"):
        fresh = type(network)(copy.deepcopy(network.config))
    order = {name: place for place, (name, _) in enumerate(fresh.named_parameters())}
    return [weights[name] for name in sorted(weights, key=lambda n: order.get(n, len(order)))]


def _fact(config, key: str):
    """Return what a configuration says, a list where its layers differ."""
    if key in (getattr(config, "per_layer_attributes", None) or ()):
        return [getattr(layer, key, None) for layer in config.per_layer_config]
    return getattr(config, key, None)


# What belongs to what.

# Kinds of peft's adapters that change what the model reads, and no weight: prompts and prefixes.
PROMPTS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT", "XLORA",
)  # fmt: skip


def check_kind(path: str | Path) -> None:
    """ModelError for an adapter that is no change of the model's weights. It reads no weights."""
    kind = str(files.read_object(Path(path) / CONFIG).get("peft_type", "LORA")).upper()
    if kind in PROMPTS:
        raise ModelError(
            f"{path}: an adapter of the kind {kind}, which changes what the model reads and no "
            "weight; only kinds that change weights are used, such as LORA"
        )


def _key_mapping(path: Path, model) -> dict[str, str] | None:
    """Return how the names of an adapter's weights become the model's, None as they are.

    An adapter of a wrapper for pictures names the text model inside it, which here stands alone.
    """
    from safetensors import safe_open

    with safe_open(path / WEIGHTS, "pt") as weights:
        wrapped = any(".language_model." in name for name in weights.keys())  # noqa: SIM118
    alone = not any("language_model." in name for name, _ in model.named_modules())
    # peft takes its own prefix off before: older names have the wrapper's outside, others inside.
    return {r"^(model\.)?language_model\.(model\.)?": "model."} if wrapped and alone else None


def _check_loaded(loaded, path: Path) -> None:
    """ValueError unless each weight of the adapter's file has found its place."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(path / WEIGHTS, "pt") as weights:
        there = len(weights.keys())
    placed = len(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    if placed < there:
        raise ValueError(f"{there} weights, of which only {placed} have a place in the model")


def _named(model) -> dict:
    return {"base": _portable(_name(model))}


def _adapter_folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"{path}: no such folder; train the adapter first or give another one")
    if (path / CONFIG).is_file() and not (path / WEIGHTS).is_file():
        # PEFT would fall back on a pickle, which can run code, and then on the hub.
        raise ModelError(f"{path}: no {WEIGHTS}, the only form that is read; train it again")
    return path


def _name(model) -> str:
    network = network_of(model)
    return network.config._name_or_path or type(network).__name__


def _file(model) -> dict | None:
    """Return name and sha256 of the GGUF file that the base was loaded from, None of no such."""
    network = network_of(model)
    path = getattr(network, gguf_file.FILE, None)
    return path and {"name": path.name, "sha256": gguf_header.sha256(path)}


def _file_words(file: dict | None) -> str:
    return f" ({file['name']}, SHA-256 {file['sha256'][:16]}...)" if file else ""


def _portable(name: str) -> str:
    """Return a place inside the repository relative to it; every other name as it is."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and not (folder.is_file() and gguf_of(name)):
        return name
    resolved = folder.resolve()
    return resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else name


def _belongs(manifest: dict, model) -> bool:
    mark = manifest.get("base_fingerprint")
    if not mark:
        return True  # by its layers: `load_adapter` says where the names differ
    return _same_base(manifest, _named(model) | {"base_fingerprint": fingerprint(model)})


def _same_base(one: dict, other: dict) -> bool:
    """Compare by fingerprint where both have one, otherwise by the last part of the name."""
    first, second = (m.get("base_fingerprint") or "" for m in (one, other))
    if first and second:
        parts = zip(first.split("-"), second.split("-"), strict=True)
        return all(a == b or not (a and b) for a, b in parts)
    names = [str(m.get("base") or "").rstrip("/").split("/")[-1].lower() for m in (one, other)]
    return names[0] == names[1]


def _score(manifest: dict) -> float | None:
    """Return scores.validation: a number, or the accuracy in a summary."""
    scores = manifest.get("scores")
    score = scores.get("validation") if isinstance(scores, dict) else None
    score = score.get("accuracy") if isinstance(score, dict) else score
    return float(score) if isinstance(score, int | float) else None


def completed(manifest: dict, model) -> dict:
    """Return the manifest with base, base_fingerprint, versions, and base_file of a GGUF base."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    filled = {"versions": versions} | manifest
    filled["base"] = _portable(str(manifest.get("base") or _name(model)))
    filled["base_fingerprint"] = manifest.get("base_fingerprint") or fingerprint(model)
    if file := _file(model):
        filled["base_file"] = file
    return filled


def failed(name, what: str, error: Exception) -> str:
    """Return one line out of a library's error."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{name}: {what} ({' '.join(lines[:2]).strip()[:300]})"
