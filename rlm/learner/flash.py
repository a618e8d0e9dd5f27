"""Attention of packed groups by flash kernels of variable length: no mask, no padding.

Two calls a layer: each prompt and each completion attends to itself causally; the completions of
a group attend to their prompt. A completion's token is the sum of both parts, each weighted by its
share of the softmax's denominator:

    lse = log(exp(lse_1) + exp(lse_2)),  out = out_1 exp(lse_1 - lse) + out_2 exp(lse_2 - lse)

The backward gives each part the joined out and lse, which makes its gradient exact (as blocks do
in ring attention, arXiv:2310.01889). Keys stand once, however many completions share a prompt, and
memory grows with the tokens, not with their square (FlashAttention-2, arXiv:2307.08691).

Under a window a completion would see another part of its prompt at each token, so there its
completions have copies of as many of the prompt's last keys as the window reaches.

It does not know what is attended to; rlm.learner.packed_groups asks it where `serves`.
"""

import logging
from functools import cache
from itertools import accumulate

import torch

logger = logging.getLogger("rlm")

aten = torch.ops.aten
WIDEST = 256  # entries of a head, at most
TOLERANCE = 0.05  # of the largest value, between bfloat16 kernels that round in another order


def kernel(q, k, v, spans, scale, *, causal: bool, window: int | None = None):
    """Return (out [T, H, D], log-sum-exp [H, T] float32, state for `kernel_backward`).

    q [T, H, D], k and v [S, KV, D], contiguous. spans: (cu_q, cu_k, longest q, longest k), the
    first two int32 starts of each sequence and the end. Causal: the last query sees the last key.
    """
    out, lse, *state, _ = aten._flash_attention_forward(
        q, k, v, *spans, 0.0, causal, False, scale=scale, **_sides(window)
    )
    return out, lse, tuple(state)


def kernel_backward(grad, q, k, v, out, lse, spans, scale, state, *, causal, window=None):
    """Return the gradients of q, k and v."""
    return aten._flash_attention_backward(
        grad, q, k, v, out, lse, *spans, 0.0, causal, *state, scale=scale, **_sides(window)
    )


def _sides(window: int | None) -> dict:
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


class Plan:
    """Where the sequences of packed groups lie; the arguments are those of `PackedGroups`."""

    def __init__(self, prompts: list[int], completions: list[tuple[int, int]], device):
        self._prompts, self._completions, self._device = prompts, completions, device
        self.prompt_tokens = sum(prompts)
        lengths = [*prompts, *(tokens for _, tokens in completions)]
        starts = list(accumulate(lengths, initial=0))
        self._starts = starts[len(prompts) : -1]
        self.longest = max(prompts) + max((tokens for _, tokens in completions), default=0)
        self.own = self._spans(lengths, lengths)
        self._windowed: dict[int, tuple] = {}
        # The completions' tokens, group after group, and each group's prompt.
        groups: list[list[int]] = [[] for _ in prompts]
        for (owner, tokens), start in zip(completions, self._starts, strict=True):
            groups[owner] += range(start, start + tokens)
        order = [i for group in groups for i in group]
        self.order = torch.tensor(order, dtype=torch.long, device=device)
        self.shared = self._spans([len(group) for group in groups], prompts)

    def windowed(self, window: int) -> tuple:
        """Return (spans of the prompts, of the completions, indices of the latter's keys)."""
        if window not in self._windowed:
            ends = list(accumulate(self._prompts))
            keys, lengths = [], []
            for (owner, tokens), start in zip(self._completions, self._starts, strict=True):
                reached = min(self._prompts[owner], window - 1)
                keys += [*range(ends[owner] - reached, ends[owner]), *range(start, start + tokens)]
                lengths.append(reached + tokens)
            self._windowed[window] = (
                self._spans(self._prompts, self._prompts),
                self._spans([tokens for _, tokens in self._completions], lengths),
                torch.tensor(keys, dtype=torch.long, device=self._device),
            )
        return self._windowed[window]

    def _spans(self, queries: list[int], keys: list[int]) -> tuple:
        starts = [list(accumulate(x, initial=0)) for x in (queries, keys)]
        cu = [torch.tensor(x, dtype=torch.int32, device=self._device) for x in starts]
        # For single queries the kernels swap rows and heads, and the log-sum-exp with them.
        return *cu, max([2, *queries]), max([2, *keys])


