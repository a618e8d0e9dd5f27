"""How the engine runs a model: over its own cache, or by transformers' own generate.

Nobody can list what every family does around its attention, so it is tried out when a model is
first used: log-probabilities of a short text, step by step as the engine makes them and by the
model's plain forward, have to agree. Where they do not, or where a model has what is known not to
go through the layout (`rlm.engine.inference_model.obstacle`), generate samples
(rlm.engine.padded), and what a family can do there is tried out, too. A finding is kept for its
architecture while the process lives: a second, once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from rlm.engine.inference_model import evaluating, obstacle
from rlm.engine.native import NativeRunner
from rlm.engine.padded import PaddedRunner
from rlm.engine.requests import Group, Row
from rlm.engine.sampling import Sampling
from rlm.models.adapters import network_of
from rlm.models.attention import windows_of
from rlm.records import Prompt

logger = logging.getLogger("rlm")

TOKENS, STEPS = 24, 8  # of the text that is tried; of them read one by one
SHORT = 64  # the text is twice as long as a window of up to so many tokens
FEW = 4  # tokens of a prompt that is padded
# Nats by which log-probabilities may differ: of each token in float32, in the mean of all tokens
# in half precision, whose rounding grows with how unlikely a token is. What is left out of a
# family's attention shows by more.
EXACT, ROUNDED = 2e-3, 0.25
FORCED = "_rlm_transformers"  # of a model that is to run by transformers alone


@dataclass(frozen=True)
class Support:
    """How the engine runs a model.

    native: over its own cache. why: what stands against that, "" if nothing does. Of generate:
    pads: prompts may be padded on the left. copies: rows of the cache may be copied and dropped.
    caches: the cache agrees with the forward, else each step reads everything again.
    """

    native: bool = True
    why: str = ""
    pads: bool = True
    copies: bool = True
    caches: bool = True


# What generate is asked to do, the fastest first. The last is the plain forward itself.
WAYS = (
    {"pads": True, "copies": True, "caches": True},
    {"pads": False, "copies": True, "caches": True},
    {"pads": False, "copies": False, "caches": True},
    {"pads": False, "copies": True, "caches": False},
)
_FOUND: dict[tuple, Support] = {}  # by `architecture`


def open_runner(model, *, transformers: bool, **limits) -> NativeRunner | PaddedRunner:
    """Return what makes the logits of a model; a line is logged where that is not our own cache.

    transformers: use generate whatever serves; it is remembered of the model, for the learner.
    limits: max_rows, cache_tokens, cuda_graphs.
    """
    network = network_of(model)
    key, runner = architecture(network), None
    if transformers:
        setattr(network, FORCED, True)
    if forced(network):
        key = (*key, FORCED)
    if key not in _FOUND:
        why = "--engine transformers" if forced(network) else obstacle(network)
        if not why:
            runner = NativeRunner(model, **limits)
            why = _against(network, runner)
        _FOUND[key] = _generating(network, why) if why else Support()
    support = _FOUND[key]
    if support.native:
        return runner or NativeRunner(model, **limits)
    logger.info("%s: %s", type(network).__name__, told(support))
    return PaddedRunner(model, support, max_rows=limits["max_rows"])


def told(support: Support) -> str:
    """Return in words how a model that does not run natively runs, and why.

    >>> told(Support(native=False, why="layers of the kind conv", pads=False))
    "layers of the kind conv: transformers' generate samples, prompts of one length at a time"
    """
    more = "" if support.pads else ", prompts of one length at a time"
    more += "" if support.caches else ", without a cache"
    return f"{support.why}: transformers' generate samples{more}"


def by_generate(network) -> bool:
    """Return whether the engine has found that it cannot run a model over its own cache."""
    found = _FOUND.get(architecture(network))
    return found is not None and not found.native


def forced(network) -> bool:
    """Return whether a model is to run by transformers alone."""
    return getattr(network, FORCED, False)


def architecture(network) -> tuple:
    """Return what two models have in common that run alike: class, configuration, format, place."""
    weight = network.get_input_embeddings().weight
    config = network.config.to_json_string(use_diff=False)
    return type(network).__name__, config, weight.dtype, weight.device.type


def text(network) -> list[int]:
    """Return the ids of a text to try a model with, longer than its window where that is short."""
    config = network.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    length = max(TOKENS, 2 * window + STEPS) if window <= SHORT else TOKENS
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    size = min(network.get_input_embeddings().num_embeddings, 1000)
    return [(31 * i * i + 17 * i + 5) % size for i in range(length)]


def plain_logits(network, ids: list[int]) -> torch.Tensor:
    """Return the logits [T, V] of the model's own forward of a text, nothing cached."""
    device = network.get_input_embeddings().weight.device
    row = torch.tensor([ids], device=device)
    with evaluating(network), torch.no_grad():
        return network(
            input_ids=row, attention_mask=torch.ones_like(row), use_cache=False
        ).logits[0]  # fmt: skip


