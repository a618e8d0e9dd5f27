"""What stands in the folder of a whole model beside its weights: configuration, tokenizer.

It is taken from the base's own folder as it is there. What was trained or merged is not known here.
"""

import shutil
from pathlib import Path

from rlm import files
from rlm.models.lookup import folder_of
from rlm.models.text_model import is_wrapper

# Copied as they are: a tokenizer that is loaded and saved again can come out as another one.
COPIED = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "LICENSE*", "NOTICE*",
)  # fmt: skip
# Settings that say nothing of the model, or name places on this machine.
PRIVATE = (
    "config", "named_models", "model", "adapter", "weights", "run", "device", "threads",
    "log_level", "data", "wandb", "wandb_project", "output", "overwrite", "cache_tokens",
)  # fmt: skip


def public(settings: dict) -> dict:
    """Return what others may read of the settings: none that names a place on this machine."""
    return {
        name: value
        for name, value in settings.items()
        if name not in PRIVATE and not (isinstance(value, str) and "/" in value)
    }


def copy_from_base(folder: Path, new: Path, dtype: str, ends: tuple) -> None:
    """Give the folder the base's own tokenizer and configuration, as the base's folder has them.

    Written anew by this version of transformers they could be read otherwise by another one.
    What changes: the format, and that every token that ends an answer here ends it there.
    """
    if folder != new:
        copy_tokenizer(folder, new)
    config = files.read_object(folder / "config.json")
    if is_wrapper(config):  # around the text model, which is all that was loaded and is saved
        config = files.read_object(new / "config.json")
    config = {k: dtype if k in ("dtype", "torch_dtype") else v for k, v in config.items()}
    if "dtype" not in config:
        config["torch_dtype"] = dtype  # read by old and new versions
    files.write_json(new / "config.json", config)
    listed = [id for end in ends for id in (end if isinstance(end, list) else [end])]
    unique = [id for id in dict.fromkeys(listed) if id is not None]
    generation = files.read_object(folder / "generation_config.json") or files.read_object(
        new / "generation_config.json"
    )
    if unique:
        generation["eos_token_id"] = unique if len(unique) > 1 else unique[0]
    files.write_json(new / "generation_config.json", generation)
    for weights in new.glob("*.safetensors"):  # they come out readable for their owner alone
        shutil.copymode(new / "config.json", weights)


def copy_tokenizer(folder: Path, new: Path) -> None:
    """Copy what belongs to a tokenizer; an adapter's own replaces the base's."""
    for file in {file for pattern in COPIED for file in folder.glob(pattern)}:
        if file.is_file():
            shutil.copyfile(file, new / file.name)


def base_folder(base: str) -> Path:
    """Return the folder of a model that has been loaded: its own, or the one in the hub's cache."""
    if folder := folder_of(base):
        return folder
    from huggingface_hub import try_to_load_from_cache

    return Path(try_to_load_from_cache(base, "config.json")).parent
