"""An adapter merged into its base once at load, for serving and asking: a third fewer products.

In float32 the engine merges by itself, exactly. In bfloat16 and float16 a merged weight is rounded,
and a change that is smaller than the weight's last bit is lost. So what is merged is looked at: it
has to be nearer to the model with its adapter than the base is, by a factor, or the adapter stays
beside the weights. Training and its rollouts never merge in these formats.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from rlm.export import proof
from rlm.models.lora_linear import add_loras, plain_lora
from rlm.models.policy import Policy

logger = logging.getLogger("rlm")

PROMPTS = 4
KEPT = 0.1  # of what the adapter does to the logits, in the mean square, may be off at most
APART = "--unmerged keeps it beside the weights"


def merged_at_load(policy: Policy, format_name: str, again: Callable[[], Policy]) -> Policy:
    """Return the policy with its adapter in the weights, or as it is where that cannot be.

    again: opens the same policy once more, where the merged one is not the same model. The model
    of `policy` is changed in place; memory for one layer in float32 is needed beside it.
    """
    why = obstacle(policy.model)
    if why is not None:
        if why:
            logger.info("the adapter stays beside the weights: %s", why)
        return policy
    questions = proof.prompts(policy.tokenizer, format_name)[:PROMPTS]

    def look(model) -> torch.Tensor:
        return proof.look(model, policy.tokenizer, questions, max_tokens=1).logits

    live = look(policy.model)
    with policy.model.disable_adapter():
        base = look(policy.model)
    network = merge(policy.model)
    found = look(network)
    gap, effect = _spread(found - live), _spread(base - live)
    told = f"logits differ by {gap:.3g} in the mean, and the adapter moves them by {effect:.3g}"
    if not gap <= KEPT * effect:  # written so that NaN fails
        logger.warning(
            "the adapter stays beside the weights: rounded to %s, the merged model is another one "
            "(%s); --dtype float32 merges it exactly",
            str(network.dtype).removeprefix("torch."), told,
        )  # fmt: skip
        return again()
    logger.info("the adapter is merged into the weights (%s); %s", told, APART)
    return replace(policy, model=network)


def obstacle(model) -> str | None:
    """Return why a model's adapter is not merged, None if it can be.

    "" where nothing is to be said: without an adapter, or in float32, where the engine does it.
    """
    if not hasattr(model, "get_base_model"):
        return ""
    network = model.get_base_model()
    if network.dtype not in (torch.bfloat16, torch.float16):
        return ""
    if getattr(network.config, "quantization_config", None):
        return "the base's weights are quantised"
    if any(_tuned(module) and not plain_lora(module) for module in network.modules()):
        return "it is more than a plain LoRA on linear layers"
    return None


def _tuned(module) -> bool:
    """Return whether a module is one of peft's own."""
    return hasattr(module, "adapter_layer_names") or hasattr(module, "modules_to_save")


@torch.no_grad()
def merge(model):
    """Return the network of a PeftModel with W + scaling * B A in its layers, added in float32."""
    for module in model.get_base_model().modules():
        if plain_lora(module):
            weight = module.base_layer.weight
            exact = weight.float()
            add_loras(exact, module, module.active_adapters)
            weight.copy_(exact)
    return model.unload()


def _spread(difference: torch.Tensor) -> float:
    """Return the root of the mean square."""
    return float(difference.float().pow(2).mean().sqrt())