def attend(plan: Plan, query, key, value, scaling, window: int | None) -> torch.Tensor:
    """Return [N, H, D]. query [H, N, D], key and value [KV, N, D]."""
    q, k, v = (x.transpose(0, 1).contiguous() for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    if window is None or window >= plan.longest:
        return Joined.apply(q, k, v, plan, scale)
    n = plan.prompt_tokens
    prompts, completions, keys = plan.windowed(window)
    out = Windowed.apply(q[:n], k[:n], v[:n], prompts, scale, window)
    if n == len(q):
        return out
    k, v = k.index_select(0, keys), v.index_select(0, keys)
    return torch.cat([out, Windowed.apply(q[n:], k, v, completions, scale, window)])


class Windowed(torch.autograd.Function):
    """One causal call, with a window."""

    @staticmethod
    def forward(ctx, q, k, v, spans, scale, window):
        out, lse, state = kernel(q, k, v, spans, scale, causal=True, window=window)
        ctx.save_for_backward(q, k, v, out, lse, *state)
        ctx.call = spans, scale, window
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse, *state = ctx.saved_tensors
        spans, scale, window = ctx.call
        grads = kernel_backward(
            grad.contiguous(), q, k, v, out, lse, spans, scale, state, causal=True, window=window
        )
        return *grads, None, None, None


class Joined(torch.autograd.Function):
    """Both parts, joined."""

    @staticmethod
    def forward(ctx, q, k, v, plan: Plan, scale):
        out, lse, own = kernel(q, k, v, plan.own, scale, causal=True)
        states = [own]
        if len(plan.order):
            n, order = plan.prompt_tokens, plan.order
            picked = q.index_select(0, order)
            more, lse_2, state = kernel(picked, k[:n], v[:n], plan.shared, scale, causal=False)
            lse_1 = lse.index_select(1, order)
            both = torch.logaddexp(lse_1, lse_2)
            share_1, share_2 = ((x - both).exp().t()[..., None] for x in (lse_1, lse_2))
            joined = out.index_select(0, order) * share_1 + more * share_2  # float32
            out, lse = out.index_copy(0, order, joined.to(q.dtype)), lse.index_copy(1, order, both)
            states.append(state)
        ctx.save_for_backward(q, k, v, out, lse, *(x for state in states for x in state))
        ctx.call = plan, scale, len(own)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse, *states = ctx.saved_tensors
        plan, scale, count = ctx.call
        grad = grad.contiguous()
        own = states[:count]
        dq, dk, dv = kernel_backward(grad, q, k, v, out, lse, plan.own, scale, own, causal=True)
        if len(plan.order):
            n, order = plan.prompt_tokens, plan.order
            parts = [x.index_select(0, order) for x in (grad, q, out)]
            lse = lse.index_select(1, order)
            more = kernel_backward(
                parts[0], parts[1], k[:n], v[:n], parts[2], lse, plan.shared, scale,
                states[count:], causal=False,
            )  # fmt: skip
            dq.index_add_(0, order, more[0])
            dk[:n] += more[1]
            dv[:n] += more[2]
        return dq, dk, dv, None, None


# --- where it serves


def serves(query, key, value, rules) -> bool:
    """Return whether the kernels do what a layer wants: half precision, from Ampere on.

    rules: `rlm.models.attention.Rules`. On its first use the result is compared with that of the
    masked attention; where it is another, a line says so and the masked one goes on.
    """
    heads, _, width = query.shape
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if rules.cap or rules.sinks is not None or width % 8 or width > WIDEST:
        return False
    if value.shape[-1] != width:
        return False
    return _trusted(query.device, query.dtype, heads, len(key), width, rules.window is not None)


@cache
def _trusted(device, dtype, heads: int, shared: int, width: int, windowed: bool) -> bool:
    """Return whether outputs and gradients are those of the masked attention, on a small case."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        gap = difference(device, dtype, heads, shared, width, 5 if windowed else None)
    except RuntimeError as error:
        gap, reason = float("inf"), str(error).splitlines()[0]
    else:
        reason = f"it differs by {gap:.1%} of the largest value"
    if gap > TOLERANCE or gap != gap:
        logger.warning(
            "no flash attention in the learner (%s); going on with masks, which take memory with "
            "the square of the length", reason,
        )  # fmt: skip
        return False
    return True


def difference(device, dtype, heads: int, shared: int, width: int, window: int | None) -> float:
    """Return the largest gap to the masked attention, of outputs and gradients, over its largest.

    The case has what can go wrong: prompts and completions of several lengths, one of a token.
    """
    from rlm.learner.packed_groups import PackedGroups
    from rlm.models.attention import Rules

    prompts, completions = [9, 3], [(0, 11), (1, 8), (0, 5), (1, 1)]
    tokens, rules = sum(prompts) + sum(n for _, n in completions), Rules(window)
    generator = torch.Generator().manual_seed(0)  # the run's own numbers stay as they are
    made = [
        torch.randn(n, tokens, width, generator=generator).to(device, dtype)
        for n in (heads, shared, shared, heads)
    ]
    layout, found = PackedGroups(prompts, completions, device), []
    # Hooks of one's own: this may run inside a forward whose saved tensors are counted.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), plain:
        for flash in (False, True):
            q, k, v = (x.clone().requires_grad_() for x in made[:3])
            way = layout.by_flash if flash else layout.by_masks
            out = way(q, k, v, None, rules)  # [N, H, D]
            grads = torch.autograd.grad(out, (q, k, v), made[3].transpose(0, 1))
            found.append([x.detach().float() for x in (out, *grads)])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))
