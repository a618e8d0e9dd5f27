"""From hidden states to log-probabilities of tokens, a chunk of the vocabulary's logits at a time.

The gradient needs no second look at the logits: that of log p(y) with respect to the hidden
state is W_y - sum_v p_v W_v, whatever the loss. So the sum is made in the forward, while the
chunk's logits are there, and the backward is cheap: two matrix products in place of three.
That of the entropy H is -sum_v p_v (log p_v + H) W_v: one product more, where it is asked for.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlm.models.matmul import linear, matmul

# Logits held at once. A GPU is idle between the many small kernels of small chunks; in float32
# 2**27 are 512 MB, and three times that stands there for a moment. A CPU's caches like them small.
LOGITS = {"cpu": 2**23, "cuda": 2**27, "mps": 2**25}
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # by family
SHARE = 1 / 128  # no more logits than this times a GPU's bytes
# Which statistics come beside the log-probabilities, and whether entropies are learned from.
NOTHING, VALUES, GRADIENT = "nothing", "values", "gradient"


def logits_at_once(device: torch.device) -> int:
    """Return how many logits may be held at once on a device: always as many, whatever is free.

    Other chunks round otherwise, and a run that goes on must not.
    """
    most = LOGITS.get(device.type, LOGITS["cpu"])
    if device.type != "cuda":
        return most
    return min(most, int(SHARE * torch.cuda.get_device_properties(device).total_memory))


class LMHead:
    """The output head of a transformers model, as `rlm.learner.logprobs` uses it.

    temperature: divides the logits. size: tokens the tokenizer knows; rows of the head from
    there on count as impossible.
    """

    def __init__(self, base, temperature: float, size: int | None):
        self.layer, self.temperature = base.get_output_embeddings(), temperature
        self.size = size or self.layer.weight.shape[0]
        config = base.config.get_text_config()
        self.cap = next(filter(None, (getattr(config, name, None) for name in CAPS)), None)
        self.scale = _logit_scale(config)
        self.frozen = type(self.layer) is nn.Linear and not any(
            p.requires_grad for p in self.layer.parameters()
        )

    @property
    def chunk(self) -> int:
        """Rows whose logits are held at once, unless the caller knows better."""
        device = self.layer.weight.device
        most = 512 if device.type == "cpu" else 4096
        return max(16, min(most, logits_at_once(device) // self.size))

    def logprobs(self, hidden, targets, rows, wanted: str):
        """Return (log-probabilities [n], statistics [2, n] or None) of targets [n].

        hidden[rows] [n] predicts them. Statistics: the entropies where they stand, and 1 where the
        target is the likeliest token, else 0. wanted: one of NOTHING, VALUES (detached), and
        GRADIENT, with which the entropies are learned from, too.
        """
        if self.frozen:
            weight, bias = self.layer.weight, self.layer.bias
            return FrozenHead.apply(hidden, weight, bias, targets, rows, self, wanted)
        again = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(self._from_logits, hidden, targets, rows, wanted, **again)

    def scaled(self, logits):
        """Return (logits [chunk, size] in float32 as they are sampled from, d capped / d raw)."""
        logits, slope = logits[:, : self.size].float(), None
        logits = logits if self.scale == 1 else logits * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
            slope = 1 - (logits / self.cap) ** 2
        return logits if self.temperature == 1 else logits / self.temperature, slope

    def _from_logits(self, hidden, targets, rows, wanted: str):
        """The same for a head that learns; runs again in the backward."""
        every = self.scaled(self.layer(hidden))[0].log_softmax(-1)
        chosen = pick(every, rows, targets)
        if wanted == NOTHING:
            return chosen, None
        # Without gradient the second run ends before this: nothing below is kept for the backward.
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted == GRADIENT):
            entropy = -(every.exp() * every).sum(-1).index_select(0, rows)
            likeliest = chosen == every.amax(-1).index_select(0, rows)
            return chosen, torch.stack([entropy, likeliest.to(entropy.dtype)])


class OwnLogits(LMHead):
    """The same for logits [n, V] that the model has made itself."""

    def __init__(self, temperature: float, size: int):
        self.layer, self.temperature, self.size = nn.Identity(), temperature, size
        self.cap, self.scale, self.frozen = None, 1.0, False

    @property
    def chunk(self) -> int:
        return max(16, min(512, LOGITS["cpu"] // self.size))


def _logit_scale(config) -> float:
    """Return what a family multiplies its head's products with."""
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    return scale / (getattr(config, "logits_scaling", None) or 1.0)


def pick(table, rows, columns):
    """Return table[rows, columns]; the backward of that expression is slow on a CPU."""
    return table.flatten().gather(0, rows * table.shape[1] + columns)


class FrozenHead(torch.autograd.Function):
    """Log-probabilities and statistics with the gradient of the hidden states only."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, rows, head: LMHead, wanted: str):
        logits, slope = head.scaled(linear(hidden, weight, bias))  # [chunk, size]
        highest = logits.amax(-1, keepdim=True)
        logits.sub_(highest)  # in place, as all below: fresh memory costs more than the sums
        chosen = logits[rows, targets]
        shares = logits.exp() if wanted != NOTHING else logits.exp_()  # times `total`
        total = shares.sum(-1)  # [chunk]
        log_total, found, leaning = total.log(), None, None

        def product(each):
            """Return the mean of W with the weights `each` / total, [chunk, H]."""
            each = each if slope is None else each.mul_(slope)
            return (matmul(each.to(weight.dtype), weight[: head.size]) / total[:, None]).to(
                weight.dtype
            )

        if wanted != NOTHING:
            mean = logits.mul_(shares).sum(-1) / total
            entropy = (log_total - mean).index_select(0, rows)
            # The highest is 0 by now.
            found = torch.stack([entropy, (chosen == 0).to(entropy.dtype)])
        if ctx.needs_input_grad[0]:
            if wanted == GRADIENT:  # p (log p + H) = p (logit - mean)
                leaning = product(logits.addcmul_(shares, mean[:, None], value=-1))
            factor = None if slope is None else slope[rows, targets]
            ctx.save_for_backward(product(shares), leaning, weight, targets, rows, factor)
            ctx.temperature = head.temperature / head.scale
        if found is not None and leaning is None:
            ctx.mark_non_differentiable(found)
        return chosen - log_total.index_select(0, rows), found

    @staticmethod
    def backward(ctx, grad, grad_statistics):
        expected, leaning, weight, targets, rows, factor = ctx.saved_tensors
        grad = grad / ctx.temperature  # [n]
        own = weight.index_select(0, targets).float()  # [n, H]
        own *= (grad if factor is None else grad * factor)[:, None]
        by_row = grad.new_zeros(len(expected)).index_add_(0, rows, grad)
        result = (-by_row[:, None] * expected.float()).index_add_(0, rows, own)
        if leaning is not None:
            grad = grad_statistics[0] / ctx.temperature
            by_row = grad.new_zeros(len(expected)).index_add_(0, rows, grad)
            result -= by_row[:, None] * leaning.float()
        return result.to(expected.dtype), None, None, None, None, None, None
