"""The engine's cache: a row for each running sequence, and the attention over it.

A layout of `rlm.models.attention`: it travels through the model's forward as `layout=`. It does not
know about sampling or requests.
"""

from dataclasses import replace

import torch

from rlm.models.attention import PLAIN, Rules, causal_mask, softmax_attention
from rlm.models.states import State

Place = tuple[int, int]  # a layer's keys (layer, 0) or values (layer, 1)


class Prefix:
    """What is cached of one prompt.

    blocks: keys and values, [E, KV, P, D] for what the cache has in one tensor. places: which they
    are. A layer that takes another's has none. states: by layer, of a single row.
    """

    def __init__(self, places: list[list[Place]], blocks: list, length: int, states: dict):
        self.places, self.blocks, self.length = places, blocks, length
        self.states: dict[int, State] = states

    @property
    def kind(self) -> torch.Tensor:
        """A tensor of the format and the place that the bias of the attention has to have."""
        if self.blocks:
            return self.blocks[0]
        return next(tensor for state in self.states.values() for _, _, tensor in state.tensors())


class More:
    """The tokens of a forward that rows have before their last ones, e in all.

    rows, positions: [e] whose they are and where they are cached; places: the same in the flattened
    bias. owners: rows that have some. padded: [e] where they stand in [owners, longest], flattened.
    """

    def __init__(self, more, tokens: int, device):
        self.count = sum(count for _, _, count in more)
        self.longest = max(count for _, _, count in more)
        rows = [row for row, _, count in more for _ in range(count)]
        positions = [begin + i for _, begin, count in more for i in range(count)]
        padded = [n * self.longest + i for n, (*_, count) in enumerate(more) for i in range(count)]
        owners = [row for row, _, _ in more]
        starts = [begin for _, begin, _ in more]
        self.rows, self.positions, self.padded, self.owners, self._starts = (
            torch.tensor(x, device=device) for x in (rows, positions, padded, owners, starts)
        )
        self.places = self.rows * tokens + self.positions
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def mask(self, width: int, window: int | None) -> torch.Tensor:
        """Return what each of them sees, bool [owners, 1, longest, width]."""
        if (width, window) not in self._masks:
            device = self.rows.device
            steps = torch.arange(self.longest, device=device)
            own = (self._starts[:, None] + steps)[:, :, None]  # [owners, longest, 1]
            keys = torch.arange(width, device=device)
            seen = keys <= own
            if window is not None:
                seen &= own - keys < window
            self._masks[width, window] = seen[:, None]
        return self._masks[width, window]