def agree(found: torch.Tensor, true: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether log-probabilities [n] in nats are the same but for rounding; False for NaN."""
    gaps = (found - true).abs()
    return bool(gaps.max() <= EXACT if dtype == torch.float32 else gaps.mean() <= ROUNDED)


def problem_of(attempt: Callable[[], bool]) -> str:
    """Return why an attempt failed, in a line: "" if it returned True."""
    try:
        return "" if attempt() else "its log-probabilities differ from those of a plain forward"
    except Exception as error:  # whatever a model's own code may raise
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}, {lines[0][:100]}"


def _against(network, runner: NativeRunner) -> str:
    """Return what stands against running a model over our own cache, "" if nothing does."""
    ids = text(network)
    end = len(ids) - STEPS
    starts = [end, FEW, end]
    with runner.unbounded():
        problem = problem_of(partial(_follows, network, runner, ids, starts))
        told = dict(runner.cache.windows)  # the cache is emptied on the way out
    cap = getattr(network.config.get_text_config(), "attn_logit_softcapping", None)
    if problem and cap and network.config._attn_implementation != "eager":
        return f"{network.config._attn_implementation} attention leaves out its cap of {cap}"
    if problem:
        return f"its attention is more than can be replaced ({problem})"
    return untold_window(network, told)


def untold_window(network, told: dict[int, int | None]) -> str:
    """Return that a layer's window was not told to its attention, "" if all were. told: by layer.

    A window that is longer than the text that was tried would not show otherwise.
    """
    for layer, window in enumerate(windows_of(network.config.get_text_config())):
        if window and told.get(layer, window) != window:
            return f"its window of {window} tokens is not told to the attention"
    return ""


def _generating(network, why: str) -> Support:
    """Return how generate runs a model: the first of `WAYS` that agrees with its plain forward."""
    ids = text(network)
    end = len(ids) - STEPS
    for way in WAYS[:-1]:
        support = Support(native=False, why=why, **way)
        runner = PaddedRunner(network, support, max_rows=8)
        starts = [end, FEW if way["pads"] else end, end]
        if not problem_of(partial(_follows, network, runner, ids, starts)):
            return support
    return Support(native=False, why=why, **WAYS[-1])


def _follows(network, runner, ids: list[int], starts: list[int]) -> bool:
    """Return whether a runner's rows, each with so much of a text as its prompt, agree with it.

    Behind its prompt a row has to say what the model says of the prompt alone. Then it takes more
    of the text token by token; the first row leaves half-way.
    """
    table = plain_logits(network, ids).float().log_softmax(-1)
    alone = {s: plain_logits(network, ids[:s])[-1].float().log_softmax(-1) for s in set(starts)}
    rows = [
        Row(i, Group(Prompt(ids[:start])), Sampling(STEPS + 1), iter(()), False, None, start)
        for i, start in enumerate(starts)
    ]
    found, true = [], []
    with torch.inference_mode():
        logits = runner.logits([], [(row.group, 1) for row in rows], rows, 0)
        for step in range(STEPS):
            if step == STEPS // 2:  # the last row takes the place of the first
                runner.retire(rows[:1])
                runner.move([len(rows) - 1], [0], rows[-1].cached)
                rows = [rows[-1], *rows[1:-1]]
                logits = torch.cat([logits[-1:], logits[1:-1]])
            for row, logprobs in zip(rows, logits.float().log_softmax(-1), strict=True):
                place = len(row.group.prompt.ids) + step
                found.append(logprobs[ids[place]])
                expected = table[place - 1] if step else alone[place]
                true.append(expected[ids[place]])
                row.ids.append(ids[place])
            logits = runner.logits(rows, [], [], 0)
    return agree(torch.stack(found), torch.stack(true), network.dtype)
