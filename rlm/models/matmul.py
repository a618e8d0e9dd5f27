"""The products of linear layers, by the library that is the faster one on this processor.

torch brings two: MKL, which it asks for float32 products, and oneDNN, for bfloat16. On processors
that are not Intel's MKL leaves AVX-512 unused, oneDNN does not: there it makes float32 products
about twice as fast, but for small ones, where its calls cost more. Where few rows meet all
weights, as in sampling, weights that lie in oneDNN's own order (packed) are faster still, in
bfloat16 too; and a row's product is then the same alone and beside others, for nearly all shapes.
Everywhere else torch chooses, as ever.
"""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

SMALL = 2**20  # multiplications below which oneDNN's call costs more than it gains
LEAST = 2**16  # weights of a layer that is worth packing
PACKED_FOR = 64  # rows that weights are packed for
FEW_ROWS, MANY_ROWS = 8, 64  # rows are filled up to a multiple of these
CPU_FACTS = Path("/proc/cpuinfo")


@cache
def fast() -> bool:
    """Return whether oneDNN makes float32 products faster than torch's own choice."""
    try:
        intel = "GenuineIntel" in CPU_FACTS.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system: nothing was measured there
        return False
    return _there() and not intel and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@cache
def _there() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


def packable(weight: torch.Tensor) -> bool:
    """Return whether products with few rows get faster if this weight is packed."""
    if weight.device.type != "cpu" or weight.numel() < LEAST or not _there():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and fast()


def lacking(rows: int) -> int:
    """Return how many rows are missing to a number of rows that oneDNN is given."""
    return -rows % (FEW_ROWS if rows <= PACKED_FOR else MANY_ROWS)


def onednn(x: torch.Tensor, weight: torch.Tensor, bias) -> torch.Tensor:
    """Return x W^T + b by oneDNN; the weight as it is or packed.

    It makes a program for every number of rows, in 0.7 ms and 0.6 MB: so rows are filled up to
    few such numbers.
    """
    rows = x.numel() // x.shape[-1]
    flat = x.reshape(rows, -1)
    if missing := lacking(rows):
        flat = functional.pad(flat, (0, 0, 0, missing))
    out = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    return out[:rows].view(*x.shape[:-1], -1)


def linear(x: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    """Return x W^T + b; x [..., in], weight [out, in], bias [out] or None. It has no gradient."""
    large = x.numel() * len(weight) >= SMALL
    if large and weight.dtype == torch.float32 and weight.device.type == "cpu" and fast():
        return onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


def matmul(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return one @ other, [n, k] and [k, m]. It has no gradient."""
    return linear(one, other.t())


class DenseLinear(nn.Linear):
    """y = x W^T + b, for sampling only; the weights are those of another layer."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__(1, 1, bias=False, device="meta")
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = bias
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """y = x W^T + b, for sampling only; W lies in oneDNN's order. weight: see `packable`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return onednn(x, self.packed, self.bias)
