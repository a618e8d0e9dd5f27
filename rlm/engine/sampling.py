"""Draw the next token of each row: exact, vectorised, one uniform number a row.

A row's token depends on its own logits, settings and number alone, whatever rows stand beside
it: greedy rows, plain rows and rows with top-k or top-p each go their own way. Logits that are not
finite give a log-probability of NaN and whatever token, never one past the end. Pure functions.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch.nn import functional

from rlm.errors import InputError
from rlm.tools.toolbox import Toolbox

logger = logging.getLogger("rlm")

BLOCK = 256  # vocabulary entries of a block of the two-level draw
COLDEST = 1e-6  # lower temperatures would overflow float32: they are greedy
CANDIDATES = 1024  # highest logits looked at first for top-p


@dataclass(frozen=True)
class Closing:
    """When a reasoning that does not end is closed by force.

    after: tokens of the completion that it may take. ids: the tokens that are then put in, which
    count as sampled. opener, closer: the texts around the reasoning; a completion that does not
    begin with the opener, or has its closer already, is left alone.
    """

    after: int
    ids: tuple[int, ...]
    opener: str
    closer: str


@dataclass(frozen=True)
class Sampling:
    """How to sample a completion.

    max_tokens: at most so many tokens are sampled, the end token included.
    temperature: 0 is greedy. top_k: only the k likeliest tokens, 0 for all.
    top_p: only the likeliest tokens that together reach this share, after top_k.
    stop: texts that end the completion and are kept out of it.
    closing: bounds the reasoning inside the completion.
    top_logprobs: so many of the likeliest tokens are told beside each sampled one
        (`rlm.records.Choice`); None tells nothing.
    tools: what the completion may call; the tokens of results come on top of max_tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    closing: Closing | None = None
    top_logprobs: int | None = None
    tools: Toolbox | None = None

    def __post_init__(self):
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens}: at least 1 token is needed")
        if not 0.0 <= self.temperature < math.inf:
            raise InputError(f"temperature {self.temperature}: use 0 (greedy) or more")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k}: use 0 (all tokens) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p {self.top_p}: use a share above 0, up to 1 (all tokens)")
        if not isinstance(self.stop, tuple | list) or not all(self.stop):
            raise InputError(f"stop {self.stop!r}: use a tuple of texts that are not empty")

    @cached_property
    def way(self) -> str:
        """Return which of the three draws below serves it: greedy, plain or cut."""
        if self.temperature < COLDEST:
            return "greedy"
        return "cut" if self.top_k or self.top_p < 1.0 else "plain"


class Mix:
    """The settings of the rows that run, a place for each, and what follows of them.

    It serves every step until a row joins or leaves.
    """

    def __init__(self, settings: list[Sampling]):
        self.settings = settings
        self._kinds = {id(setting): setting for setting in settings}

    @cached_property
    def cuts(self) -> bool:
        """Whether a row has top-k or top-p."""
        return any(setting.way == "cut" for setting in self._kinds.values())

    @cached_property
    def closes(self) -> bool:
        """Whether a row may have tokens that are put in."""
        return any(setting.closing for setting in self._kinds.values())

    @cached_property
    def top_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told at most, None where no row asks for them."""
        asked = [s.top_logprobs for s in self._kinds.values() if s.top_logprobs is not None]
        return max(asked, default=None)

    @cached_property
    def temperatures(self) -> list[float]:
        """The temperature of each row, 0 for greedy ones."""
        told = {i: 0.0 if s.way == "greedy" else s.temperature for i, s in self._kinds.items()}
        return [told[id(setting)] for setting in self.settings]


@dataclass(frozen=True)
class Draws:
    """What one step draws with, a place for each row.

    numbers: in [0, 1). due, size: as `sample` has them.
    """

    numbers: list[float]
    mix: Mix
    size: int
    due: dict[int, int] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether all rows are greedy or plain, which `draw_plainly` serves."""
        return not self.due and not self.mix.cuts and self.mix.top_logprobs is None

    def take(self, logits, uniforms=None) -> torch.Tensor:
        """Return [2, n] float32: a token and its log-probability for each row of logits [n, V].

        uniforms: the numbers, where they are on the device already. An id below 2**24 is exact in
        float32, so that one transfer brings both, and [2 * k + 1, n] more of `chosen_from` where a
        row asks for the k likeliest tokens.
        """
        if uniforms is None:
            uniforms = torch.tensor(self.numbers, device=logits.device)
        tokens, logprobs = sample(logits, uniforms, self.mix.settings, self.size, self.due)
        drawn = torch.stack([tokens.float(), logprobs])
        if self.mix.top_logprobs is None:
            return drawn
        return torch.cat(
            [drawn, chosen_from(logits[:, : self.size], tokens, self.mix.top_logprobs)]
        )


