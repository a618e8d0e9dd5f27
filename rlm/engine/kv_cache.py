"""The engine's cache: a row for each running sequence, and the attention over it.

A layout of `rlm.models.attention`: it travels through the model's forward as `layout=`. It does not
know about sampling or requests.
"""

from dataclasses import replace

import torch

from rlm.models.attention import PLAIN, Rules, causal_mask, softmax_attention
from rlm.models.states import State


class Prefix:
    """What is cached of one prompt, by layer: layers: keys and values ([KV, P, D], [KV, P, D]).

    A layer that takes another's has none. states: of layers that carry one, of a single row.
    """

    def __init__(self, layers: dict, length: int, states: dict | None = None):
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = layers
        self.length = length
        self.states: dict[int, State] = states or {}

    @property
    def kind(self) -> torch.Tensor:
        """A tensor of the format and the place that the bias of the attention has to have."""
        for keys, _ in self.layers.values():
            return keys
        return next(tensor for state in self.states.values() for _, _, tensor in state.tensors())


class KVCache:
    """Layout of the engine: a cache with one row per running sequence, each of its own length.

    The N flat tokens of a forward are the next token of rows 0..n-1, then whole prompts one
    after the other, then filler that nobody reads. Keys and values of a layer are [rows, KV, T, D]
    tensors; rows and T grow.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Drop the cache and give its memory back."""
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.bias = torch.zeros(0, 1, 1, 0)  # [rows, 1, 1, T]: 0 where cached, -inf elsewhere
        self._prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.states: dict[int, State] = {}  # of all rows, by layer
        self._prompt_states: dict[int, list[State]] = {}
        self.windows: dict[int, int | None] = {}  # of each layer, as its attention was called

    def begin(self, positions: torch.Tensor, width: int, prompts: list[int]) -> None:
        """Prepare one forward.

        positions: [n] where each row's token is cached. width: the highest of them + 1.
        prompts: the lengths of the prompts that follow.
        """
        self._rows = len(positions)
        self._prompts, self._prompt_states = {}, {}
        if self._rows:
            self._width = width
            self._positions = positions
            self._places: dict[int, torch.Tensor] = {}
            self._near: dict[int, torch.Tensor] = {}
            rows = torch.arange(self._rows, device=positions.device)
            self.bias.view(-1).index_fill_(0, rows * self.bias.shape[-1] + positions, 0.0)
        self._lengths = prompts
        if prompts:
            longest = max(prompts)
            starts = range(0, longest * len(prompts), longest)
            places = [s + i for s, p in zip(starts, prompts, strict=True) for i in range(p)]
            self._padded = torch.tensor(places, device=positions.device)

    def attend(self, layer, query, key, value, scaling, rules: Rules = PLAIN):
        """Return the attention output [1, N, H, D]: query [H, N, D], key and value [KV, N, D]."""
        self.windows[layer] = rules.window
        heads, tokens, depth = query.shape
        n, end = self._rows, self._rows + sum(self._lengths)
        parts = []
        if n:
            own = query[:, :n], key[:, :n], value[:, :n]
            parts.append(self._decode(layer, *own, scaling, rules))
        if end > n:
            new = slice(n, end)
            own = query[:, new], key[:, new], value[:, new]
            parts.append(self._prefill(layer, *own, scaling, rules))
        if tokens > end:
            parts.append(query.new_zeros(tokens - end, heads, depth))
        return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None]

    def mix(self, layer, run, hidden):
        """Return the output [N, H] of a layer with states; see rlm.models.states."""
        parts, start = [], self._rows
        if start:
            every = self.states[layer]
            conv, recurrent = (
                {number: tensor[:start] for number, tensor in store.items()}
                for store in (every.conv_states, every.recurrent_states)
            )
            parts.append(run(hidden[:start, None], State(conv, recurrent, in_place=True))[:, 0])
        for length in self._lengths:
            state = State()
            parts.append(run(hidden[None, start : start + length], state)[0])
            self._prompt_states.setdefault(layer, []).append(state)
            start += length
        if len(hidden) > start:
            parts.append(hidden.new_zeros(len(hidden) - start, hidden.shape[1]))
        return torch.cat(parts)

    def _decode(self, layer, query, key, value, scaling, rules):
        n, width = self._rows, self._width
        stored = layer if rules.source is None else rules.source
        keys, values = self.keys[stored], self.values[stored]
        new = () if stored != layer else ((keys, key), (values, value))
        for cached, own in new:
            flat = own.transpose(0, 1).reshape(-1, own.shape[2])  # [n * KV, D]
            cached.view(-1, own.shape[2]).index_copy_(0, self._places_of(key.shape[0]), flat)
        heads, kv = query.shape[0], key.shape[0]
        # The query heads that share a key head stand as if they were positions: no repeated keys.
        grouped = query.transpose(0, 1).reshape(n, kv, heads // kv, -1)
        if rules.sinks is not None:
            rules = replace(rules, sinks=rules.sinks.view(kv, -1))
        cached = keys[:n, :, :width], values[:n, :, :width]
        out = softmax_attention(grouped, *cached, self._bias(rules.window), scaling, rules)
        return out.reshape(n, heads, -1)  # [n, H, D]

    def _places_of(self, heads: int) -> torch.Tensor:
        """Return where new keys go in the flattened [rows * KV * T], [n * KV]."""
        if heads not in self._places:
            device, capacity = self._positions.device, self.bias.shape[-1]
            row_heads = torch.arange(self._rows * heads, device=device).view(-1, heads)
            self._places[heads] = (row_heads * capacity + self._positions[:, None]).view(-1)
        return self._places[heads]

    def _bias(self, window: int | None) -> torch.Tensor:
        """Return what is added to the scores [n, 1, 1, W]: -inf for what a row does not see."""
        bias = self.bias[: self._rows, :, :, : self._width]
        if window is None or window >= self._width:
            return bias
        if window not in self._near:
            places = torch.arange(self._width, device=bias.device)
            far = self._positions[:, None] - places >= window  # [n, W]
            self._near[window] = bias.masked_fill(far[:, None, None], float("-inf"))
        return self._near[window]

    def _prefill(self, layer, query, key, value, scaling, rules):
        prompts, longest = len(self._lengths), max(self._lengths)

        def pad(flat):  # [H, N, D] -> [prompts, H, P, D], zeros on the right
            heads, _, depth = flat.shape
            padded = flat.new_zeros(prompts * longest, heads, depth)
            padded.index_copy_(0, self._padded, flat.transpose(0, 1))
            return padded.view(prompts, longest, heads, depth).transpose(1, 2)

        if rules.source is None:
            self._prompts[layer] = pad(key), pad(value)
        keys, values = self._prompts[layer if rules.source is None else rules.source]
        near = rules.window is not None and rules.window < longest
        mask = causal_mask(longest, query.device, rules.window) if near else None
        out = softmax_attention(pad(query), keys, values, mask, scaling, rules)
        flat = out.transpose(1, 2).reshape(prompts * longest, query.shape[0], -1)
        return flat.index_select(0, self._padded)  # [N, H, D]

    def prefixes(self) -> list[Prefix]:
        """Return the prompts of the last forward. ValueError if no layer came by here."""
        if not self._prompts and not self._prompt_states:
            raise ValueError("none of its layers uses an attention that can be replaced")
        found = []
        for i, length in enumerate(self._lengths):
            kept = {
                layer: (keys[i, :, :length], values[i, :, :length])
                for layer, (keys, values) in self._prompts.items()
            }
            states = {layer: made[i] for layer, made in self._prompt_states.items()}
            found.append(Prefix(kept, length, states))
        return found

    def store(self, start: int, count: int, prefix: Prefix) -> None:
        """Put the prompt's cache into rows start..start+count-1."""
        rows = slice(start, start + count)
        for layer, (keys, values) in prefix.layers.items():
            self.keys[layer][rows, :, : prefix.length] = keys
            self.values[layer][rows, :, : prefix.length] = values
        for layer, state in prefix.states.items():
            every = self.states[layer].tensors()
            for (_, _, tensor), (_, _, own) in zip(every, state.tensors(), strict=True):
                tensor[rows] = own
        self.bias[rows, :, :, : prefix.length] = 0.0
        self.bias[rows, :, :, prefix.length :] = float("-inf")

    def addresses(self) -> tuple[int, ...]:
        """Return where the cache lies."""
        states = [tensor for state in self.states.values() for _, _, tensor in state.tensors()]
        kept = (self.bias, *self.keys.values(), *self.values.values(), *states)
        return tuple(x.data_ptr() for x in kept)

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
        if not self.keys and not self.states:
            assert like is not None, "an empty cache cannot know its shape"
            for layer, state in like.states.items():
                self.states[layer] = state.select(
                    torch.tensor([], dtype=torch.long, device=like.kind.device)
                )
            for layer, (key, value) in like.layers.items():
                self.keys[layer] = key.new_empty(0, key.shape[0], 0, key.shape[2])
                self.values[layer] = value.new_empty(0, value.shape[0], 0, value.shape[2])
            self.bias = self.bias.to(like.kind)
        # Zeros, since what no row has written yet is multiplied by 0, and 0 * NaN is NaN.
        for store in (self.keys, self.values):
            for layer, old in store.items():
                new = old.new_zeros(rows, old.shape[1], tokens, old.shape[3])
                new[:old_rows, :, :old_tokens] = old[:old_rows, :, :old_tokens]
                store[layer] = new
        for state in self.states.values():
            for store, number, old in list(state.tensors()):
                store[number] = old.new_zeros(rows, *old.shape[1:])
                store[number][:old_rows] = old[:old_rows]
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
        for state in self.states.values():
            for _, _, tensor in state.tensors():
                tensor[target] = tensor[source]
        self.bias[target] = self.bias[source]
