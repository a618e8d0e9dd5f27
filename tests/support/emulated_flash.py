"""What flash kernels of variable length compute, by plain sums in float64 on a CPU.

`use(monkeypatch)` puts them in the place of CUDA's and lets every layer take them.
"""

from itertools import pairwise

import torch

from rlm.learner import flash


def use(monkeypatch) -> list:
    """Let the learner attend by emulated kernels; return a list that counts their calls."""
    calls: list[str] = []

    def counted(name, work):
        return lambda *args, **options: (calls.append(name), work(*args, **options))[1]

    monkeypatch.setattr(flash, "kernel", counted("forward", kernel))
    monkeypatch.setattr(flash, "kernel_backward", counted("backward", kernel_backward))
    monkeypatch.setattr(flash, "serves", lambda q, k, v, rules: rules.sinks is None)
    return calls


def _pairs(spans):
    cu_q, cu_k, longest_q, longest_k = spans
    assert cu_q.dtype == cu_k.dtype == torch.int32
    for q, k in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        assert q[1] - q[0] <= longest_q and k[1] - k[0] <= longest_k
        yield slice(*q), slice(*k)


def _scores(q, k, scale, causal, window):
    """[H, q, k]; the last query sees the last key."""
    scores = torch.einsum("qhd,khd->hqk", q.double(), _spread(k, q)) * scale
    queries, keys = scores.shape[1:]
    place = torch.arange(queries)[:, None] + keys - queries
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen &= torch.arange(keys) <= place
    if window is not None:
        seen &= torch.arange(keys) > place - window
    return scores.masked_fill(~seen, float("-inf"))


def _spread(x, q):
    return x.double().repeat_interleave(q.shape[1] // x.shape[1], 1)


def kernel(q, k, v, spans, scale, *, causal, window=None):
    out, lse = torch.zeros_like(q), torch.full(q.shape[1::-1], float("-inf"))
    for here, there in _pairs(spans):
        scores = _scores(q[here], k[there], scale, causal, window)
        lse[:, here] = scores.logsumexp(-1).float()
        own = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _spread(v[there], q))
        out[here] = own.to(q.dtype)
    return out, lse, (torch.zeros(2), torch.zeros(()))


def kernel_backward(grad, q, k, v, out, lse, spans, scale, state, *, causal, window=None):
    assert len(state) == 2
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    group = q.shape[1] // k.shape[1]
    for here, there in _pairs(spans):
        shares = _scores(q[here], k[there], scale, causal, window) - lse[:, here, None].double()
        shares, g = shares.exp(), grad[here].double()
        values, keys = _spread(v[there], q), _spread(k[there], q)
        delta = (g * out[here].double()).sum(-1).t()[..., None]  # [H, q, 1]
        ds = shares * (torch.einsum("qhd,khd->hqk", g, values) - delta) * scale
        dq[here] = torch.einsum("hqk,khd->qhd", ds, keys).to(q.dtype)
        for into, own in (
            (dk, torch.einsum("hqk,qhd->khd", ds, q[here].double())),
            (dv, torch.einsum("hqk,qhd->khd", shares, g)),
        ):
            into[there] += own.unflatten(1, (-1, group)).sum(2).to(k.dtype)
    return dq, dk, dv