class KVCache:
    """Layout of the engine: a cache with one row per running sequence, each of its own length.

    The N flat tokens of a forward are the last token of rows 0..n-1, then what rows have before
    theirs that is not cached yet, then whole prompts one after the other, then filler that nobody
    reads. Rows and T, the tokens of a row, grow.
    joined: keys and values of all layers of one shape lie in one tensor [E, rows, KV, T, D], so
    that a row moves by two kernels on a GPU. Else each layer's have their own, so that no more than
    one of them stands there twice while the cache grows.
    """

    def __init__(self, *, joined: bool = False):
        self.joined = joined
        self.clear()

    def clear(self) -> None:
        """Drop the cache and give its memory back."""
        self._blocks: list[torch.Tensor] = []  # [E, rows, KV, T, D]
        self._where: dict[Place, tuple[int, int]] = {}  # block, and index in it
        self.bias = torch.zeros(0, 1, 1, 0)  # [rows, 1, 1, T]: 0 where cached, -inf elsewhere
        self._prompts: dict[Place, torch.Tensor] = {}  # [prompts, KV, P, D]
        self.states: dict[int, State] = {}  # of all rows, by layer
        self._prompt_states: dict[int, list[State]] = {}
        self.windows: dict[int, int | None] = {}  # of each layer, as its attention was called
        self._addresses: tuple[int, ...] | None = None

    def begin(self, positions: torch.Tensor, width: int, prompts: list[int], more=()) -> None:
        """Prepare one forward.

        positions: [n] where each row's last token is cached. width: the highest of them + 1.
        prompts: the lengths of the prompts that follow. more: (row, where, how many) of the tokens
        before the last ones that are cached now as well.
        """
        self._rows = len(positions)
        self._more = More(more, self.capacity[1], positions.device) if more else None
        self._prompts, self._prompt_states = {}, {}
        if self._rows:
            self._width = width
            self._positions = positions
            self._places: dict[tuple[int, int], torch.Tensor] = {}
            self._near: dict[int, torch.Tensor] = {}
            rows = torch.arange(self._rows, device=positions.device)
            self.bias.view(-1).index_fill_(0, rows * self.bias.shape[-1] + positions, 0.0)
            if self._more:
                self.bias.view(-1).index_fill_(0, self._more.places, 0.0)
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
        n, begin = self._rows, self._rows + (self._more.count if self._more else 0)
        end = begin + sum(self._lengths)
        parts = []
        if self._more and rules.source is None:  # before a row's last token sees them
            self._write_more(layer, key[:, n:begin], value[:, n:begin])
        if n:
            own = query[:, :n], key[:, :n], value[:, :n]
            parts.append(self._decode(layer, *own, scaling, rules))
        if self._more:
            parts.append(self._attend_more(layer, query[:, n:begin], scaling, rules))
        if end > begin:
            new = slice(begin, end)
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
        if stored == layer:
            self._write(layer, key, value)
        heads, kv = query.shape[0], key.shape[0]
        # The query heads that share a key head stand as if they were positions: no repeated keys.
        grouped = query.transpose(0, 1).reshape(n, kv, heads // kv, -1)
        if rules.sinks is not None:
            rules = replace(rules, sinks=rules.sinks.view(kv, -1))
        keys, values = (self._of(stored, part)[:n, :, :width] for part in (0, 1))
        out = softmax_attention(grouped, keys, values, self._bias(rules.window), scaling, rules)
        return out.reshape(n, heads, -1)  # [n, H, D]

    def _of(self, layer: int, part: int) -> torch.Tensor:
        """Return the keys (0) or values (1) of a layer, [rows, KV, T, D]."""
        block, index = self._where[layer, part]
        return self._blocks[block][index]

    def _write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put the rows' new keys and values where they belong; key, value [KV, n, D]."""
        block, index = self._where[layer, 0]
        key, value = key.transpose(0, 1), value.transpose(0, 1)  # [n, KV, D]
        if self._where[layer, 1] == (block, index + 1):  # side by side: both at once
            new = [(self._blocks[block][index : index + 2], torch.stack([key, value]))]
        else:
            new = [(self._of(layer, 0), key), (self._of(layer, 1), value)]
        for cached, own in new:
            flat = own.reshape(-1, own.shape[-1])
            places = self._places_of(key.shape[1], flat.shape[0])
            cached.view(-1, own.shape[-1]).index_copy_(0, places, flat)

    def _write_more(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """The same for the tokens before the rows' last ones; key, value [KV, e, D]."""
        more = self._more
        assert more is not None
        for part, own in enumerate((key, value)):
            cached = self._of(layer, part)  # [rows, KV, T, D]
            cached[more.rows, :, more.positions] = own.transpose(0, 1).to(cached.dtype)

    def _attend_more(self, layer: int, query: torch.Tensor, scaling, rules) -> torch.Tensor:
        """Return [e, H, D] of the tokens before the rows' last ones: each sees its row up to it."""
        more, source = self._more, layer if rules.source is None else rules.source
        assert more is not None
        keys, values = (
            self._of(source, part)[:, :, : self._width].index_select(0, more.owners)
            for part in (0, 1)
        )
        heads, _, depth = query.shape
        padded = query.new_zeros(len(more.owners) * more.longest, heads, depth)
        padded = padded.index_copy(0, more.padded, query.transpose(0, 1))
        padded = padded.view(len(more.owners), more.longest, heads, depth).transpose(1, 2)
        mask = more.mask(self._width, rules.window)
        out = softmax_attention(padded, keys, values, mask, scaling, rules)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, more.padded)

    def _places_of(self, heads: int, count: int) -> torch.Tensor:
        """Return where `count` new keys go in the flattened [.., rows * KV * T], [count].

        count: n * heads, or twice as many for keys and values in one tensor.
        """
        if (heads, count) not in self._places:
            device, (rows, tokens) = self._positions.device, self.capacity
            row_heads = torch.arange(self._rows * heads, device=device).view(-1, heads)
            places = (row_heads * tokens + self._positions[:, None]).view(-1)
            if count > len(places):
                places = torch.cat([places, places + rows * heads * tokens])
            self._places[heads, count] = places
        return self._places[heads, count]

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
            self._keep(layer, key, value, pad)
        source = layer if rules.source is None else rules.source
        keys, values = self._prompts[source, 0], self._prompts[source, 1]
        near = rules.window is not None and rules.window < longest
        mask = causal_mask(longest, query.device, rules.window) if near else None
        out = softmax_attention(pad(query), keys, values, mask, scaling, rules)
        flat = out.transpose(1, 2).reshape(prompts * longest, query.shape[0], -1)
        return flat.index_select(0, self._padded)  # [N, H, D]

    def _keep(self, layer: int, key, value, pad) -> None:
        """Keep the prompts' keys and values, padded, for the attention and for `prefixes`."""
        if not self.joined or key.shape != value.shape:
            self._prompts |= {(layer, 0): pad(key), (layer, 1): pad(value)}
            return
        keys, values = pad(torch.cat([key, value])).chunk(2, dim=1)
        self._prompts |= {(layer, 0): keys, (layer, 1): values}

    def prefixes(self) -> list[Prefix]:
        """Return the prompts of the last forward. ValueError if no layer came by here."""
        if not self._prompts and not self._prompt_states:
            raise ValueError("none of its layers uses an attention that can be replaced")
        places = self._together()
        whole = [[self._prompts[place] for place in group] for group in places]
        # [E, prompts, KV, P, D]
        blocks = [torch.stack(group) if len(group) > 1 else group[0][None] for group in whole]
        found = []
        for i, length in enumerate(self._lengths):
            kept = [block[:, i, :, :length] for block in blocks]
            states = {layer: made[i] for layer, made in self._prompt_states.items()}
            found.append(Prefix(places, kept, length, states))
        return found

    def _together(self) -> list[list[Place]]:
        """Return which keys and values lie in one tensor: those of one shape, if any."""
        if not self.joined:
            return [[place] for place in self._prompts]
        groups: dict[tuple, list[Place]] = {}
        for place, tensor in self._prompts.items():
            groups.setdefault((tensor.shape[1], tensor.shape[3]), []).append(place)
        return list(groups.values())

    def store(self, start: int, count: int, prefix: Prefix) -> None:
        """Put the prompt's cache into rows start..start+count-1."""
        rows = slice(start, start + count)
        for block, own in zip(self._blocks, prefix.blocks, strict=True):
            block[:, rows, :, : prefix.length] = own[:, None]
        for layer, state in prefix.states.items():
            every = self.states[layer].tensors()
            for (_, _, tensor), (_, _, own) in zip(every, state.tensors(), strict=True):
                tensor[rows] = own
        self.bias[rows, :, :, : prefix.length] = 0.0
        self.bias[rows, :, :, prefix.length :] = float("-inf")

    def saved(self, row: int, length: int) -> Prefix:
        """Return what is cached of a row's first `length` tokens, for `store`."""
        by_block: dict[int, list[Place]] = {}
        for place, (block, _) in sorted(self._where.items(), key=lambda item: item[1]):
            by_block.setdefault(block, []).append(place)
        blocks = [block[:, row, :, :length].clone() for block in self._blocks]
        chosen = torch.tensor([row], device=self.bias.device)
        states = {layer: state.select(chosen) for layer, state in self.states.items()}
        return Prefix([by_block[i] for i in range(len(blocks))], blocks, length, states)

    def addresses(self) -> tuple[int, ...]:
        """Return where the cache lies."""
        if self._addresses is None:
            states = [tensor for state in self.states.values() for _, _, tensor in state.tensors()]
            self._addresses = tuple(x.data_ptr() for x in (self.bias, *self._blocks, *states))
        return self._addresses

    @property
    def nbytes(self) -> int:
        """The memory that keys and values take."""
        return sum(block.nbytes for block in self._blocks)

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
        if not self._blocks and not self.states:
            assert like is not None, "an empty cache cannot know its shape"
            for layer, state in like.states.items():
                self.states[layer] = state.select(
                    torch.tensor([], dtype=torch.long, device=like.kind.device)
                )
            for number, (places, block) in enumerate(zip(like.places, like.blocks, strict=True)):
                entries, heads, _, depth = block.shape
                self._blocks.append(block.new_empty(entries, 0, heads, 0, depth))
                self._where |= {place: (number, index) for index, place in enumerate(places)}
            self.bias = self.bias.to(like.kind)
        # Zeros, since what no row has written yet is multiplied by 0, and 0 * NaN is NaN.
        for number, old in enumerate(self._blocks):
            entries, _, heads, _, depth = old.shape
            new = old.new_zeros(entries, rows, heads, tokens, depth)
            new[:, :old_rows, :, :old_tokens] = old[:, :old_rows, :, :old_tokens]
            self._blocks[number] = new
        for state in self.states.values():
            for store, number, old in list(state.tensors()):
                store[number] = old.new_zeros(rows, *old.shape[1:])
                store[number][:old_rows] = old[:old_rows]
        bias = self.bias.new_full((rows, 1, 1, tokens), float("-inf"))
        bias[:old_rows, :, :, :old_tokens] = self.bias[:old_rows, :, :, :old_tokens]
        self.bias, self._addresses = bias, None

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Copy the first `width` cached tokens of each source row over its target row."""
        device = self.bias.device
        places = torch.tensor([sources, targets])
        source, target = places.to(device, non_blocking=device.type == "cuda")
        for block in self._blocks:
            block[:, target, :, :width] = block[:, source, :, :width]
        for state in self.states.values():
            for _, _, tensor in state.tensors():
                tensor[target] = tensor[source]
        self.bias[target] = self.bias[source]
