"""The rotary embedding of queries and keys together: half as many kernels, the same bits.

A transformers attention layer rotates its queries and its keys one after the other, x cos +
rotate_half(x) sin (arXiv:2104.09864), five kernels each. In a decode step on a GPU these wait for
their launch alone. Here both stand in one tensor, and the sign of rotate_half is in the sine.

A layer finds the function by its name among the globals of its forward, so a layer of the engine
gets a forward of the same code with other globals: nothing of transformers is changed. What a
family's function computes is compared before: where it is something else, the layer stays as it is.
"""

from functools import cache
from types import FunctionType, MethodType

import torch
from torch import nn

NAME = "apply_rotary_pos_emb"


def serves(module: nn.Module) -> bool:
    """Return whether a module on a GPU rotates its queries and keys as here."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
        return False
    weight = next(module.parameters(), None)
    plain = forward.__globals__.get(NAME)
    return weight is not None and weight.is_cuda and callable(plain) and same(plain)


@cache
def same(plain) -> bool:
    """Return whether a family's function gives what `Rotation` gives, bit for bit, on a small case.

    On the CPU: the operations are entry by entry, so that they round alike on every device.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 5, 4, 8), (1, 5, 2, 8), (1, 5, 8), (1, 5, 8))
    made = [torch.randn(size, generator=generator) for size in sizes]
    for dtype in (torch.float32, torch.bfloat16):
        q, k, cos, sin = (x.to(dtype) for x in made)
        given = q.transpose(1, 2), k.transpose(1, 2), cos, sin
        try:
            expected = plain(*given)
        except Exception:  # another kind of function, with arguments of its own
            return False
        if len(expected) != 2 or not all(
            map(torch.equal, expected, Rotation(plain, Sines())(*given))
        ):
            return False
    return True


def install(module: nn.Module, sines: "Sines") -> None:
    """Let a module that `serves` rotate queries and keys together; its `forward` is replaced.

    sines: shared by the layers of a model.
    """
    forward = type(module).forward
    assert isinstance(forward, FunctionType)
    own = forward.__globals__ | {NAME: Rotation(forward.__globals__[NAME], sines)}
    other = FunctionType(
        forward.__code__, own, forward.__name__, forward.__defaults__, forward.__closure__
    )
    other.__kwdefaults__ = forward.__kwdefaults__
    module.__dict__["forward"] = MethodType(other, module)


class Rotation:
    """Takes the place of a family's `plain` function, which gets all that is not as usual."""

    def __init__(self, plain, sines: "Sines"):
        self.plain, self.sines = plain, sines

    def __call__(self, q, k, cos, sin, *more, **named):
        """Return (q [1, H, N, D], k [1, KV, N, D]) rotated; cos, sin [1, N, D]."""
        usual = not more and not named and q.dim() == k.dim() == 4 and cos.dim() == 3
        usual = usual and q.dtype == k.dtype
        if not usual or not q.shape[-1] == k.shape[-1] == cos.shape[-1] == sin.shape[-1]:
            return self.plain(q, k, cos, sin, *more, **named)
        heads, half = q.shape[1], q.shape[-1] // 2
        # [1, N, H + KV, D]: the order in which the projections have made them.
        both = torch.cat([q.transpose(1, 2), k.transpose(1, 2)], dim=2)
        turned = both.roll(half, -1) * self.sines.signed(sin).unsqueeze(2)
        both = (both * cos.unsqueeze(2) + turned).transpose(1, 2)
        return both[:, :heads], both[:, heads:]


class Sines:
    """Gives a sine with its first half negated; made once for all layers of a forward."""

    def __init__(self):
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def signed(self, sin: torch.Tensor) -> torch.Tensor:
        """Return the sine as `Rotation` needs it, like `sin` [1, N, D]."""
        if self._last is None or self._last[0] is not sin:
            half = sin.shape[-1] // 2
            self._last = sin, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return self._last[1]
