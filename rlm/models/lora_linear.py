"""A linear layer with a LoRA in one piece: fewer passes over memory, forward and backward.

PEFT adds `scaling * B(A(x))` to the base's output by three passes over a tensor of the output's
size, and as many backward. Here the products add up in place. The learner (`fused`) and the
rollouts in bfloat16 and float16 (`LoraLinear`) round alike, so that they are the same policy: A and
scaling * B are rounded to the input's format, and stay float32 as parameters.
"""

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from rlm.models.matmul import linear, matmul


class LoraLinearFunction(torch.autograd.Function):
    """y = x W^T + b + scaling * (x A^T) B^T; gradients of x, A and B, none of W and b.

    x [..., in], weight [out, in], bias [out] or None, down (A) [r, in], up (B) [out, r].
    """

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scaling: float):
        flat = x.flatten(0, -2)  # [T, in]
        down_cast, up_cast = down.to(x.dtype), (up * scaling).to(x.dtype)
        inner = linear(flat, down_cast)  # [T, r]
        out = linear(flat, weight, bias).addmm_(inner, up_cast.t())
        ctx.save_for_backward(flat, inner, weight, down_cast, up_cast)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (down.dtype, up.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        flat, inner, weight, down, up = ctx.saved_tensors
        grad = grad.flatten(0, -2)  # [T, out]
        grad_inner = matmul(grad, up)  # [T, r]
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = matmul(grad, weight).addmm_(grad_inner, down).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            grad_down = (grad_inner.t() @ flat).to(ctx.dtypes[0])
        if ctx.needs_input_grad[4]:
            grad_up = (grad.t() @ inner).mul_(ctx.scaling).to(ctx.dtypes[1])
        return grad_x, None, None, grad_down, grad_up, None


class LoraLinear(nn.Module):
    """y = x W^T + b + (x A^T) B^T, for sampling only. base: makes x W^T + b.

    down (A) [r, in], up (B) [out, r], times its scaling; several LoRAs stand beside each other.
    """

    def __init__(self, base, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        self.base, self.down, self.up = base, down, up
        self.shared: SharedDown | None = None
        self.place = slice(None)  # of this layer's part in what is shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        shared = self.shared
        inner = linear(flat, self.down) if shared is None else shared.inner(x, self.place)
        return self.base(flat).addmm_(inner, self.up.t()).view(*x.shape[:-1], -1)


def add_loras(weight: torch.Tensor, layer, names) -> None:
    """Add scaling * B A of a layer's LoRAs of these names to a weight [out, in], in its format."""
    for name in names:
        up, down = (part[name].weight.to(weight.dtype) for part in (layer.lora_B, layer.lora_A))
        weight.addmm_(up, down, alpha=layer.scaling[name])


class SharedDown:
    """One product x A^T for layers that are given the same x one after the other, as q, k and v.

    layers: in the order in which they run. down: their A, one below the other.
    """

    def __init__(self, layers: list[LoraLinear], down: torch.Tensor):
        self.down = down
        self._x: torch.Tensor | None = None
        self._inner: torch.Tensor | None = None
        start = 0
        for layer in layers:
            layer.place = slice(start, start + len(layer.down))
            layer.down, layer.shared = down[layer.place], self
            start = layer.place.stop

    def inner(self, x: torch.Tensor, place: slice) -> torch.Tensor:
        """Return x A^T of the layer at a place, [T, r]."""
        if self._inner is None or self._x is not x:
            self._x, self._inner = x, linear(x.flatten(0, -2), self.down)
        found = self._inner[:, place]
        if place.stop == len(self.down):  # the last of them
            self._x = self._inner = None
        return found


def plain_lora(module: nn.Module) -> bool:
    """Return True for a linear layer with LoRAs that are nothing but scaling * B A."""
    if not hasattr(module, "lora_A"):
        return False
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
        return False
    plain = not module.fan_in_fan_out and not module.lora_variant
    return plain and not any(module.lora_bias.values())


def whole_lora(module: nn.Module) -> bool:
    """Return True for LoRAs on weights that are no linear layer's, as those of experts."""
    if not hasattr(module, "parameter_name"):
        return False
    from peft.tuners.lora import ParamWrapper

    return type(module) is ParamWrapper and type(module.get_base_layer()) is not nn.Linear


@contextmanager
def fused(model: nn.Module):
    """Inside the block the model's plain LoRA layers go in one piece; others stay as they are."""
    layers = [m for m in model.modules() if plain_lora(m) and "forward" not in m.__dict__]
    try:
        for layer in layers:
            layer.forward = partial(_forward, layer)
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _forward(layer, x: torch.Tensor) -> torch.Tensor:
    base, names = layer.base_layer, layer.active_adapters
    if layer.disable_adapters or layer.merged:
        return base(x) if torch.is_grad_enabled() else linear(x, base.weight, base.bias)
    name = names[0] if len(names) == 1 else None
    noisy = name and layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    if name not in layer.lora_A or noisy or base.weight.requires_grad:
        return type(layer).forward(layer, x)
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return LoraLinearFunction.apply(x, base.weight, base.bias, down, up, layer.scaling[name])
