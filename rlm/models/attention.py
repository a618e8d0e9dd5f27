"""One attention function for every model, and the layout of packed groups.

The transformers model's own forward runs; only its attention is replaced, through
`transformers.AttentionInterface`. Inputs are flat, `input_ids` [1, N] with `position_ids`
[1, N]: no padding goes through the linear layers. A `layout` object travels through the
forward's keyword arguments and knows which of the N tokens see which keys: here that of the
learner, in rlm.engine.kv_cache that of the engine.

It does not know about sampling, losses or adapters.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rlm.models.states import State, joined

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
    options: dict = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
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


# --- packed groups: the learner's batch

# Devices whose attention takes fewer key heads than query heads together with a mask. Elsewhere
# it would fall back to holding all scores, so keys and values are repeated instead.
GROUPED_HEADS_ON = ("cpu",)


class PackedGroups:
    """Attention where completions share one prompt: [prompt ; own tokens so far] for each.

    The flat row holds the prompts, one after the other, then the completions' inputs. Prompt
    tokens see their own prompt causally; a completion's see its prompt and themselves causally.
    prompts: tokens of each prompt. completions: (index of its prompt, tokens) of each completion
    in the order of the row, 1 token at least, the longest first.

    Padding exists inside the attention only, and there in buckets of completions of like length.
    """

    def __init__(self, prompts: list[int], completions: list[tuple[int, int]], device="cpu"):
        lengths = torch.tensor(prompts)
        self.prompt_tokens, self.shape = sum(prompts), (len(prompts), max(prompts))
        self._masks: dict[int, list] = {}  # by window: of the prompts, then of each bucket
        self.windows: dict[int, int | None] = {}  # of each layer, as its attention was called
        self.slots = _filled(lengths, max(prompts)).to(device)
        self.buckets = []
        for rows in like_lengths([tokens for _, tokens in completions]):
            owners = torch.tensor([owner for owner, _ in completions[rows]])
            inputs = torch.tensor([tokens for _, tokens in completions[rows]])
            longest = int(inputs[0])
            # [rows, 1, C, P + C]: keys right of the prompt's end are padding, own keys causal.
            seen = torch.arange(max(prompts)) < lengths[owners][:, None]  # [rows, P]
            causal = torch.ones(longest, longest, dtype=torch.bool).tril()
            seen, causal = seen[:, None].expand(-1, longest, -1), causal.expand(len(owners), -1, -1)
            mask = torch.cat([seen, causal], dim=2)[:, None]
            place = [x.to(device) for x in (owners, _filled(inputs, longest), mask)]
            self.buckets.append((int(inputs.sum()), longest, *place))
        self._lengths, self._longest = lengths.to(device), max(prompts)

    def attend(self, layer, query, key, value, scaling, rules: Rules = PLAIN):
        """Return [1, N, H, D]. query [H, N, D], key and value [KV, N, D]."""
        self.windows[layer] = rules.window
        if query.device.type not in GROUPED_HEADS_ON:
            key, value = (x.repeat_interleave(len(query) // len(x), 0) for x in (key, value))
        # On a CPU the backward in bfloat16 takes up to three times as long as in float32.
        kind = query.dtype
        kind = torch.promote_types(kind, torch.float32) if query.device.type == "cpu" else kind
        flat = [x.transpose(0, 1).to(kind) for x in (query, key, value)]  # [N, heads, D]
        n = self.prompt_tokens
        prompt = [_pad(x[:n], self.slots, *self.shape) for x in flat]
        # Prompts are padded on the right: what is causal never sees the padding.
        first, *masks = self._near(rules.window)
        out = softmax_attention(prompt[0], prompt[1], prompt[2], first, scaling, rules)
        outs = [_unpad(out, self.slots)]
        for (tokens, longest, owners, slots, _), mask in zip(self.buckets, masks, strict=True):
            q, k, v = (_pad(x[n : n + tokens], slots, len(owners), longest) for x in flat)
            k = torch.cat([prompt[1].index_select(0, owners), k], dim=2)  # [rows, KV, P + C, D]
            v = torch.cat([prompt[2].index_select(0, owners), v], dim=2)
            out = softmax_attention(q, k, v, mask, scaling, rules)
            outs.append(_unpad(out, slots))
            n += tokens
        return torch.cat(outs)[None].to(query.dtype)

    def mix(self, layer, run, hidden):
        """Return the output [N, H] of a layer with states; see rlm.models.states.

        A prompt's state is made once; its completions begin from it, and the gradient of theirs
        goes through it into the prompt.
        """
        outs, found, start = [], [], 0
        for length in self._lengths.tolist():
            found.append(State())
            outs.append(run(hidden[None, start : start + length], found[-1])[0])
            start += length
        prompts = joined(found)
        for tokens, longest, owners, slots, _ in self.buckets:
            flat = hidden[start : start + tokens]
            rows = flat.new_zeros(len(owners) * longest, flat.shape[1]).index_copy(0, slots, flat)
            rows = rows.view(len(owners), longest, -1)
            # A single token would be taken for a step of decoding, which writes in place.
            rows = F.pad(rows, (0, 0, 0, 1)) if longest == 1 else rows
            out = run(rows, prompts.select(owners))[:, :longest]
            outs.append(out.flatten(0, 1).index_select(0, slots))
            start += tokens
        return torch.cat(outs)

    def _near(self, window: int | None) -> list:
        """Return the masks of the prompts (None: causal) and of each bucket under a window."""
        whole = [None, *(bucket[-1] for bucket in self.buckets)]
        most = self._longest + max((longest for _, longest, *_ in self.buckets), default=0)
        if window is None or window >= most:
            return whole
        if window not in self._masks:
            device, longest = self.slots.device, self._longest
            masks = [causal_mask(longest, device, window) if window < longest else None]
            for _, own, owners, _, mask in self.buckets:
                begin = self._lengths[owners][:, None]  # [rows, 1]
                steps = torch.arange(own, device=device)
                prompt = torch.arange(longest, device=device).expand(len(owners), -1)
                keys = torch.cat([prompt, begin + steps], dim=1)  # positions [rows, P + C]
                far = (begin + steps)[:, :, None] - keys[:, None] >= window  # [rows, C, P + C]
                masks.append(mask & ~far[:, None])
            self._masks[window] = masks
        return self._masks[window]


def like_lengths(lengths: list[int]) -> list[slice]:
    """Return slices of descending lengths: the longest of each at most twice its shortest."""
    buckets, start = [], 0
    for index, length in enumerate(lengths):
        if 2 * length < lengths[start]:
            buckets.append(slice(start, index))
            start = index
    return [*buckets, slice(start, len(lengths))] if lengths else []


def _filled(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """Return the indices of the filled places of a padded [len(lengths), longest], flattened."""
    return (torch.arange(longest) < lengths[:, None]).reshape(-1).nonzero()[:, 0]


def _pad(x: torch.Tensor, slots: torch.Tensor, rows: int, longest: int) -> torch.Tensor:
    """Return [rows, heads, longest, D], zero where nothing stands; x [tokens, heads, D]."""
    padded = x.new_zeros(rows * longest, *x.shape[1:]).index_copy(0, slots, x)
    return padded.view(rows, longest, *x.shape[1:]).transpose(1, 2)


def _unpad(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return [tokens, heads, D]; x [rows, heads, longest, D]."""
    return x.transpose(1, 2).flatten(0, 1).index_select(0, slots)
