"""The decode step as a CUDA graph: one launch in place of some hundred per layer.

A graph repeats the same kernels on the same memory, so it is captured for a number of rows and
a cached length, both rounded up, and reads its input from a tensor that stays. Rows beyond those
that run compute something that nobody reads: they lie in the cache where no sequence is.

A capture costs as much as some ten steps without a graph, so one is made for what has come up a few
times, and a larger graph serves in its place until a size has come up often.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch

from rlm.engine.kv_cache import KVCache

logger = logging.getLogger("rlm")

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
WIDTH = 128  # cached lengths are rounded up to a multiple of this
NEW = 2  # steps of a size that no graph serves, until it gets one
OFTEN = 16  # steps of a size that a larger graph serves, until it gets its own

Captured = tuple[Callable[[], None], torch.Tensor]  # replay, and the tensor it writes to


def rounded_rows(count: int, most: int) -> int:
    """Return the number of rows that a graph has for `count` of them, `most` at most."""
    return min(most, next((rows for rows in ROWS if rows >= count), most))


def rounded_width(tokens: int) -> int:
    """Return the cached length that a graph has for so many tokens."""
    return -(-tokens // WIDTH) * WIDTH


def new_pool() -> Any:
    """Return the handle of a memory pool: it may be used as long as one of its graphs lives."""
    return torch.cuda.graph_pool_handle()


@cache
def side_stream(device: int):
    """Return the stream that captures: one for all, since each keeps a workspace for products."""
    return torch.cuda.Stream(device)


def capture_cuda(work: Callable[[], torch.Tensor], pool) -> Captured:
    """Return (replay, output) of work(), which must use the same memory each time it runs.

    RuntimeError where that cannot be; the process can then go on without graphs.
    """
    stream = side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # lazy set-up must not be captured
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        try:
            # Of this thread alone: what another one asks of CUDA meanwhile is its own business.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            output = work()
            graph.capture_end()
        except BaseException:
            _end_capture(graph, pool)
            raise
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, output


def _end_capture(graph, pool) -> None:
    """Leave a capture that failed, of which torch may have left parts begun.

    The stream's; the allocator's, which would ask the graph that is gone about every tensor; and
    that of the generator of random numbers, whose draws would fail.
    """
    device = torch.cuda.current_device()
    with suppress(RuntimeError):
        graph.capture_end()
    with suppress(RuntimeError, AttributeError, TypeError):  # no public name
        torch._C._cuda_endAllocateToPool(device, pool)
    with suppress(RuntimeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


class DecodeGraphs:
    """Runs decode steps by graphs, one for each (rows, width, kind of step).

    capture, pools: make a replayable of a function, and memory for it; others let this be tried
    without CUDA.
    """

    def __init__(
        self, cache: KVCache, capture: Callable = capture_cuda, pools: Callable[[], Any] = new_pool
    ):
        self._cache, self._capture, self._pools = cache, capture, pools
        self.broken = False
        self.captures = 0
        self.forget()

    def forget(self) -> None:
        """Drop all graphs: the memory that they use is not that of now."""
        self._graphs: dict[tuple, Captured] = {}
        self._inputs: dict[int, torch.Tensor] = {}  # by rows: [4, rows], what the graphs read
        self._seen: Counter = Counter()
        self._memory, self._pool = None, None

    def rest(self) -> None:
        """Nothing runs: begin to count anew, so that sizes which are rare do not add up."""
        self._seen.clear()

    def run(
        self, step: Callable, inputs: torch.Tensor, longest: int, memory, kind: bool
    ) -> torch.Tensor | None:
        """Return what step(inputs, width) returns, by a graph; None where none serves.

        step: takes [4, R] on the device and a width, returns a tensor with R rows somewhere; what
        it returns holds until the next run. inputs: [4, n] on the CPU. longest: tokens of the
        longest row, the new one included. memory: the addresses of all weights and of the cache;
        when they change, so do the graphs. kind: of step, where there are two.
        """
        if self.broken:
            return None
        if memory != self._memory:
            self.forget()
            self._memory = memory
        most_rows, most_tokens = self._cache.capacity
        rows = rounded_rows(inputs.shape[1], most_rows)
        width = min(most_tokens, rounded_width(longest))
        key = self._choose(rows, width, kind)
        if key is None:
            return None
        place = self._placed(inputs, key[0])
        if key not in self._graphs and not self._make(key, partial(step, place, key[1])):
            return None
        replay, output = self._graphs[key]
        replay()
        return output

    def _choose(self, rows: int, width: int, kind: bool) -> tuple | None:
        """Return the graph to run, there or to be made; None for a step without one."""
        wanted = rows, width, kind
        if wanted in self._graphs:
            return wanted
        self._seen[wanted] += 1
        larger = [key for key in self._graphs if key[0] >= rows and key[1] >= width]
        cover = min((key for key in larger if key[2] == kind), default=None)
        if self._seen[wanted] >= (NEW if cover is None else OFTEN):
            return wanted
        return cover

    def _placed(self, inputs: torch.Tensor, rows: int) -> torch.Tensor:
        """Put the inputs where the graphs of so many rows read them, zeros behind them."""
        if rows > inputs.shape[1]:
            inputs = torch.nn.functional.pad(inputs, (0, rows - inputs.shape[1]))
        if rows not in self._inputs:
            self._inputs[rows] = torch.zeros_like(inputs, device=self._cache.bias.device)
        return self._inputs[rows].copy_(inputs, non_blocking=True)

    def _make(self, key: tuple, work: Callable[[], torch.Tensor]) -> bool:
        """Capture a graph; return False, and say so, if that cannot be."""
        try:
            if self._pool is None:
                self._pool = self._pools()
            self._graphs[key] = self._capture(work, self._pool)
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("no CUDA graphs: %s; going on without", lines[0])
            self.forget()
            self.broken = True
            return False
        self.captures += 1
        return True
