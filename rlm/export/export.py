"""Takes a trained model out of here: merged into one model, or as an adapter for its base.

    python -m rlm.export merged  --adapter weights/final_rlm_lora --output exported/my_model
    python -m rlm.export merged  --adapter ... --output ... --dtype float32 --device cpu
    python -m rlm.export gguf    --adapter ... --output exported/my_gguf --dtype Q8_0
    python -m rlm.export lora-gguf --adapter ... --output exported/my_lora
    python -m rlm.export adapter --adapter weights/final_rlm_lora --output exported/my_adapter
    HF_TOKEN=... python -m rlm.export gguf --output exported/my_gguf --push-to-hub me/my_gguf

A merged folder loads with plain transformers and needs nothing of this repository; before it is
put in place it is loaded afresh and has to be the model with its adapter (rlm.export.proof).
Merging takes float32, 4 bytes a parameter, whatever the base's format. A GGUF file is proved in the
same way, and in llama.cpp itself where that is installed (rlm.export.gguf). An adapter is copied
byte for byte.
"""

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from rlm import files
from rlm.errors import InputError
from rlm.export import gguf_writer, hub, model_card
from rlm.export.folders import copy_tokenizer
from rlm.export.merging import write_manifest, write_merged
from rlm.models import adapters
from rlm.models.lookup import (
    adapter_base,
    check_adapter,
    check_model,
    folder_of,
    is_whole,
    local_place,
)

# Of the weights, by kind of export, and the default.
DTYPES = {"merged": (("bfloat16", "float32"), "bfloat16"), "gguf": (gguf_writer.KINDS, "F16")}


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    source, base = sources(given)
    output = Path(given.output).expanduser().resolve()
    places = [place for place in (source, local_place(base)) if place]
    check_output(output, places, overwrite=given.overwrite)
    if given.public and not given.push_to_hub:
        raise InputError("--public: of what is pushed to the hub; use it with --push-to-hub NAME")
    if given.push_to_hub:
        hub.check(given.push_to_hub, public=given.public)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        new = files.beside(output, "new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            metrics = write(given, source, base, new, output.name)
            card = model_card.write(
                metrics,
                output.name,
                local=local_place(base) is not None,
                licence=licence_of(base, ask=bool(given.push_to_hub)),
                command=told(given),
            )
            files.write_text(new / "README.md", card)
            files.put_folder(new, output)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error})") from None
    print(f"{given.kind}: {output}{model_card.summary(metrics)}")
    if given.push_to_hub:
        print(f"pushed: {hub.push(output, given.push_to_hub, public=given.public)}")
    return 0


def told(given) -> str:
    """Return the command, with folders of this machine by their last name."""
    words = ["python", "-m", "rlm.export", given.kind]
    for name in ("adapter", "model", "dtype"):
        value = getattr(given, name, None)
        if value:
            place = local_place(value) is not None and Path(value).is_absolute()
            words += [f"--{name}", Path(value).name if place else value]
    words += ["--token-ids"] if getattr(given, "token_ids", False) else []
    return shlex.join([*words, "--output", Path(given.output).name])


