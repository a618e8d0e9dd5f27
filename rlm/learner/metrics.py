"""The metrics of an update: collected over micro-batches, then over all processes.

metrics = Metrics()
metrics.add(loss=..., clipped=...)      # a micro-batch's part of a sum
metrics.max(sampler_gap=...)            # the largest counts
metrics.mean(entropy=tensor)            # the mean of all tokens that were looked at
metrics.all_reduce("metrics").values()  # name -> number, the same in all processes
"""

import math
from typing import Any

from rlm.parallel import world


class Metrics:
    """Sums, largest values and means, by name."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.largest: dict[str, float] = {}
        self.totals: dict[str, tuple[float, int]] = {}  # sum and count of what is averaged

    def add(self, **values) -> None:
        """Add each value to the sum of its name."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def max(self, **values) -> None:
        """Keep each value that is larger than those before of its name; NaN is."""
        for name, value in values.items():
            before, now = self.largest.get(name), float(value)
            if before is None or not (before >= now or math.isnan(before)):
                self.largest[name] = now

    def mean(self, **tensors) -> None:
        """Take the elements of each tensor into the mean of its name."""
        for name, tensor in tensors.items():
            total, count = self.totals.get(name, (0.0, 0))
            summed = float(tensor.detach().cpu().double().sum())  # no float64 on Apple's GPUs
            self.totals[name] = total + summed, count + tensor.numel()

    def plus(self, other: "Metrics") -> "Metrics":
        """Return the metrics of both."""
        found = Metrics()
        for each in (self, other):
            found.add(**each.sums)
            found.max(**each.largest)
            for name, (total, count) in each.totals.items():
                sum_, count_ = found.totals.get(name, (0.0, 0))
                found.totals[name] = sum_ + total, count_ + count
        return found

    def all_reduce(self, stage: str) -> "Metrics":
        """Return the metrics of all processes together, the same in each of them."""
        found = Metrics()
        for each in world().all_gather(self, stage):
            found = found.plus(each)
        return found

    def values(self, updates: int = 1) -> dict[str, Any]:
        """Return name -> number; sums are divided by the number of updates they came from."""
        sums = {name: total / updates for name, total in self.sums.items()}
        means = {name: total / count for name, (total, count) in self.totals.items() if count}
        return sums | means | self.largest
