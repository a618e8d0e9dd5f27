"""The model's forward over our own key-value cache: prompts once a group, rows without padding.

For models whose attention goes through the layout (rlm.models.attention). It does not know about
queues: rlm.engine.batching asks it for tokens. rlm.engine.padded is the other way.

On CUDA a decode step reads one tensor that the host sends, ends with the tokens that it drew, and
is a graph where that pays (rlm.engine.cuda_graphs). The cache is then made once for what is known
to come, since another cache is other graphs.
"""

from array import array
from contextlib import contextmanager
from functools import partial

import torch

from rlm.engine.cuda_graphs import DecodeGraphs, rounded_rows, rounded_width
from rlm.engine.inference_model import InferenceModel
from rlm.engine.kv_cache import KVCache, Prefix
from rlm.engine.requests import Group, Row
from rlm.engine.sampling import Draws, drawing
from rlm.models.states import mixers

ROUND = 64  # a cache that grows in steps grows by at least so many tokens
FEWEST = 8  # rows of a cache that is made once
KEPT = 0.25  # of a card's memory: a larger cache is given back whenever nothing runs


class NativeRunner:
    """Makes the logits of running rows, which lie in the cache in the order they are given.

    max_rows, cache_tokens: bounds of the cache, as of `rlm.engine.batching.ContinuousBatch`.
    cuda_graphs: decode by graphs; without effect where the model is not on CUDA, or has layers
    with states.
    """

    def __init__(self, model, *, max_rows: int, cache_tokens: int | None, cuda_graphs: bool):
        self.max_rows, self.cache_tokens = max_rows, cache_tokens
        self.model = InferenceModel(model)
        self.on_cuda = self.model.device.type == "cuda"
        self.cache = KVCache(joined=self.on_cuda)
        graphs = cuda_graphs and self.on_cuda and self.repeatable
        self.graphs = DecodeGraphs(self.cache) if graphs else None
        self._drawing = drawing(self.model.device, self.model.network.dtype)
        self._longest = 0  # tokens that a request may have, of all that were queued

    def sync(self) -> None:
        """Take over the model's weights as they are now."""
        self.model.sync()

    @property
    def network(self):
        return self.model.network

    def expect(self, tokens: int) -> None:
        """Be told that a request of so many tokens at most waits."""
        self._longest = max(self._longest, tokens)

    def room(self, tokens: int) -> int:
        """Return the tokens that a row takes in the cache which may have so many."""
        return rounded_width(tokens) if self._fixed else tokens

    @property
    def repeatable(self) -> bool:
        """Whether a step may run twice, as before a capture: a state would be carried on twice."""
        return not mixers(self.model.network)

    @property
    def _fixed(self) -> bool:
        """Whether the cache is made once, for what is known to come."""
        return self.on_cuda or self.graphs is not None

    def clear(self) -> None:
        """Drop the cache, unless CUDA graphs would have to be captured again for another one."""
        if self.graphs is None or (self.on_cuda and self.cache.nbytes > KEPT * self._total()):
            self.release()
        else:
            self.graphs.rest()

    def release(self) -> None:
        """Drop the cache and all graphs, and give their memory back."""
        if self.graphs is not None:
            self.graphs.forget()
        self.cache.clear()

    def _total(self) -> int:
        return torch.cuda.mem_get_info(self.model.device)[1]

    @contextmanager
    def unbounded(self):
        """Inside the block rows run without CUDA graphs and bounds; after it the cache is empty."""
        kept = self.graphs, self.max_rows, self.cache_tokens
        self.graphs, self.max_rows, self.cache_tokens = None, 8, None
        try:
            yield
        finally:
            self.cache.clear()
            self.graphs, self.max_rows, self.cache_tokens = kept

    def joins(self, group: Group, rows: list[Row], free: int, waiting: int) -> bool:
        """Return whether a group may join now: always, since rows need nothing in common."""
        return True

    def sample(
        self,
        old: list[Row],
        admitted: list[tuple[Group, int]],
        new: list[Row],
        waiting: int,
        draws: Draws,
    ) -> torch.Tensor:
        """Run the model once; return [2, n] float32, as `Draws.take`, of all rows.

        The arguments are those of `logits`, whose order of the rows `draws` has.
        """
        if not self._fixed:
            return draws.take(self.logits(old, admitted, new, waiting))
        if not admitted and not any(row.more for row in old):
            self._prepare(old, waiting)
            found = self._step(old, draws)
            return found if draws.plain else draws.take(found)
        # What the host sends goes before the forward: behind it the host would wait for its end.
        sent = packed([], draws).view(torch.float32)
        uniforms, temperatures = sent.to(self.model.device, non_blocking=self.on_cuda)
        logits = self.logits(old, admitted, new, waiting)
        if draws.plain:
            return self._drawing(logits, uniforms, temperatures, draws.size)
        return draws.take(logits, uniforms)

    def logits(
        self, old: list[Row], admitted: list[tuple[Group, int]], new: list[Row], waiting: int
    ) -> torch.Tensor:
        """Run the model once; return the logits [n, V] of all rows, the admitted ones last.

        admitted: groups, and how many of their rows are in `new`. waiting: requests without a row.
        """
        self._prepare([*old, *new], waiting)
        fresh = [group for group, _ in admitted if group.prefix is None]
        if old:
            self._grow(len(old), 1 + max(row.cached + row.more for row in old), None)
        if old or fresh:
            logits = self._run(old, [group.prompt.ids for group in fresh])
        if fresh:
            prefixes = self.cache.prefixes()
            for group, prefix, row in zip(fresh, prefixes, logits[len(old) :], strict=True):
                group.prefix, group.logits = prefix, row
        parts, start = [logits[: len(old)]] if old else [], len(old)
        for group, count in admitted:
            assert group.prefix is not None and group.logits is not None
            self._grow(start + count, group.prefix.length + 1, group.prefix)
            self.cache.store(start, count, group.prefix)
            parts.append(group.logits.expand(count, -1))
            start += count
            if not group.waiting:
                group.forget()
        return torch.cat(parts) if admitted else logits

    def retire(self, rows: list[Row]) -> None:
        """Nothing: what lies in the cache where no sequence is is read by nobody."""

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Put the first `width` cached tokens of the rows `sources` where `targets` lay."""
        self.cache.move(sources, targets, width)

    @property
    def goes_on(self) -> bool:
        """Whether several tokens may be put into a row, and a row may leave and come back.

        A layer with states would be given its tokens in other portions than those it was tried in.
        """
        return self.repeatable

    def save(self, place: int, tokens: int) -> Prefix | None:
        """Return what is cached of a row, so many tokens; None where it could not go on from it."""
        return self.cache.saved(place, tokens) if self.goes_on else None

    def restore(self, rows: list[Row], row: Row, kept: Prefix, waiting: int) -> None:
        """Put a row that was saved behind these, in the cache as it was."""
        self._prepare([*rows, row], waiting)
        self._grow(len(rows) + 1, row.cached + row.more + 1, kept)
        self.cache.store(len(rows), 1, kept)

    def _prepare(self, rows: list[Row], waiting: int) -> None:
        """Note what a cache has to have room for if it must grow."""
        self._present, self._wanted = rows, len(rows) + waiting

    @property
    def _most(self) -> int:
        """The tokens that a row of this step may have at most."""
        return max(row.most for row in self._present)

    def _run(self, old: list[Row], prompts: list[list[int]]) -> torch.Tensor:
        """Return the logits behind the last token of each old row and of each prompt.

        Behind the last tokens of the rows stand those before them that are not cached yet, then
        the prompts.
        """
        ids = [row.ids[-1] for row in old]
        positions = [row.cached + row.more for row in old]
        last = list(range(len(old)))
        more = [(index, row.cached, row.more) for index, row in enumerate(old) if row.more]
        for index, begin, count in more:
            ids += old[index].ids[-1 - count : -1]
            positions += range(begin, begin + count)
        for prompt in prompts:
            ids += prompt
            positions += range(len(prompt))
            last.append(len(ids) - 1)
        filler = [0] * self.model.lacking(len(ids))
        flat = packed([ids + filler, positions + filler]).long().to(self.model.device)  # [2, N]
        width = self._width(1 + max(positions[: len(old)], default=0))
        self.cache.begin(flat[1, : len(old)], width, [len(prompt) for prompt in prompts], more)
        keep = torch.tensor(last, device=flat.device) if prompts or more else 0
        logits = self.model.logits(flat, keep, self.cache)[: len(last)]
        for row in old:
            row.cached += 1 + row.more
            row.more = 0
        return logits

    def _step(self, rows: list[Row], draws: Draws) -> torch.Tensor:
        """Return the tokens and log-probabilities [2, n] of a step without prompts.

        Where rows are drawn otherwise than `drawing` does it: their logits [n, V].
        """
        positions = [row.cached for row in rows]
        longest = 1 + max(positions)
        self._grow(len(rows), longest, None)
        inputs = packed([[row.ids[-1] for row in rows], positions], draws)  # [4, n]
        step, plain, found = partial(self._decode, draws), draws.plain, None
        if self.graphs is not None:
            memory = self.model.addresses, self.cache.addresses()
            found = self.graphs.run(step, inputs, longest, memory, plain)
        if found is None:
            inputs = inputs.to(self.model.device, non_blocking=self.on_cuda)
            found = step(inputs, self._width(longest))
        for row in rows:
            row.cached += 1
        return found[:, : len(rows)] if plain else found[: len(rows)]

    def _decode(self, draws: Draws, inputs: torch.Tensor, width: int) -> torch.Tensor:
        """Return what `_step` returns; inputs [4, n] int32: ids, positions, float32 in the rest."""
        flat = inputs[:2].long()
        self.cache.begin(flat[1], width, [])
        logits = self.model.logits(flat, 0, self.cache)
        if not draws.plain:
            return logits
        uniforms, temperatures = inputs[2:].view(torch.float32)
        return self._drawing(logits, uniforms, temperatures, draws.size)

    def _width(self, tokens: int) -> int:
        """Return how much of the cache a step reads: on CUDA in eights, or masks are copied."""
        return min(-(-tokens // 8) * 8, self.cache.capacity[1]) if self.on_cuda else tokens

    def _grow(self, rows: int, tokens: int, like: Prefix | None) -> None:
        """Make room in the cache for so many rows and tokens, and some more if it must grow."""
        has_rows, has_tokens = self.cache.capacity
        if rows <= has_rows and tokens <= has_tokens:
            return
        if self._fixed:
            self.cache.resize(*self._once(rows, tokens), like)
            return
        if rows > has_rows:
            has_rows = min(self.max_rows, self._wanted)
        if tokens > has_tokens:
            has_tokens = min(self._most, max(tokens + ROUND, has_tokens * 3 // 2))
        if self.cache_tokens and has_rows * has_tokens > self.cache_tokens:
            has_rows, has_tokens = min(self.max_rows, self.cache_tokens // self._most), self._most
        self.cache.resize(has_rows, has_tokens, like)

    def _once(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the rows and tokens of a cache that need not grow soon.

        Rows for all that wait, twice as many as before if there are more; an eighth more tokens
        than any request may have. Within the bound, if what runs allows it.
        """
        has_rows, has_tokens = self.cache.capacity
        need = self.room(self._most)
        wished = max(need, has_tokens, self.room(max(self._longest, self._most) * 9 // 8))
        wished = wished if tokens > has_tokens else has_tokens
        many = max(FEWEST, has_rows, rounded_rows(self._wanted, self.max_rows))
        many = max(many, 2 * has_rows) if has_rows and rows > has_rows else many
        many = max(rows, min(many, self.max_rows))
        for some, length in ((many, wished), (rows, wished), (many, need)):
            if not self.cache_tokens or some * length <= self.cache_tokens:
                return some, length
        some = (self.cache_tokens or 0) // need
        return (some, need) if some >= rows else (rows, self._most)


def packed(whole: list[list[int]], draws: Draws | None = None) -> torch.Tensor:
    """Return a tensor int32 with a row for each list, all of one length.

    draws: their numbers and temperatures follow, float32 in two more rows.
    """
    data = bytearray()
    for part in whole:
        data += array("i", part)
    if draws is not None:
        data += array("f", draws.numbers)
        data += array("f", draws.mix.temperatures)
    rows = len(whole) + 2 * (draws is not None)
    return torch.frombuffer(data, dtype=torch.int32).view(rows, -1)
