"""Stage 2, GRPO: the model learns which reasoning is right, from right or wrong alone.

    python train_grpo.py                                       # the tiny base, additions
    python train_grpo.py --check                               # worth it? how long? trains nothing
    python train_grpo.py --task gsm8k --data DIR --model Qwen/Qwen2.5-0.5B-Instruct \\
        --adapter weights/sft_lora --learning-rate 2e-5

Group Relative Policy Optimization (arXiv:2402.03300). One step:

    sample      G answers to each of B questions, from the current policy     rlm/engine.py
    reward      1 if the final number is right, else 0                        tasks.py, rewards.py
    advantage   how much better an answer is than its own group               rlm/grpo.py
    update      make the better answers' tokens likelier, the others' less so rlm/learner.py

No value network, no reward model. A group whose answers are all right or all wrong has
advantage 0 and teaches nothing. What differs from the paper by default: the loss is averaged
over all tokens of the step (DAPO, arXiv:2503.14476), and there is no KL term (--kl-weight 0).
"""

import sys
import time
from functools import partial

import config
import data
import tryout
from rlm.errors import run
from rlm.seeds import derive
from stage import begin


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.GRPOSettings, argv)
    if settings.check_only:
        return tryout.check(settings, sample)
    train(settings)
    return 0


def train(settings) -> dict:
    """Train, keep the best adapter by validation accuracy; return its figures, "log" among them.

    That is a dictionary a step: `train(config.GRPOSettings(max_steps=8))["log"]`.
    """
    from rlm.runs import start

    began = time.monotonic()
    start(settings.model, **settings.process())
    from rlm.best import Best
    from rlm.guard import Guard
    from rlm.hacking import Watch
    from rlm.learner import ReferencePolicy
    from rlm.optimizer import Optimizer
    from rlm.rollouts import records
    from rlm.token_budget import TokenBudget

    # 1. Questions with known answers; the policy; the engine that samples from it.
    examples, validation = data.training_sets(settings)
    stage = begin(settings, began, questions=[e.question for e in (*examples, *validation)])
    policy, out = stage.policy, stage.out
    reference = ReferencePolicy(policy.model)  # the policy as it is now, for the KL
    optimizer = Optimizer(policy.model, max_grad_norm=settings.max_grad_norm)
    questions = data.Batches(examples, settings.questions_per_step, seed=settings.seed)
    best = Best(policy.model, lambda: stage.validate(validation))
    budget = TokenBudget(policy.model, len(policy.tokenizer), stage.token_budget)
    guard, watch = Guard(out.path), Watch(out.say)

    # 2. From the start, or from where a stopped run ended. Can these settings teach anything?
    parts = {"optimizer": optimizer, "questions": questions, "reference": reference}
    steps = stage.steps(best, **parts, budget=budget, guard=guard, watch=watch)
    if steps.fresh:
        tryout.brief(stage, examples, validation, budget.tokens, sample)
        out.log({"step": 0, "validation_accuracy": best.offer(step=0)})
    else:
        stage.engine.sync(steps.step)  # the adapter is the checkpoint's by now

    # 3. Sample, score, compare, update: `take_step` below.
    take = partial(take_step, stage, questions, optimizer, reference=reference, budget=budget)
    for step in steps:
        optimizer.learning_rate = learning_rate(step, steps.last, settings)
        batch, advantage, row = take(step)
        record = partial(records, step, batch, advantage, policy.tokenizer)
        finite = guard.passed(step, checked(row, optimizer), record)
        row["skipped_steps"] = guard.skipped
        if finite and (step == steps.last or due(step, settings.eval_every)):
            row["validation_accuracy"] = accuracy = best.offer(step)
            if settings.early_stop and best.fell(accuracy):
                steps.end()
        out.log(row)
        watch.look(row)
        out.expect(steps.last)
        out.write_rollouts(record())
        if guard.gave_up:
            break

    # 4. What is kept is the best adapter by validation accuracy, not the last one.
    return keep_best(stage, best, guard, examples)


def take_step(stage, questions, optimizer, step: int, *, reference, budget):
    """Take one step of GRPO; return its batch, the advantages [B, G] and its figures."""
    from rlm.grpo import advantages
    from rlm.rollouts import describe

    settings, policy, engine = stage.settings, stage.policy, stage.engine
    started = time.perf_counter()
    batch = sample_live(engine, stage.task, questions, settings, step)
    advantage = advantages(batch.rewards(), settings.advantage_scale)
    sampled = time.perf_counter()
    work = partial(update, policy, optimizer, batch, advantage, settings, reference)
    learned = budget.attempt(work, undo=optimizer.clear)
    engine.sync(step)
    ended = time.perf_counter()
    row = {"step": step} | describe(batch, settings.format) | learned
    row |= {"learning_rate": optimizer.learning_rate}
    row |= {"generate_seconds": sampled - started, "learn_seconds": ended - sampled}
    row["tokens_per_second"] = batch.tokens() / (ended - started)
    return batch, advantage, row


def keep_best(stage, best, guard, examples) -> dict:
    """Save the best adapter; return its figures. RunError if the run was given up."""
    if not guard.gave_up:
        stage.check_learned()
    best.put_back()
    summary = stage.finish(best.evaluation, examples, step=best.step)
    guard.check()
    return summary


def sample(engine, task, examples, settings, seed):
    """Return the `Batch` of G scored answers to each question, drawn from the current policy."""
    from rlm.engine import Sampling
    from rlm.rollouts import Batch

    prompts = [task.prompt(e.question) for e in examples]
    groups = engine.generate(
        prompts,
        settings.group_size,
        Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature),
        seed=derive("rollouts", settings.seed, seed),
    )
    scores = task.score(examples, groups, seed=derive("scores", settings.seed, seed))
    return Batch(examples, prompts, groups, scores)