def licence_of(base: str, *, ask: bool) -> str | None:
    """Return the licence that the base's own card names; None where none is known.

    ask: of a model on the hub, which is asked for it.
    """
    if local_place(base) is None:
        return hub.licence_of(base) if ask else None
    folder = folder_of(base)
    card = folder / "README.md" if folder else Path(base).parent / "README.md"
    try:
        head = card.read_text(encoding="utf-8").split("---")[1]
        found = yaml.safe_load(head)["license"]
    except (OSError, IndexError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def sources(given) -> tuple[Path | None, str]:
    """Return (the adapter's folder, its base); the base alone for `gguf --adapter none`."""
    if given.adapter == "none" and given.kind == "gguf":
        if not given.model:
            raise InputError("--adapter none: there is nothing to write; use --model BASE")
        check_model(given.model, f"--model {given.model}")
        return None, given.model
    source = folder_of(given.adapter) or Path(given.adapter)
    check_adapter(str(source), f"--adapter {given.adapter}", given.model)
    if is_whole(str(source)) and given.kind != "gguf":
        raise InputError(
            f"--adapter {given.adapter}: a whole model, of which nothing is left to merge or to "
            "take off its base; copy the folder as it is: transformers and vLLM load it"
        )
    base = given.model or adapters.read_manifest(source)["base"] or adapter_base(str(source))
    if not base:
        raise InputError(f"--adapter {given.adapter}: does not name its base; use --model BASE")
    return source, base


def write(given, source: Path | None, base: str, new: Path, name: str) -> dict:
    """Write the folder `new`, which will be called `name`; return its manifest."""
    if given.kind == "gguf":
        from rlm.export.gguf import write_gguf

        return write_gguf(source, base, new, kind=given.dtype, device=given.device, name=name,
                          token_ids=given.token_ids)  # fmt: skip
    assert source is not None
    if given.kind == "lora-gguf":
        from rlm.export.lora_gguf import write_lora_gguf

        return write_lora_gguf(source, base, new, device=given.device, name=name,
                               token_ids=given.token_ids)  # fmt: skip
    if given.kind == "merged":
        return write_merged(source, base, new, given.dtype, given.device)
    return write_adapter(source, base, new)


class Parser(argparse.ArgumentParser):
    """Tells wrong input in one line, as the scripts do."""

    def error(self, message):
        raise InputError(f"{message}; see python -m rlm.export --help")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m rlm.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, text in (
        ("merged", "one model with the adapter in its weights"),
        ("gguf", "one GGUF file of it for llama.cpp and Ollama"),
        ("lora-gguf", "the adapter as a GGUF file, for a base in one"),
        ("adapter", "a PEFT adapter with a model card"),
    ):
        sub = kinds.add_parser(kind, help=text, description=text)
        sub.add_argument("--adapter", default="weights/final_rlm_lora", help="default %(default)s")
        sub.add_argument("--output", required=True, help="folder to write")
        sub.add_argument("--model", help="the base; default: the one that the adapter names")
        sub.add_argument("--overwrite", action="store_true", help="replace an earlier export")
        sub.add_argument("--push-to-hub", metavar="NAME", help="upload the folder, private; the "
                         "token is HF_TOKEN of the environment")  # fmt: skip
        sub.add_argument("--public", action="store_true", help="what is pushed may be seen by all")
        if kind in DTYPES:
            choices, default = DTYPES[kind]
            sub.add_argument("--dtype", choices=choices, default=default,
                             help="of the weights; default %(default)s")  # fmt: skip
        if kind != "adapter":
            sub.add_argument(
                "--device", default="auto", help="where it is computed: cuda, cpu, ..."
            )
        if kind.endswith("gguf"):
            sub.add_argument("--token-ids", action="store_true", help="for programs that send and "
                             "read token ids: for a tokenizer that llama.cpp has not")  # fmt: skip
    return parser


def check_output(output: Path, sources: Sequence[Path | None], *, overwrite: bool) -> None:
    """InputError if `output` may not be written: what is there is no earlier export, or needed."""
    for source in filter(None, sources):
        if source.resolve().is_relative_to(output):
            raise InputError(f"--output {output}: {source} is read from there; give another folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"--output {output}: a file; give a folder")
    if not any(output.iterdir()):
        return
    if "export" not in files.read_object(output / "manifest.json"):
        raise InputError(f"--output {output}: exists and is no export; give another folder")
    if not overwrite:
        raise InputError(f"--output {output}: exists; use --overwrite, or give another folder")


def write_adapter(source: Path, base: str, new: Path) -> dict:
    """Write the folder of an adapter; return its manifest."""
    new.mkdir()
    shutil.copyfile(source / adapters.WEIGHTS, new / adapters.WEIGHTS)
    copy_tokenizer(source, new)
    config = files.read_object(source / adapters.CONFIG)
    files.write_json(new / adapters.CONFIG, config | {"base_model_name_or_path": base})
    known = ("r", "lora_alpha", "target_modules")
    lora = {name: config[name] for name in known if name in config}
    return write_manifest(source, base, new, {"kind": "adapter", "lora": lora})
