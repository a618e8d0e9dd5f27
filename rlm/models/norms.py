"""RMS norms by one kernel and a product, where a model's own class takes eight small ones.

A decode step of a small model on a GPU is bound by the number of its kernels, and a fifth of them
are norms. The result is rounded as transformers rounds it: to the input's format, then times the
weight. Whether a class is such a norm is found out by trying, since families differ.
"""

import torch
from torch import nn
from torch.nn import functional

ROWS = 16  # that are tried


class FusedNorm(nn.Module):
    """y = round(x / rms(x)) * weight, for sampling only. x [..., n], weight [n]."""

    def __init__(self, weight: torch.Tensor, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.epsilon = epsilon
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = functional.rms_norm(x, (x.shape[-1],), None, self.epsilon)
        return self.weight * normed


def fused(norm: nn.Module) -> FusedNorm | None:
    """Return a norm that does what this module does, None for what is no such norm."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weights = dict(norm.named_parameters())
    if "RMSNorm" not in type(norm).__name__ or not isinstance(epsilon, float):
        return None
    if list(weights) != ["weight"] or weights["weight"].dim() != 1 or "forward" in norm.__dict__:
        return None
    return FusedNorm(weights["weight"], epsilon)


@torch.no_grad()
def agrees(norm: nn.Module, other: FusedNorm) -> bool:
    """Return whether two norms give the same, but for the rounding of one last place."""
    weight = other.weight
    size = len(weight)
    numbers = torch.arange(ROWS * size, device=weight.device, dtype=torch.float32)
    x = (numbers * 0.7).sin().mul(3).view(1, ROWS, size)
    x = (x * torch.logspace(-3, 2, ROWS, device=weight.device)[:, None]).to(weight.dtype)
    try:
        expected, found = norm(x), other(x)
    except (RuntimeError, TypeError):  # it takes more than one tensor, or others
        return False
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return False
    last = torch.finfo(weight.dtype).eps
    return torch.allclose(expected, found, rtol=4 * last, atol=last)