def sample_live(engine, task, questions, settings, step: int):
    """Return a step's batch; dead groups are replaced by new questions as often as allowed.

    What is replaced is still counted in the step's reward, or it would look better than it is.
    """
    batch = sample(engine, task, next(questions), settings, (step, 0))
    for attempt in range(1, settings.replace_dead_groups + 1):
        if batch.all_live():
            break
        fresh = sample(engine, task, next(questions), settings, (step, attempt))
        batch = batch.with_dead_replaced(fresh)
    return batch


def update(policy, optimizer, batch, advantage, settings, reference, *, token_budget) -> dict:
    """Take the optimiser steps on one batch; return their mean metrics.

    advantage [B, G]. Dead groups stay out of forward and backward when there is no KL term:
    their share of the gradient is exactly 0. They still count in the loss's denominator.
    Without a KL term the KL is measured on a few completions only, to know it for little.
    """
    import torch

    from rlm.grpo import importance_metrics, importance_weights, kl_estimate, policy_loss
    from rlm.learner import micro_batches, pack, token_logprobs

    model, device = policy.model, next(policy.model.parameters()).device
    model.train()
    options = {"temperature": settings.temperature, "vocab_size": len(policy.tokenizer)}
    kept = [b for b in range(len(batch.groups)) if settings.kl_weight or advantage[b].any()]
    packs = []
    for part in micro_batches([batch.ids(b) for b in kept], token_budget):
        chosen = [(kept[i], rows) for i, rows in part]
        packed = pack([batch.ids(b, rows) for b, rows in chosen], device=device)
        each_token = packed.spread(torch.cat([advantage[b, rows] for b, rows in chosen]))  # [N]
        sampler = batch.logprobs(chosen).to(device)  # [N]
        mask = packed.spread(batch.counted(chosen, settings.truncated == "keep"))  # [N]
        ref = reference.logprobs(packed, **options) if settings.kl_weight else None
        old = old_logprobs(model, packed, sampler, settings, options)
        packs.append((packed, each_token, sampler, old, mask, ref))
    totals, gap, kls, entropies, ratios = dict[str, float](), 0.0, [], [], []
    if kept and not settings.kl_weight:
        first, rows = kept[0], slice(16)
        ref = reference.logprobs(pack([batch.ids(first, rows)], device=device), **options)
        kls.append(kl_estimate(batch.logprobs([(first, rows)]).to(device), ref))
    counted = batch.counted_tokens(settings.truncated == "keep")
    for _ in range(settings.updates_per_batch):
        for packed, each_token, sampler, old, mask, ref in packs:
            logprobs, entropy = token_logprobs(model, packed, statistics=True, **options)
            if cap := settings.importance_cap:
                learner = logprobs.detach() if old is None else old
                weights, ratio = importance_weights(learner, sampler, cap)
                each_token = each_token * weights
                ratios.append(ratio[mask > 0])
            loss, metrics = policy_loss(
                logprobs, old, each_token, packed.sequence,
                loss_type=settings.loss,
                tokens=counted, sequences=batch.sequences(), max_tokens=settings.max_tokens,
                clip_low=settings.clip_low, clip_high=settings.clip_high,
                ref_logprobs=ref, kl_weight=settings.kl_weight, mask=mask,
            )  # fmt: skip
            optimizer.backward(loss)
            add(totals, loss=loss.detach(), **metrics)
            entropies.append(entropy)
            gap = max(gap, float((logprobs.detach() - sampler).abs().max()))
            kls += [] if ref is None else [kl_estimate(logprobs.detach(), ref)]
        add(totals, gradient_norm=optimizer.step())
    means = {name: value / settings.updates_per_batch for name, value in totals.items()}
    measured = {"kl": kls, "entropy": entropies}  # means over the tokens that were looked at
    found = {name: float(torch.cat(x).mean()) for name, x in measured.items() if x}
    if len(counts := torch.cat(ratios) if ratios else torch.empty(0)):
        found |= importance_metrics(counts, settings.importance_cap)
    return means | found | {"sampler_gap": gap}


def old_logprobs(model, packed, sampler, settings, options):
    """Return the old log-probabilities [N] of the clipped ratio; None where that is always 1.

    One update: the policy that sampled is the one that learns. Of several, what our own engine
    sampled with is the learner's own; with vLLM the learner is asked before the first of them.
    """
    import torch

    from rlm.learner import token_logprobs

    if settings.updates_per_batch == 1:
        return None
    if settings.engine == "own" and not settings.importance_cap:
        return sampler
    with torch.no_grad():
        return token_logprobs(model, packed, **options)[0]


def due(step: int, every: int) -> bool:
    """Return whether something that is done every so many steps (0: never) is done now."""
    return every > 0 and step % every == 0


def checked(figures: dict, optimizer) -> dict:
    """Return the figures that must be finite, none if no group was live.

    In float16 gradients may be infinite while the loss's scale is still too high.
    """
    if "loss" not in figures:
        return {}
    names = ("loss",) if optimizer.scaling else ("loss", "gradient_norm")
    return {name: figures[name] for name in names}


def add(totals: dict[str, float], **values) -> None:
    """Add each value to the total of its name."""
    for name, value in values.items():
        totals[name] = totals.get(name, 0.0) + float(value)


def learning_rate(step: int, last: int, settings) -> float:
    """Return the rate of a step, counted from 1: a linear rise, then constant or a linear fall."""
    rise = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    fall = 1.0 - (step - 1) / last if settings.lr_schedule == "linear" else 1.0
    return settings.learning_rate * rise * fall


if __name__ == "__main__":
    sys.exit(run(main))
