"""One attention function for every model, and the layouts it serves.

The transformers model's own forward runs; only its attention is replaced, through
`transformers.AttentionInterface`. Inputs are flat, `input_ids` [1, N] with `position_ids`
[1, N]: no padding goes through the linear layers. A `layout` object travels through the
forward's keyword arguments and knows which of the N tokens see which keys.

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
        kind = torch.float32 if query.device.type == "cpu" else query.dtype
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


# --- slots: the engine's cache


class Prefix:
    """The cached keys and values of one prompt: per layer ([KV, P, D], [KV, P, D])."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], length: int):
        self.layers = layers
        self.length = length


class Slots:
    """Layout of the engine: a cache with one row per running sequence, each of its own length.

    The N flat tokens of a forward are the next token of rows 0..n-1, then whole prompts one
    after the other. Keys and values of a layer are [rows, KV, T, D] tensors; rows and T grow.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Drop the cache and give its memory back."""
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.bias = torch.zeros(0, 1, 1, 0)  # [rows, 1, 1, T]: 0 where cached, -inf elsewhere
        self._prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, positions: torch.Tensor, width: int, prompts: list[int]) -> None:
        """Prepare one forward.

        positions: [n] where each row's token is cached. width: the highest of them + 1.
        prompts: the lengths of the prompts that follow.
        """
        self._rows = len(positions)
        self._prompts = {}
        if self._rows:
            self._width = width
            capacity = self.bias.shape[-1]
            heads = next(iter(self.keys.values())).shape[1]
            rows = torch.arange(self._rows, device=positions.device)
            self.bias.view(-1).index_fill_(0, rows * capacity + positions, 0.0)
            # Where the new keys go in the flattened [rows * KV * T], [n * KV].
            row_heads = torch.arange(self._rows * heads, device=positions.device).view(-1, heads)
            self._places = (row_heads * capacity + positions[:, None]).view(-1)
        self._lengths = prompts
        if prompts:
            longest = max(prompts)
            starts = range(0, longest * len(prompts), longest)
            places = [s + i for s, p in zip(starts, prompts, strict=True) for i in range(p)]
            self._padded = torch.tensor(places, device=positions.device)

    def attend(self, layer, query, key, value, scaling):
        """Return the attention output [1, N, H, D]: query [H, N, D], key and value [KV, N, D]."""
        n = self._rows
        if not self._lengths:
            return self._decode(layer, query, key, value, scaling)[None]
        new = self._prefill(layer, query[:, n:], key[:, n:], value[:, n:], scaling)
        old = [self._decode(layer, query[:, :n], key[:, :n], value[:, :n], scaling)] if n else []
        return torch.cat([*old, new])[None]

    def _decode(self, layer, query, key, value, scaling):
        n, width = self._rows, self._width
        keys, values = self.keys[layer], self.values[layer]
        for cached, new in ((keys, key), (values, value)):
            flat = new.transpose(0, 1).reshape(-1, new.shape[2])  # [n * KV, D]
            cached.view(-1, new.shape[2]).index_copy_(0, self._places, flat)
        heads, kv = query.shape[0], key.shape[0]
        # The query heads that share a key head stand as if they were positions: no repeated keys.
        grouped = query.transpose(0, 1).reshape(n, kv, heads // kv, -1)
        out = F.scaled_dot_product_attention(
            grouped,
            keys[:n, :, :width],
            values[:n, :, :width],
            attn_mask=self.bias[:n, :, :, :width],
            scale=scaling,
        )
        return out.reshape(n, heads, -1)  # [n, H, D]

    def _prefill(self, layer, query, key, value, scaling):
        prompts, longest = len(self._lengths), max(self._lengths)

        def pad(flat):  # [H, N, D] -> [prompts, H, P, D], zeros on the right
            heads, _, depth = flat.shape
            padded = flat.new_zeros(prompts * longest, heads, depth)
            padded.index_copy_(0, self._padded, flat.transpose(0, 1))
            return padded.view(prompts, longest, heads, depth).transpose(1, 2)

        keys, values = pad(key), pad(value)
        self._prompts[layer] = keys, values
        out = F.scaled_dot_product_attention(
            pad(query),
            keys,
            values,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        flat = out.transpose(1, 2).reshape(prompts * longest, query.shape[0], -1)
        return flat.index_select(0, self._padded)  # [N, H, D]

    def prefixes(self, layers: int) -> list[Prefix]:
        """Return the prompts of the last forward. ValueError if not every layer came by here."""
        if len(self._prompts) != layers:
            raise ValueError(
                f"only {len(self._prompts)} of the model's {layers} layers use an attention that "
                "can be replaced; use a model whose layers are all plain attention"
            )
        taken = [self._prompts[layer] for layer in sorted(self._prompts)]
        return [
            Prefix([(keys[i, :, :length], values[i, :, :length]) for keys, values in taken], length)
            for i, length in enumerate(self._lengths)
        ]

    def store(self, start: int, count: int, prefix: Prefix) -> None:
        """Put the prompt's cache into rows start..start+count-1."""
        rows = slice(start, start + count)
        for layer, (keys, values) in enumerate(prefix.layers):
            self.keys[layer][rows, :, : prefix.length] = keys
            self.values[layer][rows, :, : prefix.length] = values
        self.bias[rows, :, :, : prefix.length] = 0.0
        self.bias[rows, :, :, prefix.length :] = float("-inf")

    def addresses(self) -> tuple[int, ...]:
        """Return where the cache lies."""
        return tuple(x.data_ptr() for x in (self.bias, *self.keys.values(), *self.values.values()))

    @property
    def capacity(self) -> tuple[int, int]:
        """Return (rows, tokens of a row) that there is room for."""
        return self.bias.shape[0], self.bias.shape[-1]

    def resize(self, rows: int, tokens: int, like: Prefix | None) -> None:
        """Make room for `rows` rows of `tokens` tokens; what is cached in both sizes stays.

        like: tells shapes and dtype for the first time.
        """
        has_rows, has_tokens = self.capacity
        old_rows, old_tokens = min(rows, has_rows), min(tokens, has_tokens)
        if not self.keys:
            assert like is not None, "an empty cache cannot know its shape"
            for layer, (key, value) in enumerate(like.layers):
                self.keys[layer] = key.new_empty(0, key.shape[0], 0, key.shape[2])
                self.values[layer] = value.new_empty(0, value.shape[0], 0, value.shape[2])
            self.bias = self.bias.to(like.layers[0][0])
        # Zeros, since what no row has written yet is multiplied by 0, and 0 * NaN is NaN.
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = old.new_zeros(rows, old.shape[1], tokens, old.shape[3])
                new[:old_rows, :, :old_tokens] = old[:old_rows, :, :old_tokens]
                store[layer] = new
        bias = self.bias.new_full((rows, 1, 1, tokens), float("-inf"))
        bias[:old_rows, :, :, :old_tokens] = self.bias[:old_rows, :, :, :old_tokens]
        self.bias = bias

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Copy the first `width` cached tokens of each source row over its target row."""
        device = self.bias.device
        source, target = (torch.tensor(rows, device=device) for rows in (sources, targets))
        for store in (self.keys, self.values):
            for cached in store.values():
                cached[target, :, :width] = cached[source, :, :width]
        self.bias[target] = self.bias[source]
