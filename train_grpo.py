"""Stage 2, GRPO: the model learns which reasoning is right, from right or wrong alone.

    python train_grpo.py                                       # the tiny base, additions
    python train_grpo.py --check                               # worth it? how long? trains nothing
    python train_grpo.py --task gsm8k --data DIR --model Qwen/Qwen2.5-0.5B-Instruct \\
        --adapter weights/sft_lora --learning-rate 2e-5
    python train_grpo.py --train full                          # all weights, no LoRA
    torchrun --standalone --nproc_per_node 2 -- train_grpo.py   # two processes, one adapter

Group Relative Policy Optimization (arXiv:2402.03300). One step:

    sample      G answers to each of B questions, from the current policy   rlm/engine/engine.py
    reward      1 if the final answer is right, else 0                      training/tasks.py
    advantage   how much better an answer is than its own group             rlm/learner/losses.py
    update      make the better answers' tokens likelier, others' less so   rlm/learner/logprobs.py

The same without settings, checkpoints and processes: examples/grpo_from_scratch.py.
No value network, no reward model. A group whose answers are all right or all wrong has
advantage 0 and teaches nothing. What differs from the paper by default: the loss is averaged
over all tokens of the step (DAPO, arXiv:2503.14476), and there is no KL term (--kl-weight 0).
"""

import sys
import time
from functools import cache, partial

import config
import data
from rlm import parallel
from rlm.errors import run_main
from rlm.seeds import derive
from training import trl, tryout
from training.micro_batches import (
    checked,
    due,
    entropy_options,
    first_kl,
    keep_best,
    learns_dead_groups,
    logits_options,
    micro_batches,
)
from training.rates import learning_rate
from training.stage import begin


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.GRPOSettings, argv)
    if settings.check_only:
        return tryout.check(settings, sample)
    train(settings)
    return 0


def train(settings) -> dict:
    """Train, keep an adapter by validation accuracy; return its metrics, "log" among them.

    That is a dictionary a step: `train(config.GRPOSettings(max_steps=8))["log"]`.
    """
    from rlm.run.folder import start

    began = time.monotonic()
    start(settings.model, **settings.process())
    if settings.backend == "trl":
        return trl.train(settings, began)
    from rlm.answers.reward_hacking import Watch
    from rlm.rollouts.batch import records
    from rlm.run.best import BestAdapter
    from rlm.run.nonfinite import NonFiniteGuard

    # 1. Questions with known answers; the policy; the engine that samples from it.
    examples, validation = data.training_sets(settings)
    stage = begin(settings, began, questions=[e.question for e in (*examples, *validation)])
    policy, run = stage.policy, stage.run
    reference = stage.reference()  # the policy as it is now, for the KL
    optimizer = stage.optimizer(max_grad_norm=settings.max_grad_norm)
    questions = data.batches(examples, settings)
    best = BestAdapter(policy.model, lambda: stage.validate(validation))
    pending = optimizer.pending_bytes()
    budget = stage.token_budget(stage.longest(examples), pending=pending)
    guard, watch = NonFiniteGuard(run.path), Watch(run.info)

    # 2. From the start, or from where a stopped run ended. Can these settings teach anything?
    parts = {"optimizer": optimizer, "questions": questions}
    parts |= {"reference": reference} if reference else {}
    parts |= {"ahead": stage.engine} if settings.ahead else {}
    steps = stage.steps(best, **parts, budget=budget, guard=guard, watch=watch)
    if steps.fresh:
        tryout.brief(stage, examples, validation, budget, sample, pending)
        run.log({"step": 0} | best.row(step=0))
    else:
        stage.engine.sync(steps.step)  # the adapter is the checkpoint's by now

    # 3. Sample, score, compare, update: `take_step` below.
    take = partial(take_step, stage, questions, optimizer, reference=reference, budget=budget)
    for step in steps:
        optimizer.learning_rate = learning_rate(step, steps.last, stage.peak_rate, settings)
        batch, advantage, row = take(step, last=step == steps.last)
        record = partial(records, step, batch, advantage, policy.tokenizer)
        finite = guard.passed(step, checked(row, optimizer), record)
        row["skipped_steps"] = guard.skipped
        if finite and (step == steps.last or due(step, settings.eval_every)):
            row |= best.row(step)
            if settings.early_stop and best.fell(row.get("validation_accuracy")):
                steps.end()
        run.log(row)
        watch.look(row)
        run.expect(steps.last)
        run.write_rollouts(record())
        if guard.gave_up:
            break

    # 4. What is kept is the latest adapter, but for falls of the validation beyond its noise.
    return keep_best(stage, best, guard, examples)


