"""The policy: a base model, its tokenizer and the LoRA that is trained or used, or all its weights.

It brings together what a script was given (a model, an adapter, both or neither) and what
the adapter's manifest knows.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.errors import InputError
from rlm.models import adapters, loading
from rlm.models.lookup import is_whole, same_model
from rlm.models.templates import set_template

logger = logging.getLogger("rlm")


@dataclass(frozen=True)
class Policy:
    """model: a PeftModel, or the plain base. base: where its base was loaded from.

    manifest: of the adapter or the whole model that it came from, {} if none. full: all weights
    learn, so that what comes out is a whole model.
    """

    model: Any
    tokenizer: Any
    base: str
    manifest: dict
    full: bool = False

    def origin(self) -> dict:
        """Return base and base_fingerprint, as a manifest of what is trained from here names them.

        Of a whole model that came from another one it is the first of them.
        """
        if self.full and self.manifest.get("train") == "full":
            names = ("base", "base_fingerprint", "base_file")
            return {name: self.manifest[name] for name in names if name in self.manifest}
        return {"base": self.base, "base_fingerprint": adapters.fingerprint(self.model)}


def open_policy(
    model: str | None,
    adapter: str | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    lora: dict | None = None,
    full: bool = False,
    template: dict | None = None,
) -> Policy:
    """Return the policy for a base model's name, an adapter's folder, or both.

    model: None takes the base that the adapter's manifest names. adapter: a whole model that was
    trained here stands on no base; then it is loaded in place of it.
    lora: of `rlm.models.loading.add_lora`; given, the policy is trainable, and without an adapter
        to go on from it gets that LoRA.
    full: all weights are trainable (`rlm.models.whole.learn_all`); there is no LoRA.
    template: what chat templates are rendered with, of `rlm.models.templates.set_template`.
    InputError if neither is given, or if they do not belong together.
    """
    manifest = adapters.read_manifest(adapter) if adapter else {}
    whole = bool(adapter) and is_whole(str(adapter))
    if whole:
        model, adapter = str(adapter), None
    if adapter:
        adapters.check_kind(adapter)
    base = model or manifest.get("base")
    if not base:
        raise InputError("no model was given: use --model NAME, or an --adapter with a manifest")
    network, tokenizer = loading.load_base(base, device=device, dtype=dtype, quantize=quantize)
    if full and adapter:
        raise InputError(f"{adapter}: a LoRA, of which --train full has none; merge it by "
                         "`python -m rlm.export merged`, or use --train lora")  # fmt: skip
    if full:
        from rlm.models.whole import learn_all

        network = learn_all(network)
    elif adapter:
        tokenizer = own_tokenizer(adapter, tokenizer, network)
        network = adapters.load_adapter(network, adapter, trainable=lora is not None)
    elif lora is not None:
        network = loading.add_lora(network, **lora)
    set_template(tokenizer, **(template or {}))
    return Policy(network, tokenizer, base, manifest, full)


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
    """InputError, before any training, if `path` holds what may not be replaced.

    An adapter does not replace the whole model that it stands on, with `overwrite` neither.
    """
    if not policy.full and is_whole(str(path)) and same_model(str(path), policy.base):
        raise InputError(f"{path}: holds the base that the adapter stands on; give another folder "
                         "by --output")  # fmt: skip
    adapters.check_overwrite(path, policy.origin() | facts, overwrite=overwrite)


def check_learned(model) -> None:
    """InputError if the adapter changes nothing, a LoRA whose B are all zero, or no weight learned.

    A fresh LoRA is like that, and one optimiser step with a gradient and a rate above zero ends
    it. Call it on what the last step left, before a better, earlier adapter is put back.
    """
    from rlm.models.whole import unchanged

    if unchanged(model):
        raise InputError(
            "nothing was learned: no weight of the model is another than at the start; raise the "
            "learning rate or the steps, or see in log.csv whether all rewards were equal"
        )
    learned = [n for n, _ in model.named_parameters() if "lora_" in n or "modules_to_save" in n]
    other = [n for n in learned if "lora_A" not in n and "lora_B" not in n]
    ups = [p for n, p in model.named_parameters() if "lora_B" in n]
    if ups and not other and not any(bool(p.any()) for p in ups):
        raise InputError(
            "nothing was learned: B of the LoRA is zero everywhere, so the model is its base; "
            "raise the learning rate or the steps, or see in log.csv whether all rewards were equal"
        )
