"""Contenders by turns, or one after the other where the device holds only one at a time.

A turn is written down when it is over. Who runs out of memory drops out; the others go on.
"""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlm.models.memory import out_of_memory


class Turns:
    """makers: name -> a function that makes a contender, which has step(turn) -> metrics.

    keep: a file that gets each turn as a line of JSON when it is over, None for none.
    found: name -> the metrics of its turns. failed: who ran out of memory.
    """

    def __init__(self, makers: dict[str, Callable], keep: Path | None = None):
        self.makers, self.keep = makers, keep
        self.found: dict[str, list[dict]] = {name: [] for name in makers}
        self.failed: list[str] = []
        self._open: dict[str, Any] = {}

    def alternating(self, repeats: int) -> "Turns":
        """Have all there at once, and let them take turns, each first as often as the others."""
        names = list(self.makers)
        for name in names:
            self._begin(name)
        for turn in range(repeats):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                self._take(name, turn)
        return self

    def alone(self, repeats: int) -> "Turns":
        """Have one there at a time; it takes all its turns and is gone before the next is made."""
        for name in self.makers:
            self._begin(name)
            for turn in range(repeats):
                self._take(name, turn)
            self._drop(name)
        return self

    def _begin(self, name: str) -> None:
        def begin() -> None:
            self._open[name] = self.makers[name]()
            self._open[name].step(-1)  # warms up caches and buffers

        self._tried(name, begin)

    def _take(self, name: str, turn: int) -> None:
        if name in self.failed:
            return
        metrics = self._tried(name, lambda: self._open[name].step(turn))
        if name not in self.failed:
            self.found[name].append(metrics)
            self._write({"name": name, "turn": turn} | metrics)

    def _tried(self, name: str, work: Callable):
        """Return work(); None if it ran out of memory: then the contender is gone."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            # Our learner says it in its own words when there is nothing left to halve.
            if not (out_of_memory(error) or out_of_memory(error.__cause__)):
                raise
            told = str(error).partition("\n")[0]
        self.failed.append(name)
        self._drop(name)
        print(f"  {name}: out of memory ({told}); the others go on", flush=True)
        self._write({"name": name, "failed": told})
        return None

    def _drop(self, name: str) -> None:
        self._open.pop(name, None)
        gc.collect()  # trainers refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write(self, row: dict) -> None:
        if self.keep:
            with self.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