def take_step(stage, questions, optimizer, step: int, *, reference, budget, last):
    """Take one step of GRPO; return its batch, the advantages [B, G] and its metrics.

    With --ahead the answers of the next one, unless this is the last, are sampled beside it.
    """
    from rlm.learner.losses import advantages
    from rlm.rollouts.batch import describe
    from rlm.rollouts.router_gap import router_gap

    settings, policy, engine = stage.settings, stage.policy, stage.engine
    started = time.perf_counter()
    if reference and step > 1 and due(step - 1, settings.reference_every):
        reference.reset()  # the policy as it is now
    batch = sample_live(engine, stage.task, questions, settings, step)
    advantage = advantages(batch.rewards(), settings.advantage_scale, batch.judged())
    sampled = time.perf_counter()
    gap = router_gap(engine, policy.model, batch.prompts, batch.groups)
    sampler = engine.sampler if settings.ahead else None
    if settings.ahead and not last:
        engine.generate_ahead(**asked(stage.task, questions.peek(), settings, (step + 1, 0)))
    learned = update(policy, optimizer, batch, advantage, settings, reference, budget, sampler)
    updated = time.perf_counter()
    if settings.ahead:
        engine.wait()
    waited = time.perf_counter() - updated
    engine.sync(step)
    ended = time.perf_counter()
    tools = stage.task.toolbox is not None
    row = {"step": step} | describe(batch, settings.format, tools=tools) | learned
    row |= {} if gap is None else {"router_gap": gap}
    row |= {"staleness": batch.staleness(step - 1)} if settings.ahead else {}
    row |= {"learning_rate": optimizer.learning_rate}
    row["generate_seconds"] = sampled - started + waited
    row["learn_seconds"] = ended - sampled - waited
    row["tokens_per_second"] = batch.tokens() / (ended - started)
    return batch, advantage, row


def sample(engine, task, examples, settings, seed):
    """Return the `Batch` of G scored answers to each question, drawn from the current policy.

    Each process samples and scores its share of the questions, and gets the others' from them.
    """
    from rlm.rollouts.batch import Batch

    world = parallel.world()
    mine, request = world.shard(examples), asked(task, examples, settings, seed)
    groups = engine.generate(**request)
    scores = task.score(mine, groups, seed=derive("scores", settings.seed, seed))
    whole = world.unshard(zip(request["prompts"], groups, scores, strict=True), "sampling")
    prompts, groups, scores = (list(part) for part in zip(*whole, strict=True))
    return Batch(examples, prompts, groups, scores)


def asked(task, examples, settings, seed) -> dict:
    """Return what `engine.generate` is asked for: G answers to this process's share of them."""
    from rlm.engine.engine import Sampling

    numbers = parallel.world().shard(range(len(examples)))
    return {
        "prompts": [task.prompt(examples[b].question, **examples[b].asks) for b in numbers],
        "samples": settings.group_size,
        "sampling": Sampling(
            settings.max_tokens, temperature=settings.temperature, tools=task.toolbox
        ),
        "seed": derive("rollouts", settings.seed, seed),
        "numbers": numbers,
    }


def sample_live(engine, task, questions, settings, step: int):
    """Return a step's batch; dead groups are replaced by new questions as often as allowed.

    What is replaced is still counted in the step's reward, or it would look better than it is.
    """
    batch = sample(engine, task, next(questions), settings, (step, 0))
    questions.observe(batch)
    for attempt in range(1, settings.replace_dead_groups + 1):
        if batch.all_live():
            break
        fresh = sample(engine, task, next(questions), settings, (step, attempt))
        questions.observe(fresh)
        batch = batch.with_dead_replaced(fresh)
    return batch


