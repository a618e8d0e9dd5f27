"""The policy: a base model, its tokenizer and the LoRA that is trained or used.

It brings together what a script was given (a model, an adapter, both or neither) and what
the adapter's manifest knows.
"""

import filecmp
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.errors import InputError
from rlm.models import adapters, loading

logger = logging.getLogger("rlm")


@dataclass(frozen=True)
class Policy:
    """model: a PeftModel, or the plain base. manifest: of the adapter it came from, {} if none."""

    model: Any
    tokenizer: Any
    base: str
    manifest: dict


def open_policy(
    model: str | None,
    adapter: str | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    lora: dict | None = None,
) -> Policy:
    """Return the policy for a base model's name, an adapter's folder, or both.

    model: None takes the base that the adapter's manifest names.
    lora: r, alpha and seed of a fresh LoRA; given, the policy is trainable, and without an
        adapter to go on from it gets that LoRA.
    InputError if neither is given, or if they do not belong together.
    """
    manifest = adapters.read_manifest(adapter) if adapter else {}
    base = model or manifest.get("base")
    if not base:
        raise InputError("no model was given: use --model NAME, or an --adapter with a manifest")
    network, tokenizer = loading.load_base(base, device=device, dtype=dtype, quantize=quantize)
    if adapter:
        network = adapters.load_adapter(network, adapter, trainable=lora is not None)
    elif lora is not None:
        network = loading.add_lora(network, **lora)
    return Policy(network, tokenizer, base, manifest)


def check_output(policy: Policy, path: str | Path, *, overwrite: bool, **facts) -> None:
    """InputError, before any training, if `path` holds what may not be replaced."""
    here = {"base": policy.base, "base_fingerprint": adapters.fingerprint(policy.model)}
    adapters.check_overwrite(path, here | facts, overwrite=overwrite)


def check_learned(model) -> None:
    """InputError if the adapter changes nothing: a LoRA whose B are all zero.

    A fresh LoRA is like that, and one optimiser step with a gradient and a rate above zero ends
    it. Call it on what the last step left, before a better, earlier adapter is put back.
    """
    learned = [n for n, _ in model.named_parameters() if "lora_" in n or "modules_to_save" in n]
    other = [n for n in learned if "lora_A" not in n and "lora_B" not in n]
    ups = [p for n, p in model.named_parameters() if "lora_B" in n]
    if ups and not other and not any(bool(p.any()) for p in ups):
        raise InputError(
            "nothing was learned: B of the LoRA is zero everywhere, so the model is its base; "
            "raise the learning rate or the steps, or see in log.csv whether all rewards were equal"
        )


def save_policy(policy: Policy, path: str | Path, evaluation, run, *, overwrite: bool, **facts):
    """Save the adapter with its manifest in the run's folder, prove it, then save it at `path`.

    facts: what the manifest says beside the base and the validation scores. A better adapter
    at `path` stays: then InputError says so, and the new one is in the run's folder. So it stays
    if the proof fails (`prove`), or if nothing was learned (`check_learned`). With step=0 among
    the facts that is a warning: the best of a run was its start, which is what was asked to be
    kept; the folder is there for the next stage, and is as good as the base alone.
    """
    try:
        check_learned(policy.model)
    except InputError as error:
        if facts.get("step") != 0:
            raise
        logger.warning("the start was the best, so the base is what is kept: %s", error)
    manifest = {"base": policy.base, **facts, "scores": {"validation": evaluation.summary}}
    run.write_evaluation("validation", evaluation)
    kept = adapters.save_adapter(policy.model, run.path / "adapter", manifest, overwrite=True)
    manifest["proof"] = prove(policy, kept, facts.get("format", "think"), run.say)
    try:
        saved = adapters.save_adapter(policy.model, path, manifest, overwrite=overwrite)
    except InputError as error:
        raise InputError(f"{error} (the new one is in {kept})") from None
    if not filecmp.cmp(kept / adapters.WEIGHTS, saved / adapters.WEIGHTS, shallow=False):
        raise InputError(f"{saved}: holds other weights than {kept}, which was proved; copy that")
    run.say(
        f"adapter: {saved}, validation accuracy {evaluation.summary['accuracy']:.3f} "
        f"of {evaluation.summary['questions']} questions"
    )
    return saved


def prove(policy: Policy, folder: Path, format_name: str, say) -> dict:
    """Return the figures of a proof that `folder` holds what was trained; ProofError if not.

    The base is loaded afresh in the same format, with the adapter of the folder: logits and
    greedy answers of fixed prompts have to be those of the live model (rlm.export.proof). A base in
    4 bits, or one that does not fit into memory a second time, is spared that: then the tensors of
    the folder have to be the live ones, {"skipped": why} is returned, and `say` is told.
    """
    from rlm.export import proof
    from rlm.learner.sharding import sharded

    _check_tensors(policy.model, folder)
    network = policy.model.get_base_model()
    if getattr(network.config, "quantization_config", None):
        skipped = "the weights of the base are quantised"
    elif sharded(policy.model):
        skipped = "the base is spread over several processes"
    elif network.device.type != "cuda" and not _fits(network):
        skipped = "there is no memory for a second copy of the base"
    else:
        skipped = None
    if skipped:
        say(f"proof: {folder} holds the trained tensors; logits not compared: {skipped}")
        return {"skipped": skipped}
    questions = proof.prompts(policy.tokenizer, format_name)
    place = {"device": network.device, "dtype": str(network.dtype).removeprefix("torch.")}
    live = proof.look(policy.model, policy.tokenizer, questions, max_tokens=proof.SHORT)
    with _aside(network):
        fresh = open_policy(policy.base, str(folder), **place)
        again = proof.look(fresh.model, fresh.tokenizer, questions, max_tokens=proof.SHORT)
        del fresh
    try:
        figures = proof.compare(live, again, tolerance=proof.EXACT)
    except proof.ProofError as error:
        raise proof.ProofError(
            f"{folder}: loaded afresh on {policy.base} it is not the model that was trained: "
            f"{error}; see whether the base's files have changed, and train again"
        ) from None
    say(f"proof: {folder} loaded afresh, {proof.told(figures)}")
    return figures


def _check_tensors(model, folder: Path) -> None:
    """ProofError unless the folder's tensors are bit for bit those of the live adapter."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    from rlm.export.proof import ProofError

    live = get_peft_model_state_dict(model, save_embedding_layers=False)
    saved = load_file(folder / adapters.WEIGHTS)
    other = [n for n in live.keys() | saved.keys() if not _equal(live.get(n), saved.get(n))]
    if other:
        raise ProofError(
            f"{folder}: {len(other)} of {len(live)} tensors are not those that were trained "
            f"({min(other)}); see whether they are finite and the disk is in order"
        )


def _equal(one, other) -> bool:
    return one is not None and other is not None and one.cpu().equal(other)


def _fits(network) -> bool:
    """Return whether the device has room for a second copy, its merged layers and some more."""
    from rlm.models.memory import free_bytes

    size = sum(p.numel() * p.element_size() for p in network.parameters())
    return free_bytes(network.device) > 2.2 * size


@contextmanager
def _aside(network):
    """Inside the block a model that leaves too little room on its GPU is in the CPU's memory."""
    import torch

    device, moved = network.device, network.device.type == "cuda" and not _fits(network)
    try:
        if moved:
            network.to("cpu")
            torch.cuda.empty_cache()
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if moved:
            network.to(device)
