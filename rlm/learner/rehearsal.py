"""One forward and backward before the first step, at the size of the largest micro-batch.

It measures time and memory and leaves no trace: no weight, no gradient, no random number of the
run is another one afterwards. It does not know what follows from the numbers
(rlm/preflight/verdict.py).
"""

import random
import time
from contextlib import contextmanager
from itertools import cycle, islice
from statistics import median

import numpy
import torch

from rlm.learner import padded
from rlm.learner.logprobs import Group, pack, packs, token_logprobs, use
from rlm.learner.losses import policy_loss
from rlm.learner.token_budget import LEAST, activations
from rlm.models.memory import forget_peak, free_bytes, out_of_memory, peak_bytes, used_bytes, wait
from rlm.preflight.forecast import Learning

SAFE = 0.9  # of what is free: a CPU's system kills a process that takes more, without a word
ENOUGH_SECONDS, MOST_PASSES = 2.0, 5
ADAM_BYTES = 8  # of each weight that learns: two float32, taken at the first step


@contextmanager
def untouched(model):
    """Inside the block `model` may run and get gradients; after it nothing of that is left.

    Put back are the gradients that were there, the training flag of every module, and the
    generators of Python, numpy and torch, on each device. Weights and buffers must not be
    changed inside; nor is an optimiser put back, so none may step.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    python, arrays = random.getstate(), numpy.random.get_state()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield model
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, flag in flags:
            module.training = flag
        random.setstate(python)
        numpy.random.set_state(arrays)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def fullest(
    groups: list[Group], *, max_tokens: int, most_groups: int, budget: int, shared: bool = True
) -> list[Group]:
    """Return the groups of the largest micro-batch that a step could have.

    Every completion has max_tokens tokens and every prompt is as long as the longest. As many
    completions are taken as the budget of tokens holds, 1 at least, whole groups first, and no
    more than most_groups have. The tokens are those of the given completions, over and over.
    shared: a prompt counts once for its completions, as of `rlm.learner.logprobs.micro_batches`.

    >>> groups = [([1, 2], [[7], [8, 9]]), ([3], [[4], [4]])]
    >>> fullest(groups, max_tokens=3, most_groups=9, budget=10)
    [([1, 2], [[7, 7, 7], [8, 9, 8]]), ([1, 2], [[7, 7, 7]])]
    """
    prompt = max((prompt for prompt, _ in groups), key=len)
    completions = [list(islice(cycle(c), max_tokens)) for c in groups[0][1]]
    shape, room = [], budget
    for _ in range(most_groups):
        once, each = (len(prompt), 0) if shared else (0, len(prompt))
        number = (room - once) // max(1, each + max_tokens - 1)
        if number < 1:
            break
        shape.append((prompt, completions[:number]))
        room -= size(shape[-1:], shared=shared)
    return shape or [(prompt, completions[:1])]


def size(groups: list[Group], *, shared: bool = True) -> int:
    """Return the tokens of the groups when they are packed; a last token is no input."""
    if not shared:
        return padded.tokens(groups)
    return sum(len(p) + sum(len(c) - 1 for c in completions) for p, completions in groups)


def rehearse(
    model,
    groups: list[Group],
    budget: int,
    *,
    max_tokens: int,
    most_groups: int,
    pending: int | None = None,
    **options,
) -> Learning:
    """Return what learning the largest micro-batch takes, of half the tokens if it is too much.

    groups: what was sampled. budget: tokens of a micro-batch. max_tokens, most_groups: for
    `fullest`. pending: bytes that the gradients and the optimiser will take, None for those of
    AdamW on float32 weights. options: temperature, vocab_size and entropy_gradient, for
    `rlm.learner.logprobs.token_logprobs`.
    On a CPU nothing is tried that cannot fit. Nothing that does not fit raises: then fits is
    False, and the numbers are those of the smallest that was thought of.
    """
    device = next(model.parameters()).device
    total = used_bytes(device) + free_bytes(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)  # are there already when the peak is taken
    state = ADAM_BYTES * sum(p.numel() for p in trained) if pending is None else pending - gradients
    tried, seconds, shared = budget, None, packs(model)
    found = activations(model, options["vocab_size"])
    bounds: dict = {"max_tokens": max_tokens, "most_groups": most_groups, "shared": shared}
    while True:
        shape = fullest(groups, budget=tried, **bounds)
        with untouched(model):
            each = found.each(max(len(p) + max(map(len, cs)) for p, cs in shape))
            need = used_bytes(device) + state + (0 if pending is None else gradients)
            need += int(size(shape, shared=shared) * each)
            if device.type != "cpu" or need <= SAFE * total:
                seconds = _attempt(model, shape, **options)
        if seconds is not None or tried <= LEAST:
            break
        tried = max(LEAST, tried // 2)
    return Learning(
        tokens=size(shape, shared=shared),
        asked_tokens=budget,
        budget_tokens=tried,
        seconds=seconds or 0.0,
        fits=seconds is not None,
        halves=device.type != "cpu",
        peak_bytes=need if seconds is None else peak_bytes(device) + state,
        total_bytes=total,
    )


def _attempt(model, shape: list[Group], **options) -> float | None:
    """Return the seconds of a forward and backward, None if the memory was not enough.

    A short one is repeated, since a machine that does other things, too, is not even.
    """
    device = next(model.parameters()).device
    try:
        learn([(shape[0][0], [c[:2] for c in shape[0][1]])], model, **options)  # warms up
        forget_peak(device)
        taken: list[float] = []
        while len(taken) < MOST_PASSES and sum(taken) < ENOUGH_SECONDS:
            wait(device)
            started = time.perf_counter()
            learn(shape, model, **options)
            wait(device)
            taken.append(time.perf_counter() - started)
        return median(taken)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Outside the handler: the error's frames hold the tensors that have to go.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def learn(groups: list[Group], model, **options) -> torch.Tensor:
    """Make the gradients of a micro-batch whose completions are, in turn, better and worse.

    Return the log-probabilities, detached.
    """
    packed = pack(groups, device=next(model.parameters()).device)
    better = torch.ones(len(packed.lengths))
    better[1::2] = -1.0
    model.train()
    with use(model):
        logprobs, entropy = token_logprobs(model, packed, statistics=True, **options)
        loss, _ = policy_loss(
            logprobs, None, packed.per_token(better), packed.sequence,
            tokens=len(logprobs), sequences=len(packed.lengths), max_tokens=max(packed.lengths),
            entropy=entropy, entropy_bonus=float(bool(options.get("entropy_gradient"))),
        )  # fmt: skip
        loss.backward()
    return logprobs.detach()
