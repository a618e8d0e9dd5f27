"""Layers with states, a chunk of tokens at a time: delta rules and Mamba-2 in few large products.

    forward = scans.forward_of(module)   # the module's own, with these functions in it

transformers' reference functions of the same names serve where the kernels that it asks for are not
installed. They go through sums of five and six dimensions, or through every token of a chunk in
Python. The functions here take and give the same. What differs: chunks fit the length of the
sequence, so that little is padding; decays below e^-20 are zero, which beside one float32 cannot
tell from it; what does not wait for the state before it is made for all chunks at once.

Shapes: B sequences, T tokens, H heads, N chunks of C tokens, K and V the widths of keys and values.
Sources: gated delta rule arXiv:2412.06464, Kimi's arXiv:2510.26692, Mamba-2 arXiv:2405.21060.

It does not know about caches or sequences in one row: rlm.models.states does.
"""

import inspect
from functools import cache
from importlib.util import find_spec
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import nn

FLOOR = -20.0  # of the logarithm of a decay: what is less counts as zero
NARROW, WIDE = 32, 64  # tokens of a chunk for heads of less than 64 entries, and of more
BY_CHANNEL = 16  # tokens of a chunk whose decays are those of single channels: each pair has K


def chunk_for(tokens: int, most: int) -> int:
    """Return the tokens of a chunk, at most `most`, which leave the least padding.

    >>> chunk_for(99, 32), chunk_for(64, 64), chunk_for(65, 64), chunk_for(1, 64)
    (25, 64, 33, 1)
    """
    return -(-tokens // -(-tokens // most))


def chunked(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return [B, H, N, C, ...] in float32, zero behind the end; x [B, T, H, ...]."""
    x = x.transpose(1, 2)
    missing = -x.shape[2] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, missing))
    return x.unflatten(2, (-1, chunk)).to(torch.float32, memory_format=torch.contiguous_format)


def whole(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return [B, T, H, V] without what was padded; x [B, H, N, C, V]."""
    return x.flatten(2, 3)[:, :, :tokens].transpose(1, 2)


def decayed(logs: torch.Tensor) -> torch.Tensor:
    """Return exp(logs) of logs at most 0, zero below FLOOR."""
    return F.threshold(logs.clamp(min=FLOOR).exp(), 2 * _LEAST, 0.0)


_LEAST = float(torch.tensor(FLOOR).exp())


class Paired(torch.autograd.Function):
    """scores_ij * exp(sums_i - sums_j) for j <= i, else 0.

    scores [..., R, C, C], sums [..., C] the sums of the decays' logarithms so far; R kinds of
    scores have the same decays.
    """

    @staticmethod
    def forward(ctx, scores, sums):
        chunk = sums.shape[-1]
        later = torch.ones(chunk, chunk, dtype=torch.bool, device=sums.device).triu(1)
        logs = sums[..., :, None] - sums[..., None, :]
        logs.masked_fill_(later, FLOOR).clamp_(min=FLOOR)
        decays = F.threshold_(logs.exp_(), 2 * _LEAST, 0.0)[..., None, :, :]
        out = scores * decays
        ctx.save_for_backward(decays, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        decays, out = ctx.saved_tensors
        both = (grad * out).sum(-3)
        return grad * decays, both.sum(-1) - both.sum(-2)


def gated_delta_rule(
    query, key, value, g, beta, chunk_size=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, **kwargs,
):  # fmt: skip
    """Return (outputs [B, T, H, V], the state behind the last token [B, H, K, V] or None).

    query, key [B, T, H, K], value [B, T, H, V]; g [B, T, H] the logarithms of the decays, at most
    0; beta [B, T, H]. chunk_size is not used.
    """
    tokens, kind = query.shape[1], query.dtype
    chunk = chunk_for(tokens, NARROW if key.shape[-1] < WIDE else WIDE)
    query, key, value, g, beta = (chunked(x, chunk) for x in (query, key, value, g, beta))
    query, key = scaled(query, key, use_qk_l2norm_in_kernel)
    sums = g.cumsum(-1)  # [B, H, N, C]
    weighted = key * beta[..., None]
    scores = torch.cat([weighted, query], dim=-2) @ key.transpose(-1, -2)
    scores = Paired.apply(scores.unflatten(-2, (2, chunk)), sums)
    inside, seen = scores.unbind(3)  # [B, H, N, C, C]
    end = sums[..., -1:]
    so_far = decayed(sums)[..., None]
    reads = weighted * so_far, query * so_far
    writes = key * decayed(end - sums)[..., None]
    final = decayed(end)[..., None]  # [B, H, N, 1, 1]
    out, state = _delta(inside, seen, reads, writes, final, value * beta[..., None], initial_state)
    return whole(out, tokens).to(kind), state if output_final_state else None


def kimi_delta_rule(
    query, key, value, g, beta, chunk_size=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, **kwargs,
):  # fmt: skip
    """The same with a decay for each channel of the keys: g [B, T, H, K]."""
    tokens, kind = query.shape[1], query.dtype
    chunk = chunk_for(tokens, BY_CHANNEL)
    query, key, value, g, beta = (chunked(x, chunk) for x in (query, key, value, g, beta))
    query, key = scaled(query, key, use_qk_l2norm_in_kernel)
    sums = g.cumsum(-2)  # [B, H, N, C, K]
    weighted = key * beta[..., None]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=g.device).triu(1)
    logs = sums[..., :, None, :] - sums[..., None, :, :]
    faded = key[..., None, :, :] * decayed(logs.masked_fill(later[..., None], FLOOR))
    # A token's own two rows against what it sees of all keys, [B, H, N, C, K, C].
    scores = torch.stack([weighted, query], dim=-2) @ faded.transpose(-1, -2)
    inside, seen = scores.unbind(-2)
    end = sums[..., -1:, :]
    so_far = decayed(sums)
    reads = weighted * so_far, query * so_far
    writes, final = key * decayed(end - sums), decayed(end).transpose(-1, -2)  # [B, H, N, K, 1]
    out, state = _delta(inside, seen, reads, writes, final, value * beta[..., None], initial_state)
    return whole(out, tokens).to(kind), state if output_final_state else None


def scaled(query: torch.Tensor, key: torch.Tensor, normal: bool):
    """Return queries over the root of their width, and keys; normal: both of length 1 before."""
    scale = query.shape[-1] ** -0.5
    if not normal:
        return query * scale, key
    return Normal.apply(query, scale), Normal.apply(key, 1.0)


class Normal(torch.autograd.Function):
    """Vectors along the last dimension made `scale` long."""

    @staticmethod
    def forward(ctx, x, scale: float):
        factor = scale * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
        out = x * factor
        ctx.save_for_backward(out, factor)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad):
        out, factor = ctx.saved_tensors
        along = (grad * out).sum(-1, keepdim=True) / ctx.scale**2
        return (grad - out * along).mul_(factor), None


def _delta(inside, seen, reads, writes, final, value, state):
    """Return (outputs [B, H, N, C, V], last state) of a delta rule from its chunks' products.

    inside, seen [B, H, N, C, C]: products of a chunk's keys with its keys (of which the part below
    the diagonal counts) and of its queries with its keys. reads: keys and queries [B, H, N, C, K]
    with which a chunk reads the state before it; writes: keys with which it is written; final
    [B, H, N, K or 1, 1]: what is left of it behind the chunk. value: times beta.
    """
    shape = value.shape
    width = shape[-1]
    solved = torch.linalg.solve_triangular(
        inside, torch.cat([value, reads[0]], dim=-1), upper=False, unitriangular=True
    )
    own, known = (x.flatten(0, 1) for x in solved.split([width, solved.shape[-1] - width], -1))
    if state is None:
        state = value.new_zeros(*shape[:2], writes.shape[-1], width)
    state = state.to(value).flatten(0, 1)  # [B * H, K, V]
    steps = [own, known, writes.flatten(0, 1).transpose(-1, -2), final.flatten(0, 1)]
    before, new = [], []
    for values, keys, back, left in zip(*(x.unbind(1) for x in steps), strict=True):
        before.append(state)
        new.append(torch.baddbmm(values, keys, state, alpha=-1))
        state = torch.baddbmm(state * left, back, new[-1])
    # All chunks at once again, [B * H * N, C, ..].
    before, new = (torch.stack(x, dim=1).flatten(0, 1) for x in (before, new))
    out = torch.baddbmm(seen.flatten(0, 2) @ new, reads[1].flatten(0, 2), before)
    return out.view(shape), state.unflatten(0, shape[:2])


def mamba2_scan(
    hidden_states, dt, A, B, C, chunk_size=None, D=None, dt_bias=None, initial_states=None,
    dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False, **kwargs,
):  # fmt: skip
    """Return outputs [B, T, H, V] in float32, and the last state [B, H, V, K] if it is asked for.

    hidden_states [B, T, H, V], dt [B, T, H], A [H]; B and C [B, T, groups, K], each for as many
    heads; D [H] or None. chunk_size is not used.
    """
    tokens, heads, groups = hidden_states.shape[1], hidden_states.shape[2], B.shape[2]
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit).float()
    chunk = chunk_for(tokens, WIDE)
    values = chunked(hidden_states.float() * dt[..., None], chunk)  # [B, H, N, C, V]
    keys, queries = (chunked(x, chunk) for x in (B, C))  # [B, groups, N, C, K]
    sums = chunked(A.float() * dt, chunk).cumsum(-1)
    scores = queries @ keys.transpose(-1, -2)  # once for the heads of a group
    grouped = sums.unflatten(1, (groups, -1)).movedim(2, 3)  # [B, groups, N, heads of it, C]
    seen = Paired.apply(scores[:, :, :, None, None], grouped)[..., 0, :, :]
    seen = seen.movedim(3, 2).flatten(1, 2)  # [B, H, N, C, C]
    end = sums[..., -1:]
    each = heads // groups
    keys, queries = (x.repeat_interleave(each, 1) if each > 1 else x for x in (keys, queries))
    made = (values * decayed(end - sums)[..., None]).transpose(-1, -2) @ keys  # [B, H, N, V, K]
    state = initial_states
    state = made.new_zeros(made[:, :, 0].shape) if state is None else state.float()
    before = []
    for own, left in zip(made.unbind(2), decayed(end)[..., None].unbind(2), strict=True):
        before.append(state)
        state = state * left + own
    read = queries @ torch.stack(before, dim=2).transpose(-1, -2)
    out = whole(seen @ values + read * decayed(sums)[..., None], tokens)
    if D is not None:
        out = out + D[..., None] * hidden_states.float()
    return (out, state) if return_final_states else out


# --- in the place of transformers' own

# transformers' names, what serves, and whose kernels are taken instead where they are installed.
FASTER = {
    "torch_chunk_gated_delta_rule": (gated_delta_rule, "fla"),
    "chunk_kimi_delta_attention": (kimi_delta_rule, "fla"),
    "mamba2_chunk_scan": (mamba2_scan, "mamba_ssm"),
}


def forward_of(module: nn.Module):
    """Return the forward of a module's class with the functions above in it."""
    if any(hasattr(child, "_hf_hook") for child in module.children()):  # accelerate's offloading
        return type(module).forward
    return _with_ours(type(module).forward)


@cache
def _with_ours(forward):
    plain = inspect.unwrap(forward)
    ours = {
        name: function
        for name, (function, package) in FASTER.items()
        if name in plain.__globals__ and find_spec(package) is None
    }
    if not ours:
        return forward
    made = FunctionType(
        plain.__code__, plain.__globals__ | ours, plain.__name__, plain.__defaults__,
        plain.__closure__,
    )  # fmt: skip
    made.__kwdefaults__ = plain.__kwdefaults__
    return made
