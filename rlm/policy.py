"""The policy: a base model, its tokenizer and the LoRA that is trained or used.

It brings together what a script was given (a model, an adapter, both or neither) and what
the adapter's manifest knows.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from rlm import adapters, models
from rlm.errors import InputError

logger = logging.getLogger("rlm")


@dataclass(frozen=True)
class Policy:
    """model: a PeftModel, or the plain base. manifest: of the adapter it came from, {} if none."""

    model: object
    tokenizer: object
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
    network, tokenizer = models.load_base(base, device=device, dtype=dtype, quantize=quantize)
    if adapter:
        network = adapters.load_adapter(network, adapter, trainable=lora is not None)
    elif lora is not None:
        network = models.add_lora(network, **lora)
    return Policy(network, tokenizer, base, manifest)


def check_output(policy: Policy, path: str | Path, *, overwrite: bool, **facts) -> None:
    """InputError, before any training, if `path` holds what may not be replaced."""
    here = {"base": policy.base, "base_fingerprint": adapters.fingerprint(policy.model)}
    adapters.check_overwrite(path, here | facts, overwrite=overwrite)


def save_policy(policy: Policy, path: str | Path, evaluation, run, *, overwrite: bool, **facts):
    """Save the adapter with its manifest in the run's folder, then at `path`, and log both.

    facts: what the manifest says beside the base and the validation scores. A better adapter
    at `path` stays: then InputError says so, and the new one is in the run's folder.
    """
    manifest = {"base": policy.base, **facts, "scores": {"validation": evaluation.summary}}
    run.write_evaluation("validation", evaluation)
    kept = adapters.save_adapter(policy.model, run.path / "adapter", manifest, overwrite=True)
    try:
        saved = adapters.save_adapter(policy.model, path, manifest, overwrite=overwrite)
    except InputError as error:
        raise InputError(f"{error} (the new one is in {kept})") from None
    run.say(
        f"adapter: {saved}, validation accuracy {evaluation.summary['accuracy']:.3f} "
        f"of {evaluation.summary['questions']} questions"
    )
    return saved
