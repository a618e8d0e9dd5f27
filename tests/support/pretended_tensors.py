"""The tensors of tests/support/pretended_cuda.py: what they compute, refuse and count.

It imports torch, so that it is imported once the guard is loaded.
"""

from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.support.pretended_cuda import Counts, Mixed, where

# Operations without a kernel on a GPU: they change what is said of a tensor, or reserve memory.
FREE = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select",
    "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unflatten", "split", "unbind",
    "empty", "new_empty", "empty_like", "lift_fresh", "chunk", "narrow", "split_with_sizes",
    "_reshape_alias", "is_pinned", "set_", "new_empty_strided", "empty_strided", "view_as",
    "diagonal", "numpy_T", "sym_size", "is_same_size", "unfold",
}  # fmt: skip
# Operations that copy only where a view cannot do.
VIEWS = {"reshape", "flatten", "contiguous"}
# Operations whose result has a size that only the device knows.
WAITING = {
    "nonzero", "unique_dim", "_unique2", "masked_select", "unique_consecutive", "repeat_interleave",
}  # fmt: skip
# Operations that take indices from the CPU, by a copy.
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Compute capability and memory in GB of cards.
CARDS = {"t4": ((7, 5), 16), "4090": ((8, 9), 24), "a100": ((8, 0), 80), "h100": ((9, 0), 80)}

COUNTS = Counts()
CARD, CUDNN = "h100", False  # what is pretended
SDPA = F.scaled_dot_product_attention


class Pretended(torch.Tensor):
    """Says cuda:0; `real` is the CPU tensor behind it."""

    real: torch.Tensor
    __slots__ = ["real"]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    @torch.inference_mode(False)  # a view of what is no inference tensor may not be one
    def __new__(cls, real, requires_grad=False):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device="cuda:0",
            requires_grad=requires_grad,
        )
        made.real = real
        return made

    def __repr__(self):
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def data_ptr(self):
        return self.real.data_ptr()

    def tolist(self):
        COUNTS.syncs[f"tolist at {where()}"] += 1
        return self.real.tolist()


