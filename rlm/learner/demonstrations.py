"""What SFT learns from: demonstrations in a shuffled order, packed without padding, and its rate.

A demonstration is (a prompt's ids, a completion's ids, which of these are learned); the loss is the
mean cross entropy of what is learned, over all of the step. Order and rate are those of
transformers' Trainer, so that both backends of train_sft.py take the same steps.

The prompts of a task begin alike, by the chat template and the instruction. What all of a
micro-batch have in common goes through the model once (`rlm.learner.logprobs.pack`).
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch

from rlm.learner.logprobs import Packed, pack, packs, token_statistics, use
from rlm.learner.metrics import Metrics


class Demonstration(NamedTuple):
    """prompt, completion: ids. learned: of each token of the completion whether it is learned.

    None: all; a token that a tool wrote is not.
    """

    prompt: list[int]
    completion: list[int]
    learned: list[bool] | None = None

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return len(self.completion) if self.learned is None else sum(self.learned)

    @property
    def flags(self) -> list[bool]:
        return self.learned or [True] * len(self.completion)


def batch(step: int, demonstrations: list, size: int, seed: int) -> list:
    """Return the demonstrations of a step, counted from 1; those left over end a pass.

    Each pass has an order of its own, that of accelerate's SeedableRandomSampler.

    >>> [batch(step, list("abcde"), 2, seed=0) for step in (1, 2, 3)]
    [['e', 'a'], ['b', 'd'], ['c']]
    """
    passed, place = divmod(step - 1, math.ceil(len(demonstrations) / size))
    generator = torch.Generator().manual_seed(seed + passed)
    order = torch.randperm(len(demonstrations), generator=generator).tolist()
    return [demonstrations[i] for i in order[place * size : (place + 1) * size]]


def linear_rate(step: int, last: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate that a step has, counted from 1: up from 0, then down.

    That of transformers' get_linear_schedule_with_warmup. Its first step has rate 0 where there
    is a warm-up, unless it is the only one.

    >>> [linear_rate(step, 6, 0.3) for step in range(1, 7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    done, warmup = step - 1, math.ceil(last * warmup_fraction) if last > 1 else 0
    return done / warmup if done < warmup else (last - done) / max(1, last - warmup)


def micro_batches(
    given: Sequence[tuple], budget: int, *, shared: bool = True
) -> list[list[Demonstration]]:
    """Return parts that each pack into at most `budget` tokens, or hold one demonstration.

    given: demonstrations, or tuples of their fields. Those of like length share a part, since
    attention pads inside it. shared: what all prompts begin with counts once, as where groups are
    packed (`rlm.learner.logprobs.packs`).

    >>> parts = micro_batches([([1, 2], [7] * 4), ([1], [8]), ([1, 3], [9])], 4)
    >>> [[each.completion for each in part] for part in parts]
    [[[8], [9]], [[7, 7, 7, 7]]]
    """
    demonstrations = [Demonstration(*each) for each in given]
    once = shared_tokens([each.prompt for each in demonstrations]) if shared else 0
    parts: list[list[Demonstration]] = []
    room = 0
    for each in sorted(demonstrations, key=lambda d: len(d.prompt) + len(d.completion)):
        tokens = len(each.prompt) - once + len(each.completion) - 1  # the last one is no input
        if not parts or tokens > room:
            parts.append([])
            room = budget - once
        parts[-1].append(each)
        room -= tokens
    return parts


def packed(given: Sequence[tuple], *, device="cpu") -> Packed:
    """Return the demonstrations as one flat row; the targets are what is learned.

    >>> row = packed([([1, 2, 3], [7, 8]), ([1, 2, 4], [9])])
    >>> row.ids.tolist(), row.targets.tolist()  # 1 2 once, then 3 7 and 4; nothing follows 8 and 9
    ([1, 2, 3, 7, 4], [7, 8, 9])
    """
    demonstrations = [Demonstration(*each) for each in given]
    shared = shared_tokens([each.prompt for each in demonstrations])
    if not shared:
        learned = [each.flags for each in demonstrations]
        groups = [(each.prompt, [each.completion]) for each in demonstrations]
        whole = all(each.learned is None for each in demonstrations)
        return pack(groups, learned=None if whole else learned, device=device)
    rests = [each.prompt[shared:] + each.completion for each in demonstrations]
    learned = [[False] * (len(each.prompt) - shared) + each.flags for each in demonstrations]
    return pack([(demonstrations[0].prompt[:shared], rests)], learned=learned, device=device)


def shared_tokens(prompts: list[list[int]]) -> int:
    """Return how many tokens all prompts begin with.

    >>> shared_tokens([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
    2
    """
    # In the order of lists the first and the last differ the earliest.
    pairs = zip(min(prompts), max(prompts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def backward(model, optimizer, demonstrations, *, tokens: int, token_budget: int) -> Metrics:
    """Add the gradients of the loss to the weights'; return loss, entropy and token_accuracy.

    tokens: that a step learns from, in all processes; its loss is the sum over them / tokens, so
    the losses of micro-batches and of processes add up to that of the step.
    """
    model.train()
    metrics, device = Metrics(), next(model.parameters()).device
    with use(model):
        for part in micro_batches(demonstrations, token_budget, shared=packs(model)):
            logprobs, entropy, likeliest = token_statistics(model, packed(part, device=device))
            loss = -logprobs.sum() / tokens
            optimizer.backward(loss)
            metrics.add(loss=loss.detach())
            metrics.mean(entropy=entropy, token_accuracy=likeliest)
    return metrics
