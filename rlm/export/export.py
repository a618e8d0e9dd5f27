"""Takes a trained model out of here: merged into one model, or as an adapter for its base.

    python -m rlm.export merged  --adapter weights/final_rlm_lora --output exported/my_model
    python -m rlm.export merged  --adapter ... --output ... --dtype float32 --device cpu
    python -m rlm.export adapter --adapter weights/final_rlm_lora --output exported/my_adapter

A merged folder loads with plain transformers and needs nothing of this repository; before it is
put in place it is loaded afresh and has to be the model with its adapter (rlm.export.proof).
Merging takes float32, 4 bytes a parameter, whatever the base's format. An adapter is copied byte
for byte.
"""

import argparse
import json
import shutil
from pathlib import Path

from rlm import files
from rlm.errors import InputError
from rlm.export import model_card
from rlm.export.folders import base_folder, copy_from_base, copy_tokenizer, public
from rlm.models import adapters
from rlm.models.lookup import (
    adapter_base,
    check_adapter,
    folder_of,
    gguf_of,
    is_whole,
    local_place,
)

DTYPES = ("bfloat16", "float32")


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    source = folder_of(given.adapter) or Path(given.adapter)
    check_adapter(str(source), f"--adapter {given.adapter}", given.model)
    if is_whole(str(source)):
        raise InputError(
            f"--adapter {given.adapter}: a whole model, of which nothing is left to merge or to "
            "take off its base; copy the folder as it is: transformers and vLLM load it"
        )
    base = given.model or adapters.read_manifest(source)["base"] or adapter_base(str(source))
    if not base:
        raise InputError(f"--adapter {given.adapter}: does not name its base; use --model BASE")
    output = Path(given.output).expanduser().resolve()
    check_output(output, [source, local_place(base)], overwrite=given.overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        new = files.beside(output, "new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            if given.kind == "merged":
                metrics = write_merged(source, base, new, given.dtype, given.device)
            else:
                metrics = write_adapter(source, base, new)
            card = model_card.write(metrics, output.name, local=local_place(base) is not None)
            files.write_text(new / "README.md", card)
            files.put_folder(new, output)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error})") from None
    print(f"{given.kind}: {output}{model_card.summary(metrics)}")
    return 0


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
        ("adapter", "a PEFT adapter with a model card"),
    ):
        sub = kinds.add_parser(kind, help=text, description=text)
        sub.add_argument("--adapter", default="weights/final_rlm_lora", help="default %(default)s")
        sub.add_argument("--output", required=True, help="folder to write")
        sub.add_argument("--model", help="the base; default: the one that the adapter names")
        sub.add_argument("--overwrite", action="store_true", help="replace an earlier export")
        if kind == "merged":
            sub.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights")
            sub.add_argument("--device", default="auto", help="where it is merged: cuda, cpu, ...")
    return parser


def check_output(output: Path, sources: list[Path | None], *, overwrite: bool) -> None:
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
    return _manifest(source, base, new, {"kind": "adapter", "lora": lora})


def write_merged(source: Path, base: str, new: Path, dtype: str, device: str) -> dict:
    """Write the folder of a merged model and prove it; return its manifest. ProofError if not.

    One model is in memory at a time: the live one is looked at, merged, saved and freed before
    the folder is loaded. Both are compared in float32, so that what is left is the rounding of
    the weights. How far that may move a logit is measured (`_round`).
    """
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
            tolerance = max(tolerance, _round(network, policy.tokenizer, questions, live))
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
    return _manifest(source, base, new, {"kind": "merged", "dtype": dtype, "proof": found})


def _round(network, tokenizer, questions, live) -> float:
    """Round the merged network to bfloat16 in place; return how far that may move a logit.

    Before, it has to be the live model: ProofError if not, or a wrong merge would pass for
    rounding. The bound is measured with the mirrored errors, w - (rounded - w): just as large,
    and to first order they move each logit as far the other way. Twice the largest difference
    leaves room for what is not of first order.
    """
    import torch

    from rlm.export import proof

    exact = proof.look(network, tokenizer, questions, max_tokens=1)
    proof.compare(live.first(), exact, tolerance=proof.REORDERED)
    weights = list(network.parameters())
    with torch.no_grad():
        rounded = [weight.to(torch.bfloat16) for weight in weights]
        for weight, near in zip(weights, rounded, strict=True):
            weight.mul_(2).sub_(near)
        mirrored = proof.look(network, tokenizer, questions, max_tokens=1)
        for weight, near in zip(weights, rounded, strict=True):
            weight.data = near
    network.to(torch.bfloat16)  # what is saved beside the weights
    return 2 * proof.difference(exact, mirrored)


def _manifest(source: Path, base: str, new: Path, export: dict) -> dict:
    """Write what is known of the model to the folder's manifest.json and return it."""
    known = adapters.read_manifest(source)
    settings = public(known.get("settings", {}))
    # An adapter is found with its base by that name; of a merged model it would only tell a path.
    named = Path(base).name if export["kind"] == "merged" and local_place(base) else base
    manifest = known | {"base": named, "settings": settings, "export": export}
    return json.loads(files.write_json(new / "manifest.json", manifest).read_text("utf-8"))
