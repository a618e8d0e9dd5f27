"""Tries the settings of train_grpo.py out before its first step, and says what to expect.

    python train_grpo.py --check         # the whole report, GO or NO-GO; trains and writes nothing

A few questions are sampled and scored as in a step, and one largest micro-batch is learned and
dropped again, both after a warm-up that is not timed. What follows from the metrics is decided in
rlm/preflight/verdict.py.
"""

import os
import time
from datetime import datetime
from typing import Any

import data
from rlm import parallel
from rlm.errors import InputError
from training.stage import begin

NO_GO = 3  # the exit code
ROUNDS = 4  # how often --check takes new questions while no group teaches anything


def check(settings, sample) -> int:
    """Print the report; return 0 for GO, 3 for NO-GO. sample: that of train_grpo.py."""
    if not settings.probe:
        raise InputError(f"{settings.given('probe')}: --check has to try some; use 1 or more")
    from rlm.preflight import verdict
    from rlm.run.folder import start

    start(settings.model, **settings.process())
    examples, validation = data.training_sets(settings)
    texts = [example.question for example in (*examples, *validation)]
    stage = begin(settings, time.monotonic(), logged=False, questions=texts)
    model = stage.policy.model
    optimizer = stage.optimizer(max_grad_norm=settings.max_grad_norm)
    pending = optimizer.pending_bytes()
    budget = stage.token_budget(stage.longest(examples), pending=pending)
    warm_up(stage, examples[0])
    tried: dict = {"rounds": ROUNDS, "pending": pending}
    probe, learning = measure(stage, examples, budget.tokens, sample, **tried)
    asked = plan(settings, len(validation), model)
    if parallel.world().first:
        print("\n".join(verdict.report(probe, learning, asked, datetime.now())))
    return 0 if verdict.decide(probe, learning, asked).go else NO_GO


def brief(stage, examples, validation, budget, sample, pending=None) -> None:
    """Say the report in short at the start of a training. It warns and never stops the run.

    budget: the run's `TokenBudget`, which from now on has the tokens that were found to fit.
    """
    from rlm.preflight import verdict

    if stage.settings.probe:
        warm_up(stage, examples[0])
        tried = {"rounds": 1, "pending": pending}
        probe, learning = measure(stage, examples, budget.tokens, sample, **tried)
        asked = plan(stage.settings, len(validation), stage.policy.model)
        for line in verdict.brief(probe, learning, asked, datetime.now()):
            stage.run.info(line)
        if learning.budget_tokens < budget.tokens:
            budget.tokens = learning.budget_tokens
            stage.run.info(f"going on with micro-batches of {budget.tokens} tokens")


def measure(stage, examples, budget: int, sample, *, rounds: int, pending=None) -> tuple:
    """Return the Probe and Learning of `rlm.preflight.forecast`; the policy stays as it is.

    rounds: while no group's rewards differ, so many times more questions are tried, since a few
    may all have been too easy or too hard by chance. budget: tokens of a micro-batch. pending:
    bytes that the gradients and the optimiser will take, for `rlm.learner.rehearsal.rehearse`.
    """
    from rlm.learner.rehearsal import rehearse
    from rlm.models.memory import forget_peak, peak_bytes

    settings, policy = stage.settings, stage.policy
    device = next(policy.model.parameters()).device
    forget_peak(device)
    batch: Any = None
    seconds = processor = 0.0
    for turn in range(rounds):
        asked = examples[turn * settings.probe : (turn + 1) * settings.probe]
        if not asked or (batch and batch.live().any()):
            break
        started, taken = time.perf_counter(), time.process_time()
        more = sample(stage.engine, stage.task, asked, settings, ("probe", turn))
        seconds += time.perf_counter() - started
        processor += time.process_time() - taken
        batch = batch.plus(more) if batch else more
    # Only what this process does on a CPU is in its processor time.
    here = device.type == "cpu" and getattr(settings, "engine", "own") != "vllm"
    others = others_at_work(seconds, processor) if here else ""
    probe = probed(
        batch, settings, stage.engine.context_tokens, seconds, peak_bytes(device), others
    )
    learning = rehearse(
        policy.model,
        [batch.ids(b) for b in range(len(batch.groups))],
        budget,
        max_tokens=stage.most_tokens,
        most_groups=settings.questions_per_step,
        pending=pending,
        temperature=settings.temperature,
        vocab_size=len(policy.tokenizer),
        entropy_gradient=settings.entropy_bonus > 0,
    )
    return probe, learning


def warm_up(stage, example) -> None:
    """Sample two tokens, so that what is set up at a first forward is not timed."""
    from rlm.engine.engine import Sampling

    sampling = Sampling(max_tokens=2, temperature=stage.settings.temperature)
    stage.engine.generate(
        [stage.task.prompt(example.question, **example.asks)], 1, sampling, seed=0
    )


def others_at_work(seconds: float, processor_seconds: float) -> str:
    """Return what `rlm.preflight.forecast.busy` says of this machine after such a time."""
    from rlm.preflight.forecast import busy

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return busy(seconds, processor_seconds, load, os.cpu_count() or 1)


def probed(
    batch, settings, context_tokens: int | None, seconds: float, peak: int, others: str = ""
):
    """Return the `Probe` of a batch whose sampling took seconds and peak bytes.

    others: that the machine was busy with other things meanwhile, in words.
    """
    from rlm.preflight.forecast import Probe, quantile
    from rlm.rollouts.batch import describe

    metrics = describe(batch, settings.format)
    rollouts = [rollout for group in batch.groups for rollout in group]
    reasons = [score.reason for group in batch.scores for score in group]
    ended = [r for r, rollout in zip(reasons, rollouts, strict=True) if rollout.finish == "stop"]
    lengths = [rollout.length for rollout in rollouts]
    prompts = [len(prompt.ids) for prompt in batch.prompts]
    return Probe(
        questions=len(batch.groups),
        group_size=settings.group_size,
        max_tokens=settings.max_tokens,
        room_tokens=context_tokens - max(prompts) if context_tokens else None,
        reward=metrics["reward_mean"],
        truncated=metrics["truncated_fraction"],
        unreadable=metrics["unreadable_fraction"],
        unreadable_ended=sum(r is not None for r in ended) / max(1, len(ended)),
        reasons={r: reasons.count(r) / len(reasons) for r in sorted(set(filter(None, reasons)))},
        right=metrics["all_right_fraction"],
        mixed=metrics["mixed_fraction"],
        wrong=metrics["all_wrong_fraction"],
        live=metrics["live_fraction"],
        p50_tokens=quantile(lengths, 0.5),
        p95_tokens=quantile(lengths, 0.95),
        prompt_tokens=sum(prompts),
        completion_tokens=sum(lengths),
        sample_seconds=seconds,
        sample_peak_bytes=peak,
        correct=metrics.get("reward_correctness"),
        lenient=metrics.get("lenient_fraction"),
        busy=others,
    )


def plan(settings, validation_questions: int, model):
    """Return the `rlm.preflight.forecast.Plan` of the settings."""
    from rlm.preflight.forecast import Plan

    return Plan(
        questions_per_step=settings.questions_per_step,
        steps=settings.max_steps,
        budget_seconds=settings.seconds(),
        eval_every=settings.eval_every,
        validation_questions=validation_questions,
        updates_per_batch=settings.updates_per_batch,
        replace_dead_groups=settings.replace_dead_groups,
        with_kl=bool(settings.kl_weight),
        with_entropy=settings.entropy_bonus > 0,
        ahead=settings.ahead > 0,
        can_quantize=model.device.type == "cuda"
        and settings.quantize == "none"
        and settings.train == "lora",
    )
