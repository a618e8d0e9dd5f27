"""One attention function for every model, and the layout of packed groups.

The transformers model's own forward runs; only its attention is replaced, through
`transformers.AttentionInterface`. Inputs are flat, `input_ids` [1, N] with `position_ids`
[1, N]: no padding goes through the linear layers. A `layout` object travels through the
forward's keyword arguments and knows which of the N tokens see which keys: here that of the
learner, in rlm.engine.kv_cache that of the engine.

It does not know about sampling, losses or adapters.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "rlm"


def layout_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, layout=None, **kwargs
):
    """Return (attention output [1, N, H, D], None) as the layout computes it.

    query [1, H, N, D], key and value [1, KV, N, D], after the rotary embedding.
    """
    if layout is None:
        raise ValueError("the 'rlm' attention needs a layout= keyword in the forward call")
    if extra := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(
            f"the model's attention has {extra[0]} ({type(module).__name__}), which is not "
            "supported; use a model with plain softmax attention"
        )
    return layout.attend(module.layer_idx, query[0], key[0], value[0], scaling), None


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
        self.slots = _filled(lengths, max(prompts)).to(device)
        self.buckets = []
        for rows in _buckets([tokens for _, tokens in completions]):
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

    def attend(self, layer, query, key, value, scaling):
        """Return [1, N, H, D]. query [H, N, D], key and value [KV, N, D]; `layer` is not used."""
        if query.device.type not in GROUPED_HEADS_ON:
            key, value = (x.repeat_interleave(len(query) // len(x), 0) for x in (key, value))
        # On a CPU the backward in bfloat16 takes up to three times as long as in float32.
        kind = query.dtype
        kind = torch.promote_types(kind, torch.float32) if query.device.type == "cpu" else kind
        flat = [x.transpose(0, 1).to(kind) for x in (query, key, value)]  # [N, heads, D]
        n = self.prompt_tokens
        prompt = [_pad(x[:n], self.slots, *self.shape) for x in flat]
        # Prompts are padded on the right: what is causal never sees the padding.
        options: dict = {"scale": scaling, "enable_gqa": len(query) != len(key)}
        out = F.scaled_dot_product_attention(*prompt, is_causal=True, **options)
        outs = [_unpad(out, self.slots)]
        for tokens, longest, owners, slots, mask in self.buckets:
            q, k, v = (_pad(x[n : n + tokens], slots, len(owners), longest) for x in flat)
            k = torch.cat([prompt[1].index_select(0, owners), k], dim=2)  # [rows, KV, P + C, D]
            v = torch.cat([prompt[2].index_select(0, owners), v], dim=2)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
            outs.append(_unpad(out, slots))
            n += tokens
        return torch.cat(outs)[None].to(query.dtype)


def _buckets(lengths: list[int]) -> list[slice]:
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
