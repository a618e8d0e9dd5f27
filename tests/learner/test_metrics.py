"""The metrics of an update: sums, means and largest values of micro-batches."""

import math

import pytest
import torch

from rlm.learner.metrics import Metrics


class OnMps(torch.Tensor):
    """A tensor on a device without float64, as Apple's GPUs are: making one there fails."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        if isinstance(out, OnMps) and out.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


def test_a_mean_is_added_up_in_float64_but_not_on_the_device():
    here = torch.full((3,), 0.1)
    with pytest.raises(TypeError):
        here.as_subclass(OnMps).double()
    metrics = Metrics()
    metrics.mean(entropy=here.as_subclass(OnMps))
    metrics.mean(entropy=torch.tensor([0.3]))
    # The nearest float32 numbers to 0.1 and 0.3, added up without another rounding.
    expected = (3 * 0.10000000149011612 + 0.30000001192092896) / 4
    assert metrics.values()["entropy"] == expected


def test_sums_are_divided_by_updates_and_the_largest_counts():
    metrics = Metrics()
    for loss, gap in ((1.0, 0.5), (2.0, math.nan), (4.0, 9.0)):
        metrics.add(loss=torch.tensor(loss))
        metrics.max(gap=gap)
    both = metrics.plus(metrics)
    assert both.values(2)["loss"] == 7.0 and math.isnan(both.values()["gap"])
