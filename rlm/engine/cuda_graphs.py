"""The decode step as a CUDA graph: one launch in place of some hundred per layer.

A graph repeats the same kernels on the same memory, so it is captured for a number of rows and
a cached length, both rounded up, and reads its input from tensors that stay. Rows beyond those
that run compute something that nobody reads: they lie in the cache where no sequence is.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch

from rlm.engine.kv_cache import KVCache

logger = logging.getLogger("rlm")

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
WIDTH = 128  # cached lengths are rounded up to a multiple of this

Captured = tuple[Callable[[], None], torch.Tensor]  # replay, and the tensor it writes to


def capture_cuda(work: Callable[[], torch.Tensor], pool) -> Captured:
    """Return (replay, output) of work(), which must use the same memory each time it runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # lazy set-up must not be captured
        work()
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = work()
    return graph.replay, output


class DecodeGraphs:
    """Runs decode steps by graphs, one for each (rows, width) that comes up.

    capture: makes a replayable of a function; another one lets this be tried without CUDA.
    """

    def __init__(self, cache: KVCache, capture: Callable = capture_cuda):
        self._cache, self._capture = cache, capture
        self._pool = torch.cuda.graph_pool_handle() if capture is capture_cuda else None
        self.broken = False
        self.forget()

    def forget(self) -> None:
        """Drop all graphs: the memory that they use is not that of now."""
        self._graphs: dict[tuple[int, int], tuple[torch.Tensor, Callable, torch.Tensor]] = {}
        self._memory = None

    def run(self, step: Callable, ids: list[int], positions: list[int], memory) -> torch.Tensor:
        """Return the logits [n, V] of step(flat, width) for n rows, by a graph.

        step: takes [2, R] ids and positions, and a width; returns [R, V].
        memory: the addresses of all weights and of the cache; when they change, so do the graphs.
        """
        if memory != self._memory:
            self.forget()
            self._memory = memory
        rows, tokens = self._cache.capacity
        count = len(ids)
        room = min(rows, next((r for r in ROWS if r >= count), rows))
        width = min(tokens, -(-(max(positions) + 1) // WIDTH) * WIDTH)
        spare = [0] * (room - count)
        device = self._cache.bias.device
        flat = torch.tensor([ids + spare, positions + spare], device=device)  # [2, R]
        if (room, width) not in self._graphs:
            try:
                place = flat.clone()
                work = partial(step, place, width)
                self._graphs[room, width] = place, *self._capture(work, self._pool)
            except RuntimeError as error:
                logger.warning("no CUDA graphs: %s; going on without", str(error).splitlines()[0])
                self.broken = True
                return step(flat[:, :count], max(positions) + 1)
        place, replay, output = self._graphs[room, width]
        place.copy_(flat)
        replay()
        return output[:count]
