"""Which class loads a checkpoint: a causal language model's own, or the text model of a wrapper.

Checkpoints for pictures and sound (Gemma 3 4B, Gemma 4, Qwen3.5, Mistral 3) hold a language model
inside. It is loaded alone, as the class that it has without the wrapper, so nothing of the rest
takes memory. All of this is known from the configuration, before weights are read.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rlm.models.adapters import ModelError, failed

# Names of a wrapper's weights -> those of its text model.
WRAPPED = {
    r"^language_model\.lm_head": "lm_head",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}
LIBRARIES = {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel"}


@dataclass(frozen=True)
class How:
    """How a checkpoint is loaded: kind is the class, more are options of its from_pretrained."""

    kind: Any
    more: dict
    wrapped: bool

    def load(self, place: str, **options):
        """Return the model. ValueError if a weight of a wrapped one is not there."""
        found = self.kind.from_pretrained(place, **self.more, **options, output_loading_info=True)
        model, report = found
        if self.wrapped and (missing := sorted(report["missing_keys"])):
            raise ValueError(f"the text model's {missing[0]} is not in it")
        if self.wrapped:  # it is saved under its own names: the wrapper's cannot be made again
            model._weight_conversions = None
        choose_attention(model)
        return model


def look(name: str, place: str, options: dict) -> How:
    """Return how a checkpoint is loaded. ModelError if it is no causal language model.

    options: trust_remote_code and local_files_only. Also for a format that needs a library which
    is not installed.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
    )

    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(failed(name, "its configuration cannot be read", error)) from error
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    library = LIBRARIES.get(str(method))
    if library and find_spec(library) is None:
        raise ModelError(
            f"{name}: its weights are in the format {method}, and {library} is not installed; "
            "install it, or give the model's plain weights"
        )
    text = config.get_text_config()
    masked = type(text) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(text, "is_decoder", False)
    if config.is_encoder_decoder or masked or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{name}: a model of the kind {config.model_type}, which writes no text by itself; "
            "give a causal language model"
        )
    if text is config:
        return How(AutoModelForCausalLM, {}, wrapped=False)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    for key in ("quantization_config", "_name_or_path"):
        if getattr(config, key, None):
            setattr(text, key, getattr(config, key))
    return How(kind, {"config": text, "key_mapping": WRAPPED}, wrapped=True)


def choose_attention(model) -> None:
    """Let a model with capped scores run the one implementation that caps them."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def is_wrapper(config: dict) -> bool:
    """Return whether a config.json is that of a wrapper around a text model."""
    return isinstance(config.get("text_config"), dict)
