"""CUDA graphs without CUDA: a replay runs the work again, and memory pools fail as CUDA's do."""

import weakref


class FakeGraphs:
    """What `rlm.engine.cuda_graphs.DecodeGraphs` is given: `capture` and `pools`.

    captured: how many captures there were.
    """

    def __init__(self):
        self._living: dict[int, int] = {}  # handle -> graphs that use it
        self._used: set[int] = set()
        self._handles = 0
        self.captured = 0

    def pools(self) -> int:
        self._handles += 1
        return self._handles

    def capture(self, work, pool):
        """Return (replay, output): the same memory every time, and nothing but tensors changes."""
        if pool in self._used and not self._living[pool]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED\nat the pool")
        self._used.add(pool)
        self._living[pool] = self._living.get(pool, 0) + 1
        self.captured += 1
        output = work().clone()

        def replay():
            output.copy_(work())

        weakref.finalize(replay, self._end, pool)
        return replay, output

    def _end(self, pool: int) -> None:
        self._living[pool] -= 1
