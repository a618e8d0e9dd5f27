"""An adapter merged into its base: one model, proved, and rounded with a measured bound.

    manifest = write_merged(adapter, base, folder, dtype="bfloat16", device="cpu")

What is written beside the weights is copied from the base's own folder (rlm.export.folders).
"""

import json
from collections.abc import Callable
from pathlib import Path

from rlm import files
from rlm.errors import InputError
from rlm.export.folders import base_folder, copy_from_base, copy_tokenizer, public
from rlm.models import adapters
from rlm.models.lookup import gguf_of, local_place

ALONE = ("merged", "gguf")  # kinds that need no base beside them


def write_merged(source: Path, base: str, new: Path, dtype: str, device: str) -> dict:
    """Write the folder of a merged model and prove it; return its manifest. ProofError if not.

    One model is in memory at a time: the live one is looked at, merged, saved and freed before
    the folder is loaded. Both are compared in float32, so that what is left is the rounding of
    the weights. How far that may move a logit is measured (`round_weights`).
    """
    import torch

    from rlm.export import proof
    from rlm.models.loading import load_base
    from rlm.models.policy import open_policy
    from rlm.run.folder import start

    start(base, log_level="warning", threads=0, seed=0)
    # 1. The model with its adapter, and what it says.
    policy = open_policy(base, str(source), device=device, dtype="float32")
    if getattr(policy.model.get_base_model().config, "quantization_config", None):
        raise InputError(f"--model {base}: its weights are quantised; use the kind adapter")
    form = policy.manifest.get("format", "think")
    questions = proof.prompts(policy.tokenizer, form)
    ends = policy.model.generation_config.eos_token_id, policy.tokenizer.eos_token_id
    live = proof.look(policy.model, policy.tokenizer, questions, max_tokens=proof.LONG)
    try:
        # 2. Merged, rounded and saved.
        network, tolerance = policy.model.merge_and_unload(), proof.REORDERED
        if dtype == "bfloat16":
            looked = policy.tokenizer, questions, live
            tolerance = max(tolerance, round_weights(network, *looked, to_bfloat16))
            network.to(torch.bfloat16)  # what is saved beside the weights
        network.save_pretrained(new)
        if gguf_of(base):  # it has no such files; what was read from it is written
            policy.tokenizer.save_pretrained(new)
        copy_from_base(new if gguf_of(base) else base_folder(base), new, dtype, ends)
        copy_tokenizer(source, new)
        del network, policy

        # 3. Loaded afresh, it is the same model.
        network, tokenizer = load_base(str(new), device=device, dtype="float32")
        if proof.prompts(tokenizer, form) != questions:
            raise proof.ProofError("its tokenizer makes other tokens of the same questions")
        again = proof.look(network, tokenizer, questions, max_tokens=proof.LONG)
        exact = dtype == "float32"
        found = proof.compare(live, again, tolerance=tolerance, same_answers=exact)
    except proof.ProofError as error:
        raise proof.ProofError(
            f"the merged model is not the model with the adapter {source}: {error}; "
            "nothing was written; use --dtype float32, or the kind adapter"
        ) from None
    return write_manifest(source, base, new, {"kind": "merged", "dtype": dtype, "proof": found})


def to_bfloat16(name: str, weight):
    import torch

    return weight.to(torch.bfloat16)


def round_weights(network, tokenizer, questions, live, near: Callable) -> float:
    """Round the merged network in place; return how far that may move a logit.

    near: (name, weight) -> the rounded weight. Before, the network has to be the live model:
    ProofError if not, or a wrong merge would pass for rounding. The bound is measured with the
    mirrored errors, w - (rounded - w): just as large, and to first order they move each logit as
    far the other way. Twice the largest difference leaves room for what is not of first order.
    """
    import torch

    from rlm.export import proof

    exact = proof.look(network, tokenizer, questions, max_tokens=1)
    proof.compare(live.first(), exact, tolerance=proof.REORDERED)
    weights = list(network.named_parameters())
    with torch.no_grad():
        rounded = [near(name, weight) for name, weight in weights]
        for (_, weight), found in zip(weights, rounded, strict=True):
            weight.mul_(2).sub_(found)
        mirrored = proof.look(network, tokenizer, questions, max_tokens=1)
        for (_, weight), found in zip(weights, rounded, strict=True):
            weight.data = found
    return 2 * proof.difference(exact, mirrored)


def write_manifest(source: Path | None, base: str, new: Path, export: dict) -> dict:
    """Write what is known of the model to the folder's manifest.json and return it.

    source: the adapter that it was made of; None for the base alone.
    """
    known = adapters.read_manifest(source) if source else {}
    settings = public(known.get("settings", {}))
    # An adapter is found with its base by that name; of a merged model it would only tell a path.
    named = Path(base).name if export["kind"] in ALONE and local_place(base) else base
    manifest = known | {"base": named, "settings": settings, "export": export}
    return json.loads(files.write_json(new / "manifest.json", manifest).read_text("utf-8"))
