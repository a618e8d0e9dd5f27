"""SFT by our own packed learner: `train_sft.py --backend own`, the steps of TRL's SFTTrainer.

    python train_sft.py --backend own

One step:

    batch     the next demonstrations of a shuffled pass        rlm/learner/demonstrations.py
    loss      mean cross entropy of their completions' tokens   rlm/learner/logprobs.py
    update    AdamW, at a rate that rises and falls to 0        rlm/learner/optimizer.py

Prompts and completions go through the model without padding, what all prompts begin with only
once, and logits are made of completions alone. Order, rates, loss and log.csv are those of
`--backend trl`; the weights are the same but for rounding.
"""

import math
import time
from functools import partial

from rlm import parallel
from training.micro_batches import checked

ADAMW: dict = {"max_grad_norm": 1.0, "betas": (0.9, 0.999)}  # as a transformers Trainer has it


def fit(stage, records: list[dict], questions: int):
    """Train on the records of train_sft.py; the metrics go to the run's log.

    questions: of the validation that follows. Returns the `NonFiniteGuard` of its batches.
    """
    from rlm.learner.demonstrations import batch, linear_rate
    from rlm.run.nonfinite import NonFiniteGuard
    from rlm.run.steps import Steps

    settings, policy, run = stage.settings, stage.policy, stage.run
    demonstrations = [split(record) for record in records]
    optimizer = stage.optimizer(**ADAMW)
    # The more prompts share a micro-batch, the less of them is computed: 2 GB on a CPU.
    longest = max(len(each.prompt) + len(each.completion) for each in demonstrations)
    pending = optimizer.pending_bytes()
    budget = stage.token_budget(longest, cpu_bytes=2**31, pending=pending)
    guard, seen, began = NonFiniteGuard(run.path), Seen(), time.monotonic()

    # From the start, or from where a stopped run ended.
    parts = {"optimizer": optimizer, "budget": budget, "guard": guard, "seen": seen}
    steps = Steps(
        **stage.run_state(**parts) | {"last": last_step(len(records), settings)},
        save_every=settings.save_every,
        budget=stage.budget(),
        # An answer of the validation takes about as long as a demonstration's step.
        reserve=lambda: stage.reserve(questions * (time.monotonic() - began)),
    )
    run.expect(steps.last)
    for step in steps:
        began = time.monotonic()
        rate = linear_rate(step, steps.last, settings.warmup_fraction)
        optimizer.learning_rate = stage.peak_rate * rate
        chosen = batch(step, demonstrations, settings.batch_size, settings.seed)
        row = {"step": step} | update(policy.model, optimizer, chosen, budget)
        row |= seen.add(chosen) | {"epoch": passes(step, len(records), settings)}
        guard.passed(step, checked(row, optimizer), partial(list, chosen))
        run.log(row, show=step % max(1, min(10, steps.last // 10)) == 0)
        run.expect(steps.last)
        if guard.gave_up:
            break
    return guard


def update(model, optimizer, demonstrations, budget) -> dict:
    """Take an optimiser step on a batch; return its metrics.

    Processes share the demonstrations so that all have about as many tokens.
    """
    from rlm.learner.demonstrations import backward

    costs = [len(each.prompt) + len(each.completion) for each in demonstrations]
    mine = parallel.balanced_share(demonstrations, costs)
    tokens = sum(each.targets for each in demonstrations)
    work = partial(backward, model, optimizer, mine, tokens=tokens)
    learned = budget.attempt(work, undo=optimizer.clear).all_reduce("learning").values()
    return {
        "loss": learned["loss"],
        "gradient_norm": optimizer.step(),
        "learning_rate": optimizer.learning_rate,
        "entropy": learned["entropy"],
        "token_accuracy": learned["token_accuracy"],
    }


def split(record: dict):
    """Return a record as a `rlm.learner.demonstrations.Demonstration`; -100 is not learned.

    What begins with -100 is the prompt; between what is learned stand the results of tools.

    >>> tuple(split({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}))
    ([5, 6], [7], None)
    >>> tuple(split({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}))
    ([5], [6, 7, 8], [True, False, True])
    """
    from rlm.learner.demonstrations import Demonstration

    ids, labels = record["input_ids"], record["labels"]
    start = next(place for place, label in enumerate(labels) if label != -100)
    flags = [label != -100 for label in labels[start:]]
    return Demonstration(ids[:start], ids[start:], None if all(flags) else flags)


def last_step(count: int, settings) -> int:
    """Return the optimiser steps that the settings ask for with `count` demonstrations."""
    return settings.max_steps or math.ceil(settings.epochs * math.ceil(count / settings.batch_size))


def passes(step: int, count: int, settings) -> float:
    """Return how often the demonstrations have been seen after a step, counted from 1."""
    each = math.ceil(count / settings.batch_size)
    done, more = divmod(step - 1, each)
    return done + (more + 1) / each


class Seen:
    """The tokens of all demonstrations that were learned from."""

    def __init__(self):
        self.tokens = 0

    def add(self, demonstrations) -> dict:
        """Count a batch; return the column of log.csv."""
        self.tokens += sum(len(each.prompt) + len(each.completion) for each in demonstrations)
        return {"num_tokens": float(self.tokens)}

    def state(self) -> dict:
        return {"tokens": self.tokens}

    def restore(self, state: dict) -> None:
        self.tokens = state["tokens"]
