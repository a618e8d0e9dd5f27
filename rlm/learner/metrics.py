"""The figures of an update: collected over micro-batches, then over all processes.

figures = Figures()
figures.add(loss=..., clipped=...)      # a micro-batch's part of a sum
figures.most(sampler_gap=...)           # the largest counts
figures.mean(entropy=tensor)            # the mean of all tokens that were looked at
figures.joined("metrics").values()      # name -> number, the same in all processes
"""

import math
from typing import Any

from rlm.parallel import world


class Figures:
    """Sums, largest values and means, by name."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.largest: dict[str, float] = {}
        self.totals: dict[str, tuple[float, int]] = {}  # sum and count of what is averaged

    def add(self, **values) -> None:
        """Add each value to the sum of its name."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def most(self, **values) -> None:
        """Keep each value that is larger than those before of its name; NaN is."""
        for name, value in values.items():
            before, now = self.largest.get(name), float(value)
            if before is None or not (before >= now or math.isnan(before)):
                self.largest[name] = now

    def mean(self, **tensors) -> None:
        """Take the elements of each tensor into the mean of its name."""
        for name, tensor in tensors.items():
            total, count = self.totals.get(name, (0.0, 0))
            self.totals[name] = total + float(tensor.double().sum()), count + tensor.numel()

    def plus(self, other: "Figures") -> "Figures":
        """Return the figures of both."""
        found = Figures()
        for each in (self, other):
            found.add(**each.sums)
            found.most(**each.largest)
            for name, (total, count) in each.totals.items():
                sum_, count_ = found.totals.get(name, (0.0, 0))
                found.totals[name] = sum_ + total, count_ + count
        return found

    def joined(self, stage: str) -> "Figures":
        """Return the figures of all processes together, the same in each of them."""
        found = Figures()
        for each in world().gather(self, stage):
            found = found.plus(each)
        return found

    def values(self, updates: int = 1) -> dict[str, Any]:
        """Return name -> number; sums are divided by the number of updates they came from."""
        sums = {name: total / updates for name, total in self.sums.items()}
        means = {name: total / count for name, (total, count) in self.totals.items() if count}
        return sums | means | self.largest
