"""The model as the engine runs it: a second tree of modules over the same tensors.

The tree has its own configuration (the layout attention) and is in evaluation mode, so that
nothing has to be put back on the model itself, not even after an interruption. In float32 each
linear layer with a LoRA is replaced by a plain one with the merged weights: a copy of that
layer alone, every other tensor is shared. In bfloat16 and float16 nothing is merged, since the
rounding would make the sampler another policy than the learner.
"""

import copy

import torch
from torch import nn

from rlm import attention
from rlm.errors import InputError


class RolloutModel:
    """Keeps the tree of a transformers or PEFT model; `sync` takes over its weights."""

    def __init__(self, model):
        self._source = model.get_base_model() if hasattr(model, "get_base_model") else model
        check(self._source)
        self._merged: dict[str, torch.Tensor] = {}
        self.sync()

    def sync(self) -> None:
        """Take over adapters, devices and dtypes as they are now."""
        configs: dict = {}
        self.network = self._twin(self._source, "", configs)
        self.network.set_attn_implementation(attention.NAME)

    def _twin(self, module: nn.Module, name: str, configs: dict) -> nn.Module:
        """Return a module like `module` that shares its tensors, with twins for children."""
        if _is_plain_lora(module):
            return self._merge(module, name)
        twin = module.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin.__dict__.pop("forward", None)  # a wrapper around the original's own forward
        twin.__dict__["training"] = False
        if "config" in module.__dict__:
            # One memo for all: configurations that were one object stay one object.
            twin.__dict__["config"] = copy.deepcopy(module.config, configs)
        twin.__dict__["_modules"] = {
            key: None if child is None else self._twin(child, f"{name}.{key}", configs)
            for key, child in module._modules.items()
        }
        return twin

    @torch.no_grad()
    def _merge(self, layer, name: str) -> nn.Linear:
        """Return a plain linear layer with weights W + sum of scaling * B A."""
        base = layer.base_layer
        names = [] if layer.disable_adapters or layer.merged else layer.active_adapters
        adapters = [key for key in names if key in layer.lora_A]
        twin = nn.Linear(1, 1, bias=False, device="meta")
        twin.in_features, twin.out_features = base.in_features, base.out_features
        twin.weight, twin.bias = base.weight, base.bias
        if adapters:
            weight = self._merged.get(name)
            if weight is None or weight.device != base.weight.device:
                weight = self._merged[name] = torch.empty_like(base.weight)
            weight.copy_(base.weight)
            for key in adapters:
                up, down = layer.lora_B[key].weight, layer.lora_A[key].weight
                weight.addmm_(up, down, alpha=layer.scaling[key])
            twin.weight = nn.Parameter(weight, requires_grad=False)
        return twin.eval()


def _is_plain_lora(module: nn.Module) -> bool:
    """Return True for a float32 linear layer with LoRAs that are nothing but scaling * B A."""
    if not hasattr(module, "lora_A"):
        return False
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
        return False
    plain = not module.fan_in_fan_out and not module.lora_variant
    return (
        plain
        and not any(module.lora_bias.values())
        and module.base_layer.weight.dtype == torch.float32
    )


def check(network) -> None:
    """InputError if the model's attention is more than the layouts can do."""
    config, name = network.config.get_text_config(), type(network).__name__
    context = getattr(config, "max_position_embeddings", None)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds and window and getattr(config, "use_sliding_window", True):
        kinds = {"sliding_attention"}
    problem = None
    if getattr(config, "attn_logit_softcapping", None):
        problem = f"attention logits capped at {config.attn_logit_softcapping}"
    elif any(key.endswith(".sinks") for key, _ in network.named_parameters()):
        problem = "attention sinks"
    elif "sliding_attention" in kinds and window and context and window < context:
        problem = f"a sliding window of {window} tokens, shorter than its context of {context}"
    elif others := kinds - {"full_attention", "sliding_attention"}:
        problem = f"layers of the kind {', '.join(sorted(others))}"
    elif _rope_type(config) == "dynamic":
        problem = "a rotary embedding that changes with the longest sequence in the batch"
    if problem:
        raise InputError(f"{name} has {problem}, which is not supported; use a model without")


def context_tokens(network) -> int | None:
    """Return how many tokens prompt and completion may have together; None if not limited."""
    config = network.config.get_text_config()
    if _rope_type(config) == "longrope":
        # Beyond this length the embedding of all earlier tokens would change.
        return config.rope_parameters["original_max_position_embeddings"]
    return getattr(config, "max_position_embeddings", None)


def _rope_type(config) -> str | None:
    parameters = getattr(config, "rope_parameters", None)
    return parameters.get("rope_type") if isinstance(parameters, dict) else None
