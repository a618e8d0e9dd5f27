"""What lies in a model's or an adapter's folder, without torch: for settings and their checks."""

import os
import re
from pathlib import Path

from rlm.data.hub_sets import kind_of_task
from rlm.errors import InputError
from rlm.files import read_object
from rlm.models import gguf_header
from rlm.records import Example

SIZES = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # of a config.json
ROOT = Path(__file__).resolve().parents[2]  # its weights are found from anywhere

FETCHED = {"weights/smollm2": "`make smollm2` fetches it"}  # models that a recipe names


# os.path answers False for a name that no file can have (too long, a NUL, an unknown ~user),
# where pathlib raises.


def is_adapter(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "adapter_config.json"))


def is_whole(path: str) -> bool:
    """Whether a folder holds a model all of whose weights were trained here (--train full).

    It stands wherever an adapter may stand, on no base.
    """
    if is_adapter(path) or not os.path.isfile(os.path.join(path, "config.json")):
        return False
    return read_object(Path(path) / "manifest.json").get("train") == "full"


def is_trained(path: str) -> bool:
    """Whether a folder holds what a training leaves: an adapter, or a whole model."""
    return is_adapter(path) or is_whole(path)


def adapter_base(path: str) -> str | None:
    """The base model that an adapter names, or that a whole model was made of; None without one."""
    if is_whole(path):
        return _entry(Path(path) / "manifest.json", "base")
    return _entry(Path(path) / "adapter_config.json", "base_model_name_or_path")


def origin(model: str) -> str:
    """The model that a name goes back to: of a whole model trained here what it was made of."""
    return (adapter_base(model) if is_whole(model) else None) or model


def adapter_format(path: str) -> str | None:
    """The format that an adapter was trained on, by its manifest; None where it has none."""
    return _entry(Path(path) / "manifest.json", "format")


def adapter_role(path: str) -> str | None:
    """Where the instruction stood that an adapter was trained with; None where it has no manifest.

    One of `rlm.answers.formats.ROLES`; a manifest that does not say has "system".
    """
    manifest = read_object(Path(path) / "manifest.json")
    return str(manifest.get("instruction_role") or "system") if manifest else None


def adapter_settings(path: str) -> dict:
    """The settings that an adapter was trained with, by its manifest; empty where it has none."""
    found = read_object(Path(path) / "manifest.json").get("settings")
    return found if isinstance(found, dict) else {}


def adapter_kind(path: str) -> str | None:
    """The kind of answers that an adapter was trained for; None where its manifest does not say."""
    kept = adapter_settings(path)
    return kept.get("answers") or kind_of_task(str(kept.get("task")))


def adapter_shots(path: str) -> list[Example]:
    """The worked examples that an adapter was trained with, by its manifest."""
    return shots_of(read_object(Path(path) / "manifest.json"))


def shots_of(manifest: dict) -> list[Example]:
    """The worked examples that a manifest lists; none where it has none that can be read."""
    rows, names = manifest.get("shots"), ("question", "answer", "solution")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    if not all(isinstance(row.get(name), str) and row[name] for row in rows for name in names):
        return []
    return [
        Example(
            f"shot-{i}",
            row["question"],
            row["answer"],
            row["solution"],
            kind=str(row.get("kind") or "number"),
        )
        for i, row in enumerate(rows)
    ]


def _entry(path: Path, name: str) -> str | None:
    value = read_object(path).get(name)
    return value if isinstance(value, str) else None


def folder_of(name: str) -> Path | None:
    """The folder that a model's name means, here or in the repository; None for a hub id."""
    places = (os.path.expanduser(name), ROOT / name)
    return next((Path(place) for place in places if os.path.isdir(place)), None)


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a model's name means: it, or the only one in a folder without another."""
    if name.lower().endswith(gguf_header.SUFFIX):
        places = (os.path.expanduser(name), ROOT / name)
        return next((Path(place) for place in places if os.path.isfile(place)), None)
    found = _gguf_files(name)
    return found[0] if len(found) == 1 else None


def _gguf_files(name: str) -> list[Path]:
    """The GGUF files of a folder that holds no other model."""
    folder = folder_of(name)
    if not folder or (folder / "config.json").is_file() or is_adapter(str(folder)):
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == gguf_header.SUFFIX)


def local_place(name: str) -> Path | None:
    """The folder or the GGUF file that a model's name means; None for a hub id."""
    return gguf_of(name) or folder_of(name)


