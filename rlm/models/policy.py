"""The policy: a base model, its tokenizer and the LoRA that is trained or used.

It brings together what a script was given (a model, an adapter, both or neither) and what
the adapter's manifest knows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.errors import InputError
from rlm.models import adapters, loading


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
