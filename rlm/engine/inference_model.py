"""The model as the engine runs it: a second tree of modules over the same tensors.

The tree has its own configuration (the layout attention) and is in evaluation mode, so that
nothing has to be put back on the model itself, not even after an interruption. In float32 each
linear layer with a LoRA is replaced by a plain one with the merged weights: a copy of that
layer alone, every other tensor is shared. Experts with a LoRA are merged in every format, since
the learner's forward merges them, too: where memory has room for that copy, else at each step.
Of other layers nothing is merged in bfloat16 and float16, since the rounding would make the sampler
another policy than the learner: the layer goes in one piece, as in the learner, with A and B
rounded once and not at every token. Adapters of other kinds than a plain LoRA run as peft runs
them. On a CPU weights are packed where that is faster (rlm.models.matmul), which takes a copy of
them: of those that are not merged only while memory is ample.
"""

import copy
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from torch import nn

from rlm.models import attention, rms_norm, rotary, states
from rlm.models.adapters import network_of
from rlm.models.lora_linear import LoraLinear, SharedDown, add_loras, plain_lora, whole_lora
from rlm.models.matmul import DenseLinear, PackedLinear, lacking, packable
from rlm.models.memory import free_bytes
from rlm.models.states import Holder

# Layers of one module that are given the same input one after the other.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
AMPLE = 4  # times what packed weights take that has to be free