def check_gguf(name: str, given: str) -> None:
    """InputError if a name means GGUF files, but not one that can be read."""
    if file := gguf_of(name):
        gguf_header.check(file, given)
    elif several := _gguf_files(name):
        names = ", ".join(file.name for file in several)
        raise InputError(
            f"{given}: the folder holds {len(several)} GGUF files ({names}); name one of them"
        )


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: equal, or the same folder or file."""
    first, second = local_place(one), local_place(other)
    return one == other or bool(first and second and first.samefile(second))


def looks_like_path(name: str) -> bool:
    """Whether a model's name can only be a folder: a hub id is `name` or `owner/name`."""
    first = name.replace("\\", "/").split("/")[0]
    local = name.startswith(("/", ".", "~")) or name.count("/") > 1
    return local or first == "weights" or os.path.isdir(first)


def check_model(name: str, given: str, *, weights: bool = True) -> None:
    """InputError if a folder holds no model; a hub id is left to whoever loads it.

    weights: whether they are needed, or the tokenizer alone.
    """
    folder = folder_of(name)
    check_gguf(name, given)
    if gguf_of(name):
        return
    if folder and not weights:
        if not any(folder.glob("tokenizer*.json")):
            raise InputError(f"{given}: the folder has no tokenizer; give a model's folder")
    elif folder:
        if not (folder / "config.json").is_file():
            raise InputError(f"{given}: the folder has no config.json; give a model's folder")
        if not any(folder.glob("*.safetensors")):
            # A .bin is a pickle, which can run code when it is read.
            pickled = any(folder.glob("*.bin"))
            raise InputError(
                f"{given}: the folder has no weights (*.safetensors"
                f"{'; its .bin is a pickle and is not read' if pickled else ''}); "
                "save or download them there"
            )
    elif os.path.exists(name):
        raise InputError(
            f"{given}: a file; give a model's folder, a GGUF file or a name on the hub"
        )
    elif looks_like_path(name):
        advice = FETCHED.get(Path(name).as_posix(), "give a model's folder or a name on the hub")
        raise InputError(f"{given}: no folder {name}; {advice}")


def check_adapter(path: str, given: str, model: str | None = None) -> None:
    """InputError unless `path` holds an adapter with weights, of `model` when that is given."""
    folder = Path(path)
    if not os.path.isdir(path):
        raise InputError(f"{given}: no folder {path}; train it first or give another adapter")
    if not is_trained(path):
        raise InputError(f"{given}: the folder has no adapter_config.json; give a PEFT adapter")
    if is_whole(path):
        check_model(path, given)
    elif not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{given}: the folder has no adapter_model.safetensors; train it again")
    base = adapter_base(path)
    if model is not None and base and not same_model(path, model) and _other_model(base, model):
        raise InputError(f"{given}: an adapter of {base}, not of {model}; use --model {base}")


QUANTIZED = re.compile(r"(-unsloth)?(-bnb)?-(4bit|8bit|gptq|awq)$")  # the end of a model's name


def _other_model(base: str, model: str) -> bool:
    """Whether two names certainly mean different models; where not, their weights decide later.

    Not certain: a folder of another machine, one model in two formats, two folders of one shape,
    a folder and a name on the hub.
    """
    names = [QUANTIZED.sub("", name.rstrip("/").split("/")[-1].lower()) for name in (base, model)]
    if same_model(base, model) or names[0] == names[1]:
        return False
    first, second = local_place(base), local_place(model)
    if first and second:
        one, other = (read_object(place / "config.json") for place in (first, second))
        return not one or any(one.get(key) != other.get(key) for key in SIZES)
    return bool(first) or not (second or looks_like_path(base))


def resolve(given: dict, names: dict[str, str], adapter: str, auto: str | None) -> dict:
    """The given values with `model` and `adapter` as places: names looked up, bases found.

    names: the file's `models:`. adapter: the default of the script, "auto" or "none". auto: the
    folder that "auto" means; it is taken if it holds an adapter, of the model if one is given.
    A model that is an adapter's folder is taken as that adapter on its own base; so is a whole
    model that was trained here, unless an adapter stands on it. Without a model the adapter's base
    is it.
    """
    found = dict(given)
    model: str | None = found.pop("model", None)
    adapter = found.pop("adapter", None) or adapter
    model, adapter = names.get(model, model) if model else None, names.get(adapter, adapter)
    if model and is_whole(model) and adapter in ("auto", "none"):
        adapter, model = model, None
    elif model and is_adapter(model):
        if adapter not in ("auto", "none"):
            raise ValueError(
                f"--model {model} is an adapter, so --adapter {adapter} is one too many"
            )
        adapter, model = model, None
    if adapter == "auto":
        adapter = "none"
        base = adapter_base(auto) if auto else None
        if auto and base and (model is None or same_model(base, model)):
            adapter = auto
    found["adapter"] = None if adapter == "none" else adapter
    model = model or (adapter_base(adapter) if adapter != "none" else None)
    return found | ({"model": model} if model else {})