def chosen_from(logits, tokens, count: int) -> torch.Tensor:
    """Return [1 + 2 * k, n] float32: the tokens' log-probabilities at temperature 1, and the
    ids and log-probabilities of the k likeliest, `count` or as many as there are.
    """
    logprobs = logits.float().log_softmax(1)
    values, ids = logprobs.topk(min(count, logprobs.shape[1]), dim=1)  # [n, k]
    return torch.cat([logprobs.gather(1, tokens[:, None]).T, ids.T.float(), values.T])


def sample(logits, uniforms, settings: list[Sampling], size: int, due=None):
    """Return (tokens [n], log-probabilities [n] float32) for logits [n, V].

    uniforms: [n] numbers in [0, 1). settings: one per row. size: ids from here on are never
    drawn (Qwen2.5 pads its vocabulary beyond the tokenizer's), and have no share of the
    probability. A log-probability is that of softmax(logits[:size] / temperature), before top-k
    and top-p cut it; the temperature counts as 1 for greedy rows.
    due: row -> the token that is put in instead of a drawn one, with its log-probability.
    """
    logits = logits[:, :size].float()  # [n, size]
    tokens, logprobs = _draw(logits, uniforms, settings)
    for row, token in (due or {}).items():
        own, setting = logits[row : row + 1], settings[row]
        tokens[row] = token
        scaled = own if setting.way == "greedy" else _scale(own, [setting])
        logprobs[row] = logprobs_of(scaled, tokens[row : row + 1])[0]
    return tokens, logprobs


def _draw(logits, uniforms, settings):
    """Return (tokens [n], log-probabilities [n]); the rows of each way are drawn together."""
    ways = {setting.way for setting in {id(setting): setting for setting in settings}.values()}
    if len(ways) == 1:
        return DRAWS[settings[0].way](logits, uniforms, settings)
    rows: dict[str, list[int]] = {}
    for row, setting in enumerate(settings):
        rows.setdefault(setting.way, []).append(row)
    tokens = torch.empty(len(settings), dtype=torch.long, device=logits.device)
    logprobs = torch.empty(len(settings), device=logits.device)
    for way, members in rows.items():
        index = torch.tensor(members, device=logits.device)
        own = [settings[row] for row in members]
        tokens[index], logprobs[index] = DRAWS[way](logits[index], uniforms[index], own)
    return tokens, logprobs


def draw_greedy(logits, uniforms, settings):
    """Return the likeliest tokens and their log-probabilities at temperature 1."""
    tokens = logits.argmax(1)
    return tokens, logprobs_of(logits, tokens)


def draw_plain(logits, uniforms, settings):
    """Return tokens by the inverse of the cumulative distribution, and log-probabilities.

    Large vocabularies go in two levels: sums of blocks first, then inside one block, so that
    nothing of size V is accumulated or sorted.
    """
    scaled = _scale(logits, settings)
    highest = scaled.amax(1, keepdim=True)
    weights = (scaled - highest).exp_()  # [n, size]
    tokens = _inverted(weights, uniforms)
    chosen = scaled.gather(1, tokens[:, None])[:, 0]
    return tokens, chosen - highest[:, 0] - weights.sum(1).log()


def draw_plainly(logits, uniforms, temperatures, size: int) -> torch.Tensor:
    """Return [2, n] float32, tokens and log-probabilities as `sample` has them, from logits [n, V].

    For greedy and plain rows, by tensors alone, so that it can be a part of a CUDA graph.
    temperatures: [n], 0 for greedy rows.
    """
    logits = logits[:, :size]
    greedy = temperatures == 0
    divisor = temperatures.masked_fill(greedy, 1.0)
    # One float32 copy of the logits, in place from here on: it is what takes the memory.
    weights = logits.to(torch.float32, copy=True).div_(divisor[:, None])
    highest = weights.amax(1, keepdim=True)
    weights.sub_(highest).exp_()
    tokens = torch.where(greedy, logits.argmax(1), _inverted(weights, uniforms))
    chosen = logits.gather(1, tokens[:, None])[:, 0].float() / divisor
    return torch.stack([tokens.float(), chosen - highest[:, 0] - weights.sum(1).log()])


def draw_fused(logits, uniforms, temperatures, size: int) -> torch.Tensor:
    """Return what `draw_plainly` returns, but for rounding, in half as much traffic of a GPU.

    Four passes: the highest logit of each row and where it is, logits to float32 with temperature
    and highest, exp, sums of blocks. Type promotion is a part of the second pass's kernel.
    """
    logits = logits[:, :size]
    greedy = temperatures == 0
    shrink = temperatures.masked_fill(greedy, 1.0).reciprocal()
    highest, likeliest = logits.max(1)
    offset = -highest.float() * shrink
    weights = torch.addcmul(offset[:, None], logits, shrink[:, None]).exp_()  # [n, size] float32
    sums = _block_sums(weights) if _is_large(size) else weights.sum(1, keepdim=True)
    tokens = torch.where(greedy, likeliest, _inverted(weights, uniforms, sums))
    chosen = weights.gather(1, tokens[:, None])[:, 0]
    return torch.stack([tokens.float(), chosen.log() - sums.sum(1).log()])