class InferenceModel:
    """Keeps the tree of a transformers or PEFT model; `sync` takes over its weights."""

    def __init__(self, model):
        self._source = network_of(model)
        self._holder, self._sines = Holder(), rotary.Sines()
        self._merged: dict[str, torch.Tensor] = {}
        self._packed: dict[str, tuple[tuple, PackedLinear]] = {}
        linears = [m for m in self._source.modules() if isinstance(m, nn.Linear)]
        size = sum(m.weight.nbytes for m in linears if packable(m.weight))
        self._ample = 0 < AMPLE * size < free_bytes("cpu")
        self.sync()

    def sync(self) -> None:
        """Take over adapters, devices and dtypes as they are now."""
        configs: dict = {}
        self._kept: list[nn.Module] = []
        self.network = self._twin(self._source, "", configs)
        self.network.set_attn_implementation(attention.NAME)
        for config in (self.network.config, self.network.config.get_text_config()):
            if getattr(config, "output_router_logits", False):  # as a trainer may have left it
                config.output_router_logits = False
        self.__dict__.pop("addresses", None)
        self._fills = any(isinstance(m, PackedLinear) for m in self.network.modules())

    @property
    def device(self) -> torch.device:
        return self.network.get_input_embeddings().weight.device

    def lacking(self, tokens: int) -> int:
        """Return how many tokens of filler make a forward faster: one filling for all layers."""
        return lacking(tokens) if self._fills else 0

    def logits(self, flat: torch.Tensor, keep, layout) -> torch.Tensor:
        """Return the logits [n, V] of the places `keep`, 0 for all. flat [2, N]: ids, positions."""
        self._holder.layout = layout
        with ExitStack() as stack:
            for layer in self._kept:
                stack.enter_context(evaluating(layer))
            return self.network(
                input_ids=flat[:1],
                position_ids=flat[1:],
                # Four dimensions pass for a ready mask: nothing is computed, nobody reads it.
                attention_mask=torch.zeros(1, 1, 1, 1, device=flat.device),
                use_cache=False,
                logits_to_keep=keep,
                layout=layout,
            ).logits[0]

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Return where the weights lie: what was captured for them holds as long as they stay."""
        weights = list(self.network.parameters())
        low = [m for m in self.network.modules() if isinstance(m, LoraLinear)]
        weights += [x for module in low for x in (module.down, module.up)]
        return tuple(weight.data_ptr() for weight in weights)

    def _twin(self, module: nn.Module, name: str, configs: dict) -> nn.Module:
        """Return a module like `module` that shares its tensors, with twins for children."""
        if plain_lora(module):
            merged = module.base_layer.weight.dtype == torch.float32
            return self._merge(module, name) if merged else self._rounded(module, name)
        if type(module) is nn.Linear:
            return self._plain(module, name)
        if whole_lora(module) and self._has_room(module, name):
            return self._whole(module, name, configs)
        if hasattr(module, "adapter_layer_names"):  # another kind of peft's layers: as it is
            self._kept.append(module)
            return module
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
        for names in SIBLINGS:
            self._share([twin._modules.get(key) for key in names], f"{name}.{names[0]}")
        if states.cache_name(module):
            states.install(twin, self._holder)
        elif rms_norm.serves(module):
            rms_norm.install(twin)
        elif rotary.serves(module):
            rotary.install(twin, self._sines)
        return twin

    @torch.no_grad()
    def _merge(self, layer, name: str) -> nn.Module:
        """Return a plain linear layer with weights W + sum of scaling * B A."""
        base, adapters = layer.base_layer, _active(layer)
        if not adapters:
            return self._plain(base, name)
        packs = packable(base.weight)  # then what is merged is needed for a moment only
        weight = base.weight.clone() if packs else self._copy(name, base.weight, base.weight)
        add_loras(weight, layer, adapters)
        return (PackedLinear if packs else DenseLinear)(weight, base.bias)

    def _has_room(self, layer, name: str) -> bool:
        """Return whether the merged weights of experts are there, or take half of what is free."""
        if any(key.startswith(f"{name}.") for key in self._merged):
            return True
        size = sum(weight.nbytes for weight in layer.get_base_layer().parameters())
        return 2 * size < free_bytes(layer.get_param().device)

    @torch.no_grad()
    def _whole(self, layer, name: str, configs: dict) -> nn.Module:
        """Return a twin of experts or a router whose weights are merged as peft's forward does."""
        base = layer.get_base_layer()
        twin = self._twin(base, name, configs)
        weights = dict(base._parameters)
        while layer is not base:  # a wrapper for each weight, one around the other
            key, adapters = layer.parameter_name, _active(layer)
            if len(adapters) == 1 and layer.num_experts > 1:
                left, right, scaling = layer.get_delta_factors(adapters[0])
                merged = torch.baddbmm(weights[key], left, right, alpha=scaling)
            else:
                merged = weights[key] + sum(layer.get_delta_weight(one) for one in adapters)
            if adapters:
                copied = self._copy(f"{name}.{key}", merged, merged)
                weights[key] = nn.Parameter(copied, requires_grad=False)
            layer = layer.base_layer
        twin.__dict__["_parameters"] = weights
        return twin

    def _plain(self, layer: nn.Linear, name: str) -> nn.Module:
        """Return a layer of the same weights, packed where that is faster: once, as they stay."""
        weight, bias = layer.weight, layer.bias
        if "forward" in layer.__dict__:
            return layer
        if not self._ample or not packable(weight):
            return DenseLinear(weight, bias)
        key = (weight.data_ptr(), weight._version, None if bias is None else bias.data_ptr())
        found = self._packed.get(name)
        if found is None or found[0] != key:
            found = self._packed[name] = key, PackedLinear(weight, bias)
        return found[1]

    @torch.no_grad()
    def _rounded(self, layer, name: str) -> nn.Module:
        """Return a layer of the same weights whose A and B are in the base's own format."""
        base, adapters = layer.base_layer, _active(layer)
        if not adapters:
            return self._plain(base, name)
        down = torch.cat([layer.lora_A[key].weight for key in adapters])
        up = torch.cat([layer.lora_B[key].weight * layer.scaling[key] for key in adapters], 1)
        down, up = (self._copy(f"{name}.{x}", y, base.weight) for x, y in (("A", down), ("B", up)))
        return LoraLinear(self._plain(base, name), down, up)

    def _share(self, layers: list[nn.Module | None], name: str) -> None:
        """Let layers that are given the same input make what their LoRAs share once, on CUDA."""
        alike = [layer for layer in layers if isinstance(layer, LoraLinear) and layer.down.is_cuda]
        if len(alike) > 1 and len({layer.down.shape[1] for layer in alike}) == 1:
            down = torch.cat([layer.down for layer in alike])
            SharedDown(alike, self._copy(f"{name}.shared", down, down))

    def _copy(self, name: str, source: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return a copy of `source` in the format of `like`, at the same address every time."""
        copy = self._merged.get(name)
        if copy is None or copy.device != like.device or copy.dtype != like.dtype:
            copy = self._merged[name] = torch.empty_like(source, dtype=like.dtype)
        return copy.copy_(source)


def _active(layer) -> list[str]:
    names = [] if layer.disable_adapters or layer.merged else layer.active_adapters
    return [key for key in names if key in layer.lora_A]


@contextmanager
def evaluating(model):
    """Inside the block the model is in evaluation mode; after it each module is as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield model
    finally:
        for module in training:
            module.training = True


def obstacle(network) -> str:
    """Return what a model's attention is known to have that the layouts cannot do, "" if nothing.

    What is not known is found out by rlm.engine.support.
    """
    config = network.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    others = kinds - {"full_attention", "sliding_attention"}
    if others and not states.mixers(network):
        return f"layers of the kind {', '.join(sorted(others))}"
    known = {id(child) for mixer in states.mixers(network) for child in mixer.children()}
    if any(isinstance(m, nn.Conv1d) and id(m) not in known for m in network.modules()):
        return "a convolution along the sequence whose state is in no cache"
    if _rope_type(config) == "dynamic":
        return "a rotary embedding that changes with the longest sequence in the batch"
    return ""


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


def stop_ids(network, tokenizer) -> frozenset[int]:
    """Return the ids that end a completion: the generation config's and the tokenizer's eos."""
    given = getattr(network.generation_config, "eos_token_id", None)
    given = given if isinstance(given, list | tuple) else [given]
    return frozenset(id for id in (*given, tokenizer.eos_token_id) if id is not None)
