"""Saves an adapter, or a whole model, and proves that what lies on the disk is what was trained.

    save_policy(policy, "weights/final_rlm_lora", evaluation, run, overwrite=False, step=32)

The proof loads the folder afresh and compares it with the live model (rlm.export.proof).
"""

import filecmp
import logging
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rlm.errors import InputError
from rlm.evaluation.measure import told as measured
from rlm.export import proof, whole
from rlm.learner.sharding import sharded
from rlm.models import adapters
from rlm.models.adapters import network_of
from rlm.models.loading import load_base
from rlm.models.memory import free_bytes, out_of_memory
from rlm.models.policy import Policy, check_learned, open_policy

logger = logging.getLogger("rlm")


def save_policy(policy: Policy, path: str | Path, evaluation, run, *, overwrite: bool, **facts):
    """Save the adapter with its manifest in the run's folder, prove it, then save it at `path`.

    Where all weights were trained it is the whole model (rlm.export.whole).
    evaluation: of the validation, None of a training without one.
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
        what = "it" if policy.full else "the base"
        logger.warning("the start was the best, so %s is what is kept: %s", what, error)
    manifest = policy.origin() | facts | {"scores": {}}
    if evaluation:
        manifest["scores"] = {"validation": evaluation.summary}
        run.write_evaluation("validation", evaluation)
    if policy.full:
        kept = whole.write_model(policy, run.path / "model", manifest)
    else:
        kept = adapters.save_adapter(policy.model, run.path / "adapter", manifest, overwrite=True)
    manifest["proof"] = prove(policy, kept, facts.get("format", "think"), run.info)
    try:
        if policy.full:
            adapters.check_overwrite(path, manifest, overwrite=overwrite)
            saved = whole.put_model(kept, Path(path), manifest)
        else:
            saved = adapters.save_adapter(policy.model, path, manifest, overwrite=overwrite)
    except InputError as error:
        raise InputError(f"{error} (the new one is in {kept})") from None
    for file in kept.glob("*.safetensors"):
        if not filecmp.cmp(file, saved / file.name, shallow=False):
            raise InputError(
                f"{saved}: holds other weights than {kept}, which was proved; copy that"
            )
    told = "no validation"
    if evaluation:
        scored = evaluation.summary
        told = f"validation {measured(scored)} of {scored['questions']} questions"
    run.info(f"{'model' if policy.full else 'adapter'}: {saved}, {told}")
    return saved


def prove(policy: Policy, folder: Path, format_name: str, info) -> dict:
    """Return the metrics of a proof that `folder` holds what was trained; ProofError if not.

    The base is loaded afresh in the same format, with the adapter of the folder: logits and
    greedy answers of fixed prompts have to be those of the live model (rlm.export.proof). A base in
    4 bits, or one that does not fit into memory a second time (it is tried on a GPU), is spared
    that: then the tensors of the folder have to be the live ones, {"skipped": why} is returned,
    and `info` is told.
    """
    _check_tensors(policy, folder)
    network = network_of(policy.model)
    if getattr(network.config, "quantization_config", None):
        skipped = "the weights of the base are quantised"
    elif sharded(policy.model):
        skipped = "the base is spread over several processes"
    elif network.device.type != "cuda" and not _fits(network):
        skipped = "there is no memory for a second copy of the base"
    else:
        skipped = None
    looks = None if skipped else _looks(policy, folder, format_name)
    if looks is None:
        skipped = skipped or "the memory was not enough for a second copy of the base"
        info(f"proof: {folder} holds the trained tensors; logits not compared: {skipped}")
        return {"skipped": skipped}
    try:
        metrics = proof.compare(*looks, tolerance=proof.EXACT)
    except proof.ProofError as error:
        on = "" if policy.full else f" on {policy.base}"
        raise proof.ProofError(
            f"{folder}: loaded afresh{on} it is not the model that was trained: "
            f"{error}; see whether the base's files have changed, and train again"
        ) from None
    info(f"proof: {folder} loaded afresh, {proof.told(metrics)}")
    return metrics


def _looks(policy: Policy, folder: Path, format_name: str):
    """Return what the live model and one loaded afresh say; None if the memory was not enough."""
    questions = proof.prompts(policy.tokenizer, format_name)
    live = _look(policy, questions)
    if live is None:
        return None
    network = network_of(policy.model)
    place = {"device": network.device, "dtype": str(network.dtype).removeprefix("torch.")}
    with _aside(network):
        base = None if policy.full else policy.base
        again = _look(partial(open_policy, base, str(folder), **place), questions)
    return None if again is None else (live, again)


def _look(policy, questions):
    """Return what a policy, or the one that a function opens, says; None if out of memory.

    What was opened is gone when it returns, so that there is room for the live model again.
    """
    try:
        policy = policy() if callable(policy) else policy
        return proof.look(policy.model, policy.tokenizer, questions, max_tokens=proof.SHORT)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def _check_tensors(policy: Policy, folder: Path) -> None:
    """ProofError unless the folder's tensors are bit for bit those of the live adapter or model."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    if policy.full:
        live = dict(policy.model.named_parameters())
        other = _other_weights(policy, folder, live)
    else:
        live = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
        saved = load_file(folder / adapters.WEIGHTS)
        other = [n for n in live.keys() | saved.keys() if not _equal(live.get(n), saved.get(n))]
    if other:
        raise proof.ProofError(
            f"{folder}: {len(other)} of {len(live)} tensors are not those that were trained "
            f"({min(other)}); see whether they are finite and the disk is in order"
        )


def _other_weights(policy: Policy, folder: Path, live: dict) -> list[str]:
    """Return the names of weights that a whole model's folder has otherwise.

    One is read at a time; of families that write weights under other names all are loaded.
    """
    from safetensors import safe_open

    opened = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
    places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
    if places.keys() == live.keys():
        return [n for n, file in places.items() if not _equal(live[n], file.get_tensor(n))]
    dtype = str(policy.model.dtype).removeprefix("torch.")
    network, _ = load_base(str(folder), device="cpu", dtype=dtype)
    saved = dict(network.named_parameters())
    return [n for n in live.keys() | saved.keys() if not _equal(live.get(n), saved.get(n))]


def _equal(one, other) -> bool:
    return one is not None and other is not None and one.cpu().equal(other)


def _fits(network) -> bool:
    """Return whether the device has room for a second copy, its merged layers and some more."""
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
