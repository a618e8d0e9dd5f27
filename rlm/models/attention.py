"""One attention function for every model: a layout says which tokens see which.

The transformers model's own forward runs; only its attention is replaced, through
`transformers.AttentionInterface`. Inputs are flat, `input_ids` [1, N] with `position_ids`
[1, N]: no padding goes through the linear layers. A `layout` object travels through the
forward's keyword arguments and knows which of the N tokens see which keys: that of the engine is
rlm.engine.kv_cache, that of the learner rlm.learner.packed_groups.

It does not know about sampling, losses or adapters.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "rlm"

# cuDNN's attention, torch's first choice on Hopper and Blackwell, makes a plan for every new shape
# (46 ms on an H100), and each step of sampling and each bucket of the learner is a new one. Under a
# mask its gradients can be NaN (320 keys, scores of -120). The other kernels do neither.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Rules:
    """What a layer's attention does beside the causal softmax.

    window: a token sees keys less than so many tokens away. cap: scores become
    cap * tanh(scores / cap). sinks: [H] logits that stand in each softmax's denominator. source:
    the layer whose keys and values these are, for a layer that has none of its own.
    """

    window: int | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None
    source: int | None = None


PLAIN = Rules()


def layout_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, layout=None, **kwargs
):
    """Return (attention output [1, N, H, D], None) as the layout computes it.

    query [1, H, N, D], key and value [1, KV, N, D], after the rotary embedding.
    """
    if layout is None:
        raise ValueError("the 'rlm' attention needs a layout= keyword in the forward call")
    window = kwargs.get("sliding_window")
    if "sliding_window" not in kwargs:  # some families have it in their masks alone
        window = windows_of(module.config)[module.layer_idx]
    shared = getattr(module, "is_kv_shared_layer", False)
    source = source_of(module.config, module.layer_idx) if shared else None
    rules = Rules(window, kwargs.get("softcap"), kwargs.get("s_aux"), source)
    return layout.attend(module.layer_idx, query[0], key[0], value[0], scaling, rules), None


def source_of(config, layer: int) -> int:
    """Return the layer whose keys and values a layer takes: the last of its kind with its own."""
    kinds = config.layer_types
    own = range(config.num_hidden_layers - config.num_kv_shared_layers)
    return max(index for index in own if kinds[index] == kinds[layer])


def windows_of(config) -> list[int | None]:
    """Return the window of each layer in tokens, as a text model's configuration has it."""
    window = getattr(config, "sliding_window", None)
    used = window and getattr(config, "use_sliding_window", True) is not False
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if used and kind == "sliding_attention" else None for kind in kinds]


AttentionInterface.register(NAME, layout_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def use(model):
    """Run `model` with the layout attention inside the block, with its own before and after."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def softmax_attention(query, key, value, mask, scaling, rules: Rules):
    """Return the attention output [B, H, Q, D] under a mask and a layer's rules but its window.

    query [B, H, Q, D], key and value [B, KV, K, D]. mask: None for causal, or [.., Q, K], bool or
    added to the scores; it has the window in it. sinks of the rules: [H], or [KV, H / KV] where
    the heads of a group stand as positions.
    """
    if rules.cap:
        return _capped(query, key, value, mask, scaling, rules.cap)
    shared = query.shape[1] != key.shape[1]
    masked = mask is not None or rules.sinks is not None
    if shared and not takes_fewer_keys(query, masked=masked):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        shared = False
    options: dict = {"scale": scaling, "enable_gqa": shared}
    if rules.sinks is None:
        causal = mask is None
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, **options
        )
    # One more key, whose product with a query is its head's sink, and whose value is zero: in
    # further dimensions, since keys are shared by heads with other sinks. 8 keep kernels aligned.
    depth = query.shape[-1]
    options["scale"] = scale = depth**-0.5 if scaling is None else scaling
    sinks = rules.sinks.to(query.dtype)[..., None]  # [KV, G, 1] or [H, 1]
    sinks = sinks if sinks.dim() == 3 else sinks[..., None]
    query = torch.cat([query, F.pad((sinks / scale).expand(*query.shape[:-1], 1), (0, 7))], dim=-1)
    key, value = F.pad(key, (0, 8, 0, 1)), F.pad(value, (0, 8, 0, 1))
    key[..., -1, depth] = 1.0
    mask = causal_mask(query.shape[-2], query.device) if mask is None else mask
    free = mask.new_full((*mask.shape[:-1], 1), mask.dtype == torch.bool)  # True, or 0 is added
    mask = torch.cat([mask, free], dim=-1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    return out[..., :depth]


def takes_fewer_keys(query, *, masked: bool) -> bool:
    """Return whether fused attention takes fewer key heads than query heads.

    Elsewhere it would fall back to holding all scores, in float32.
    """
    device = query.device
    if device.type != "cuda":
        return device.type == "cpu"
    half = query.dtype in (torch.float16, torch.bfloat16)
    return not masked and half and torch.cuda.get_device_capability(device) >= (8, 0)


def causal_mask(size: int, device, window: int | None = None) -> torch.Tensor:
    """Return the bool mask [size, size] of a sequence that sees itself causally."""
    near = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    return near if window is None else near.triu(1 - window)


def _capped(query, key, value, mask, scaling, cap: float):
    """Return attention with capped scores, by explicit products: no fused kernel does it.

    With gradients the scores are made again in the backward and not kept.
    """

    def products(query, key, value):
        heads, shared = query.shape[1], key.shape[1]
        grouped = query.unflatten(1, (shared, heads // shared))  # [B, KV, G, Q, D]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = (grouped @ key[:, :, None].transpose(-1, -2)).float() * scale
        scores = cap * torch.tanh(scores / cap)
        seen = causal_mask(query.shape[-2], query.device) if mask is None else mask
        seen = seen[:, :, None] if seen.dim() == 4 else seen
        if seen.dtype == torch.bool:
            scores = scores.masked_fill(~seen, float("-inf"))
        else:
            scores = scores + seen
        return (scores.softmax(-1).to(value.dtype) @ value[:, :, None]).flatten(1, 2)

    if not torch.is_grad_enabled():
        return products(query, key, value)
    return checkpoint(products, query, key, value, use_reentrant=False, preserve_rng_state=False)