def update(policy, optimizer, batch, advantage, settings, reference, budget, sampler=None) -> dict:
    """Take the optimiser steps on one batch; return their mean metrics.

    sampler: the weights that sampled it, None for the policy's own as they are now.
    advantage [B, G]. Dead groups stay out of forward and backward when there is neither a KL term
    nor an entropy bonus: their share of the gradient is exactly 0. They still count in the loss's
    denominator.
    The others are shared out among the processes; before a step their gradients are added up.
    """
    from rlm.learner.metrics import Metrics

    every = learns_dead_groups(settings)
    kept = [b for b in range(len(batch.groups)) if every or advantage[b].any()]
    mine = parallel.balanced_share(kept, [batch.cost(b) for b in kept])
    make = cache(partial(micro_batches, policy, batch, advantage, settings, reference, mine,
                         sampler=sampler))  # fmt: skip
    metrics = Metrics()
    if kept and reference and not settings.kl_weight:
        measured = first_kl(policy, batch, kept[0], settings, reference)  # the same in each process
        metrics.mean(kl=measured)
    for _ in range(settings.updates_per_batch):
        work = partial(backward, policy, optimizer, batch, settings, make)
        learned = budget.attempt(work, undo=optimizer.clear)
        metrics = metrics.plus(learned.all_reduce("learning"))
        metrics.add(gradient_norm=optimizer.step())
    return metrics.values(settings.updates_per_batch)


def backward(policy, optimizer, batch, settings, make, *, token_budget):
    """Add the loss's gradients of all micro-batches; return their `rlm.learner.metrics.Metrics`.

    make: returns the micro-batches of a token budget.
    """
    from rlm.learner import sharding
    from rlm.learner.logprobs import token_logprobs, use
    from rlm.learner.losses import kl_estimate, policy_loss
    from rlm.learner.metrics import Metrics

    policy.model.train()
    metrics = Metrics()
    loss_tokens = batch.loss_tokens(settings.truncated == "keep")
    asked = logits_options(policy, settings) | entropy_options(settings)
    parts = make(token_budget)
    missing = sharding.missing_turns(policy.model, len(parts))
    with use(policy.model):  # the backward may run layers again
        for part in parts:
            pieces = part.pack()
            logprobs, entropy = token_logprobs(policy.model, pieces, **asked)
            assert entropy is not None
            now, mask = logprobs.detach(), pieces.per_token(part.counts)
            token_advantages = weighed(part, pieces, now, entropy.detach(), mask, settings, metrics)
            loss, loss_metrics = policy_loss(
                logprobs, part.old_logprobs, token_advantages, pieces.sequence,
                loss_type=settings.loss,
                tokens=loss_tokens, sequences=batch.sequences(), max_tokens=settings.max_tokens,
                clip_low=settings.clip_low, clip_high=settings.clip_high,
                ref_logprobs=part.ref_logprobs, kl_weight=settings.kl_weight,
                entropy=entropy, entropy_bonus=settings.entropy_bonus, mask=mask,
            )  # fmt: skip
            optimizer.backward(loss)
            metrics.add(loss=loss.detach(), **loss_metrics)
            metrics.mean(entropy=entropy)
            metrics.max(sampler_gap=(now - part.sampler_logprobs).abs().max())
            if part.ref_logprobs is not None:
                metrics.mean(kl=kl_estimate(now, part.ref_logprobs))
        sharding.run_along(policy.model, missing, optimizer.backward)
    return metrics


def weighed(part, pieces, logprobs, entropy, mask, settings, metrics):
    """Return each token's advantage [N], times its weight where tokens do not count alike.

    Another engine rounds otherwise than the learner (--importance-cap), and the tokens at which a
    reasoning forks may count alone (--entropy-share).
    """
    from rlm.learner.losses import importance_weights, uncertain

    found = pieces.per_token(part.advantages)
    if cap := settings.importance_cap:
        before = logprobs if part.old_logprobs is None else part.old_logprobs
        weights, ratios = importance_weights(
            before, part.sampler_logprobs, cap, drop=settings.importance_mode == "mask", mask=mask,
            sequence=pieces.sequence if settings.importance_level == "sequence" else None,
        )  # fmt: skip
        ratios = ratios[mask > 0]
        metrics.mean(importance_mean=ratios.clamp(max=cap))
        metrics.mean(importance_capped_fraction=(ratios > cap).float())
        metrics.max(importance_max=ratios.max() if len(ratios) else 0.0)
        found = found * weights
    if settings.entropy_share < 1:
        found = found * uncertain(entropy, settings.entropy_share, mask)
    return found


if __name__ == "__main__":
    sys.exit(run_main(main))
