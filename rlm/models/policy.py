"""The policy: a base model, its tokenizer and the LoRA that is trained or used.

It brings together what a script was given (a model, an adapter, both or neither) and what
the adapter's manifest knows.
"""

import logging
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
    lora: of `rlm.models.loading.add_lora`; given, the policy is trainable, and without an adapter
        to go on from it gets that LoRA.
    InputError if neither is given, or if they do not belong together.
    """
    manifest = adapters.read_manifest(adapter) if adapter else {}
    if adapter:
        adapters.check_kind(adapter)
    base = model or manifest.get("base")
    if not base:
        raise InputError("no model was given: use --model NAME, or an --adapter with a manifest")
    network, tokenizer = loading.load_base(base, device=device, dtype=dtype, quantize=quantize)
    if adapter:
        tokenizer = own_tokenizer(adapter, tokenizer, network)
        network = adapters.load_adapter(network, adapter, trainable=lora is not None)
    elif lora is not None:
        network = loading.add_lora(network, **lora)
    return Policy(network, tokenizer, base, manifest)


def own_tokenizer(adapter: str | Path, tokenizer, network):
    """Return the tokenizer that lies in an adapter's folder, or the base's if there is none.

    One that was trained with tokens or a chat template of its own would answer otherwise without.
    InputError if it knows tokens that the base has no embedding for.
    """
    folder = Path(adapter)
    template = folder / "chat_template.jinja"
    if not (folder / "tokenizer_config.json").is_file():
        if template.is_file():
            tokenizer.chat_template = template.read_text(encoding="utf-8")
            logger.info("%s: its own chat template is used", adapter)
        return tokenizer
    own = loading.read_tokenizer(str(folder))
    rows = network.get_input_embeddings().num_embeddings
    if len(own) > rows:
        raise InputError(
            f"{adapter}: its tokenizer has {len(own)} tokens and the base has embeddings for "
            f"{rows}; take the tokenizer out of the folder, or give the base that it was trained on"
        )
    if not own.chat_template:
        own.chat_template = tokenizer.chat_template
    logger.info("%s: its own tokenizer and chat template are used", adapter)
    return own


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