@cache
def drawing(device: torch.device, dtype: torch.dtype) -> Callable:
    """Return what draws greedy and plain rows on a device: `draw_fused` on CUDA if it is right.

    Not to be called while a graph is captured: the first call looks at a small case.
    """
    if device.type != "cuda":
        return draw_plainly
    if problem := fused_problem(device, dtype):
        logger.warning("sampling in more passes on %s in %s: %s", device, dtype, problem)
    return draw_plainly if problem else draw_fused


def fused_problem(device, dtype: torch.dtype) -> str:
    """Return what `draw_fused` does wrong on a small case on a device, "" if nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(64, 3000, generator=generator)).to(device, dtype)
    uniforms = torch.rand(64, generator=generator).to(device)
    temperatures = torch.tensor([0.0, 0.3, 1.0, 1.7] * 16).to(device)
    given = logits, uniforms, temperatures, 2990
    tokens, logprobs = draw_plainly(*given)
    try:
        found = draw_fused(*given)
        same = (found[0] == tokens) & ((found[1] - logprobs).abs() < 1e-4)
        return "" if int(same.sum()) >= len(tokens) - 1 else "it draws other tokens"
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0]


def _inverted(weights, uniforms, sums=None):
    large = _is_large(weights.shape[1])
    return invert_blocks(weights, uniforms, sums) if large else invert(weights, uniforms)


def _is_large(size: int) -> bool:
    return size > 8 * BLOCK


def invert(weights, uniforms):
    """Return for each row the first index whose cumulative weight exceeds uniform * sum."""
    cumulative = weights.cumsum(1)
    return _first_above(cumulative, uniforms[:, None] * cumulative[:, -1:])[:, 0]


def invert_blocks(weights, uniforms, sums=None):
    """Return what `invert` returns, but for rounding, in two levels. sums: those of the blocks."""
    size = weights.shape[1]
    sums = _block_sums(weights) if sums is None else sums
    cumulative = sums.cumsum(1)  # [n, blocks]
    target = uniforms[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, target)  # [n, 1]
    before = functional.pad(cumulative[:, :-1], (1, 0)).gather(1, block)
    entries = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # [n, BLOCK]
    inside = weights.gather(1, entries.clamp(max=size - 1)) * (entries < size)
    place = _first_above(inside.cumsum(1), target - before)
    return (block * BLOCK + place)[:, 0].clamp(max=size - 1)


def _block_sums(weights):
    """Return the sums of BLOCK entries each, the last one of what is left, [n, blocks]."""
    size = weights.shape[1]
    whole = size // BLOCK * BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(1, keepdim=True)], 1)
    return sums


def draw_cut(logits, uniforms, settings):
    """Return tokens from the top-k and then top-p part, and log-probabilities of the whole."""
    scaled, size = _scale(logits, settings), logits.shape[1]
    ks = [min(setting.top_k, size) or size for setting in settings]
    k = torch.tensor(ks, device=logits.device)[:, None]
    p = torch.tensor([setting.top_p for setting in settings], device=logits.device)[:, None]
    total = scaled.logsumexp(1, keepdim=True)
    # Top-p rarely needs the whole order, which is slow to make: look at the likeliest first.
    for width in (min(size, max([CANDIDATES, *(k for k in ks if k < size)])), size):
        values, ids = scaled.topk(width, dim=1)  # highest first
        weights = (values - total).exp_()
        weights.masked_fill_(torch.arange(width, device=k.device) >= k, 0.0)
        cumulative = weights.cumsum(1)
        enough = p * torch.where(k < size, cumulative[:, -1:], 1.0)
        if width == size or bool((cumulative[:, -1:] >= enough).all()):
            break
    kept = cumulative - weights < enough
    kept[:, 0] = True  # whatever float32 makes of a tiny share
    tokens = ids.gather(1, invert(weights * kept, uniforms)[:, None])[:, 0]
    return tokens, logprobs_of(scaled, tokens)


DRAWS = {"greedy": draw_greedy, "plain": draw_plain, "cut": draw_cut}


def logprobs_of(logits, tokens):
    """Return log softmax(logits)[token] for each row, [n]."""
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)


def _scale(logits, settings):
    """Return logits / temperature. By a tensor: a scalar is rounded otherwise on some devices."""
    temperatures = [setting.temperature for setting in settings]
    if set(temperatures) == {1.0}:
        return logits
    return logits / torch.tensor(temperatures, device=logits.device)[:, None]


def _first_above(cumulative, target):
    """Return the first index where cumulative [n, m] exceeds target [n, 1]; none of weight 0.

    Rounding can lift the target to the last sum itself; it stays below. Sums that are NaN are
    never above: the last index then.
    """
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    found = torch.searchsorted(cumulative, torch.minimum(target, below), right=True)
    return found.clamp_(max=cumulative.shape[1] - 1)
