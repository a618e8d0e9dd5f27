"""Writes a model all of whose weights were trained, as a folder that needs nothing of ours.

    kept = write_model(policy, run / "model", manifest)
    put_model(kept, "weights/final_rlm_full", manifest)

The folder has config.json, weights in safetensors, tokenizer with chat template, generation config,
manifest.json and a model card. It is written beside its place, flushed and renamed into it.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from rlm import files
from rlm.export import model_card
from rlm.export.folders import base_folder, copy_from_base, public
from rlm.models import adapters
from rlm.models.lookup import gguf_of, local_place

CARD = "README.md"


def write_model(policy, path: Path, manifest: dict) -> Path:
    """Write the policy's whole model and its manifest as the folder `path`; return it."""
    network, manifest = policy.model, adapters.completed(manifest, policy.model)
    dtype = str(network.dtype).removeprefix("torch.")
    ends = network.generation_config.eos_token_id, policy.tokenizer.eos_token_id
    with _new(path) as new:
        network.save_pretrained(new)
        if gguf_of(policy.base):  # it has no such files; what was read from it is written
            policy.tokenizer.save_pretrained(new)
        copy_from_base(new if gguf_of(policy.base) else base_folder(policy.base), new, dtype, ends)
        _describe(new, path.name, manifest, dtype)
    return path


def put_model(kept: Path, path: Path, manifest: dict) -> Path:
    """Put a folder that `write_model` wrote at `path`, too; return it.

    manifest: what is known since then is added to the folder's own. Weights are linked where the
    disk can, so that they lie there once.
    """
    manifest = manifest | files.read_object(kept / adapters.MANIFEST)
    config = files.read_object(kept / "config.json")
    with _new(path) as new:
        new.mkdir()
        for file in kept.iterdir():
            if file.name in (CARD, adapters.MANIFEST):
                continue
            try:
                os.link(file, new / file.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, new / file.name)
        _describe(new, path.name, manifest, config.get("dtype") or config["torch_dtype"])
    return path


def _describe(new: Path, name: str, manifest: dict, dtype: str) -> None:
    """Write manifest and model card into a folder that will be called `name`."""
    files.write_json(new / adapters.MANIFEST, manifest)
    shown = manifest | {"settings": public(manifest.get("settings", {}))}
    shown["export"] = {"kind": "full", "dtype": dtype, "proof": manifest.get("proof", {})}
    local = local_place(manifest["base"]) is not None
    files.write_text(new / CARD, model_card.write(shown, name, local=local))


@contextmanager
def _new(path: Path):
    """Give a folder's temporary name; after the block it is in its place, or nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = files.beside(path, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        files.put_folder(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