class Machine(TorchDispatchMode):
    """Operations that make a tensor on the device out of nothing come by here."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def real(tree):
    """Return arguments with the CPU tensors behind pretended ones, and the CPU for the device."""

    def one(x):
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return x.real if isinstance(x, Pretended) else x

    return tree_map(one, tree)


def on_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def device_of(args, kwargs) -> torch.device | None:
    """Return the device that an operation was told, by whichever argument."""
    told = (x for x in (kwargs.get("device"), *args) if isinstance(x, torch.device))
    return next(told, None)


def run(func, args, kwargs):
    """Return what an operation returns; count it, and refuse what CUDA would refuse."""
    name = func._schema.name.split("::")[-1]
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, Pretended)]
    if name in ("_to_copy", "to"):
        return _moved(func, args, kwargs)
    if name == "copy_":
        return _copied(func, args, kwargs)
    if name == "_local_scalar_dense" and ours:
        COUNTS.syncs[f"item at {where()}"] += 1
        return func(*real(args), **real(kwargs))
    if not ours and not on_cuda(device_of(args, kwargs)):
        return func(*args, **kwargs)
    if name in WAITING:
        COUNTS.syncs[f"{name} at {where()}"] += 1
    others = [tuple(x.shape) for x in tensors if not isinstance(x, Pretended) and x.dim()]
    if ours and others:
        if name not in INDEXED:
            raise Mixed(f"{name}: CPU tensors {others} beside CUDA at {where()}")
        COUNTS.copies[f"index at {where()}"] += 1
    out = func(*real(args), **real(kwargs))
    if name not in FREE and not (name in VIEWS and out.data_ptr() == real(args[0]).data_ptr()):
        COUNTS.kernels[name] += 1
    same = {id(x.real): x for x in ours}  # in place: the tensor that was given

    def pretended(x):
        if not isinstance(x, torch.Tensor):
            return x
        return same[id(x)] if id(x) in same else Pretended(x)

    return tree_map(pretended, out)


def _moved(func, args, kwargs):
    source, device = args[0], device_of(args, kwargs)
    here = isinstance(source, Pretended)
    there = here if device is None else on_cuda(device)
    out = func(*real(args), **real(kwargs))
    out = out.clone() if out is real(source) else out
    if here and there:
        COUNTS.kernels["_to_copy"] += 1
    elif here:
        COUNTS.syncs[f"to the CPU at {where()}"] += 1
    elif there:
        COUNTS.copies[where()] += 1
    return Pretended(out) if there else out


def _copied(func, args, kwargs):
    target, source = args[0], args[1]
    if isinstance(target, Pretended) and isinstance(source, Pretended):
        COUNTS.kernels["copy_"] += 1
    elif isinstance(target, Pretended):
        COUNTS.copies[where()] += 1
    elif isinstance(source, Pretended):
        COUNTS.syncs[f"copy_ to the CPU at {where()}"] += 1
    func(*real(args), **real(kwargs))
    return target


def kernel_of(query, key, value, mask, causal: bool, grouped: bool) -> str:
    """Return the attention kernel that CUDA takes: cudnn, flash, efficient or math."""
    major = CARDS[CARD][0][0]
    half = query.dtype in (torch.float16, torch.bfloat16)
    depth = query.shape[-1]
    heads = query.shape[1] == key.shape[1]
    if not all(x.stride(-1) == 1 for x in (query, key, value)):
        return "math"
    fits = half and major >= 8 and (heads or grouped)
    if CUDNN and major in (9, 10) and fits and depth <= 128 and not depth % 8 and key.shape[2] != 1:
        return "cudnn"
    if fits and mask is None and depth <= 256 and not (causal and query.shape[2] != key.shape[2]):
        return "flash"
    aligned = not depth % (8 if half else 4)
    known = query.dtype != torch.bfloat16 or major >= 8
    return "efficient" if heads and aligned and known else "math"


class Fused(torch.autograd.Function):
    """Attention as one kernel forward and three backward; keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx, query, key, value, bias, causal, scale, grouped):
        parts = [real(x).float() for x in (query, key, value)]
        mask = None if bias is None else real(bias).float()
        out = SDPA(*parts, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
        COUNTS.kernels["attention"] += 1
        ctx.options = causal, scale, grouped
        ctx.save_for_backward(query, key, value, *([] if bias is None else [bias]))
        return Pretended(out.to(query.dtype))

    @staticmethod
    def backward(ctx, grad):
        query, key, value, *bias = ctx.saved_tensors
        causal, scale, grouped = ctx.options
        parts = [real(x).detach().float().requires_grad_() for x in (query, key, value)]
        mask = real(bias[0]).float() if bias else None
        with torch.enable_grad():
            out = SDPA(*parts, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
        COUNTS.kernels["attention backward"] += 3
        found = torch.autograd.grad(out, parts, real(grad).float())
        return *(Pretended(x.to(query.dtype)) for x in found), None, None, None, None


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Stands for F.scaled_dot_product_attention."""
    options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    tensors = [query, key, value, *([] if attn_mask is None else [attn_mask])]
    if not any(isinstance(x, Pretended) for x in tensors):
        return SDPA(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options)
    if not all(isinstance(x, Pretended) for x in tensors):
        raise Mixed(f"attention: CPU tensors beside CUDA at {where()}")
    name = kernel_of(query, key, value, attn_mask, is_causal, enable_gqa)
    bias, padded = attn_mask, False
    if bias is not None and bias.dtype == torch.bool:  # a copy of the mask's size, at each call
        zeros = torch.zeros_like(bias, dtype=query.dtype)
        bias = zeros.masked_fill_(bias.logical_not(), float("-inf"))
    if bias is not None and name == "efficient":
        padded = any(stride % 8 for stride in bias.stride()[:-1]) or bias.shape[-1] % 8 != 0
        if padded:
            wide = F.pad(bias, (0, -bias.shape[-1] % 8 or 8))
            bias = wide[..., : bias.shape[-1]]
    kind = "mask" if attn_mask is not None else "causal" if is_causal else "full"
    COUNTS.attention[name, kind, padded] += 1
    if bias is not None:
        bias = bias.expand(*query.shape[:3], key.shape[2])
    if name == "math":
        COUNTS.kernels["attention by math"] += 8
    return Fused.apply(query, key, value, bias, is_causal, scale, enable_gqa)


@contextmanager
def pretend(card: str = "h100", *, cudnn: bool = False):
    """Inside the block there is a card; gives out the counts. cudnn: torch's choice has it, too."""
    global CARD, CUDNN
    CARD, CUDNN = card, cudnn
    capability, gigabytes = CARDS[card]
    size = gigabytes * 2**30
    said = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "get_device_capability": lambda device=None: capability,
        "mem_get_info": lambda device=None: (size - 2**30, size),
        "device_count": lambda: 0,  # nothing sets a seed or a state on it
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        **{name: lambda device=None: 0 for name in
           ("memory_reserved", "memory_allocated", "max_memory_allocated")},
    }  # fmt: skip
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) comes by as a copy
    COUNTS.clear()
    try:
        with (
            mock.patch.multiple(torch.cuda, **said),
            mock.patch.object(F, "scaled_dot_product_attention", attention),
            Machine(),
        ):
            yield COUNTS
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


def to_cuda(model):
    """Turn a model's parameters and buffers into pretended ones, in place, and return it."""
    done: dict[int, torch.nn.Parameter] = {}  # what is shared stays shared
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                made = torch.nn.Parameter(Pretended(weight.data), weight.requires_grad)
                module._parameters[name] = done.setdefault(id(weight), made)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Pretended(buffer)
    return model
