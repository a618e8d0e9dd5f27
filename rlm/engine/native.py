"""The model's forward over our own key-value cache: prompts once a group, rows without padding.

For models whose attention goes through the layout (rlm.models.attention). It does not know about
queues or sampling: rlm.engine.batching asks it for logits. rlm.engine.padded is the other way.
"""

from contextlib import contextmanager

import torch

from rlm.engine.cuda_graphs import DecodeGraphs
from rlm.engine.inference_model import InferenceModel
from rlm.engine.kv_cache import KVCache, Prefix
from rlm.engine.requests import Group, Row

ROUND = 64  # the cache grows by at least so many tokens


class NativeRunner:
    """Makes the logits of running rows, which lie in the cache in the order they are given.

    max_rows, cache_tokens: bounds of the cache, as of `rlm.engine.batching.ContinuousBatch`.
    """

    def __init__(self, model, *, max_rows: int, cache_tokens: int | None, cuda_graphs: bool):
        self.max_rows, self.cache_tokens = max_rows, cache_tokens
        self.model = InferenceModel(model)
        self.cache = KVCache()
        graphs = cuda_graphs and self.model.device.type == "cuda"
        self.graphs = DecodeGraphs(self.cache) if graphs else None

    def sync(self) -> None:
        """Take over the model's weights as they are now."""
        self.model.sync()

    def clear(self) -> None:
        """Drop the cache, unless CUDA graphs would have to be captured again for another one."""
        if self.graphs is None:
            self.cache.clear()

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

    def logits(
        self, old: list[Row], admitted: list[tuple[Group, int]], new: list[Row], waiting: int
    ) -> torch.Tensor:
        """Run the model once; return the logits [n, V] of all rows, the admitted ones last.

        admitted: groups, and how many of their rows are in `new`. waiting: requests without a row.
        """
        rows = [*old, *new]
        self._most, self._wanted = max(row.most for row in rows), len(rows) + waiting
        fresh = [group for group, _ in admitted if group.prefix is None]
        if old:
            self._grow(len(old), 1 + max(row.cached for row in old), None)
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

    def _run(self, old: list[Row], prompts: list[list[int]]) -> torch.Tensor:
        """Return the logits behind the last token of each old row and of each prompt."""
        ids = [row.ids[-1] for row in old]
        positions = [row.cached for row in old]
        last = list(range(len(old)))
        for prompt in prompts:
            ids += prompt
            positions += range(len(prompt))
            last.append(len(ids) - 1)
        if self.graphs and not prompts and not self.graphs.broken:
            memory = self.model.addresses, self.cache.addresses()
            logits = self.graphs.run(self._decode, ids, positions, memory)
        else:
            filler = [0] * self.model.lacking(len(ids))
            flat = [ids + filler, positions + filler]
            flat = torch.tensor(flat, device=self.model.device)  # [2, N]
            width = 1 + max(positions[: len(old)], default=0)
            self.cache.begin(flat[1, : len(old)], width, [len(prompt) for prompt in prompts])
            keep = torch.tensor(last, device=flat.device) if prompts else 0
            logits = self.model.logits(flat, keep, self.cache)[: len(last)]
        for row in old:
            row.cached += 1
        return logits

    def _decode(self, flat: torch.Tensor, width: int) -> torch.Tensor:
        """Return the logits [n, V] of a step without prompts; flat [2, n]: ids, positions."""
        self.cache.begin(flat[1], width, [])
        return self.model.logits(flat, 0, self.cache)

    def _grow(self, rows: int, tokens: int, like: Prefix | None) -> None:
        """Make room in the cache for so many rows and tokens, and some more if it must grow."""
        has_rows, has_tokens = self.cache.capacity
        if rows <= has_rows and tokens <= has_tokens:
            return
        if rows > has_rows:
            has_rows = min(self.max_rows, self._wanted)
        if tokens > has_tokens:
            has_tokens = min(self._most, max(tokens + ROUND, has_tokens * 3 // 2))
        if self.cache_tokens and has_rows * has_tokens > self.cache_tokens:
            has_rows, has_tokens = min(self.max_rows, self.cache_tokens // self._most), self._most
        self.cache.resize(has_rows, has_tokens, like)
