"""GRPO by TRL's GRPOTrainer: `train_grpo.py --backend trl`, with the same data, rewards and end.

    python train_grpo.py --backend trl
    python train_grpo.py --backend trl --trl-options '{"loss_type": "sapo", "top_p": 0.95}'

The loop is TRL's (rlm/trl/grpo.py); what a batch asks, what it earns, what is logged, validated
and kept is that of train_grpo.py, so evaluate.py and report.html see no difference. It begins
anew each time: there are no checkpoints, no time budget and no trial before it.
"""

from functools import partial
from itertools import islice
from typing import Any

import data
from rlm.errors import Stopped
from rlm.parallel import check_one_gpu
from rlm.seeds import derive
from training.micro_batches import due, keep_best
from training.rates import learning_rate
from training.stage import begin


def train(settings, began: float) -> dict:
    """Train by TRL; return what train_grpo.train does."""
    from rlm.answers.reward_hacking import Watch
    from rlm.models.loading import pick_device
    from rlm.run.best import BestAdapter
    from rlm.run.nonfinite import NonFiniteGuard
    from rlm.trl import grpo

    settings.check_values()  # settings made in Python have not been
    check_one_gpu(pick_device(settings.device).type, shared=False)

    # 1. Questions with known answers; the policy; the engine that validates it.
    examples, validation = data.training_sets(settings)
    stage = begin(settings, began)
    best = BestAdapter(stage.policy.model, lambda: stage.validate(validation))
    guard, watch = NonFiniteGuard(stage.run.path), Watch(stage.run.info)
    questions = asked(stage, examples)
    stage.run.expect(settings.max_steps)
    stage.run.log({"step": 0} | best.row(step=0))

    # 2. The same batches of questions as our own loop; TRL samples and learns.
    after = partial(after_batch, stage, best, guard, watch)
    code = grpo.train(
        stage.policy,
        questions,
        fields(settings, questions.prompts, stage.peak_rate),
        score=lambda batch, groups, step: stage.task.score(
            batch, groups, seed=derive("scores", settings.seed, (step, 0))
        ),
        rate=lambda step: learning_rate(step, settings.max_steps, stage.peak_rate, settings),
        stop_ids=stage.engine.stop_ids,
        folder=str(stage.run.path),
        after_batch=after,
    )
    if code:
        raise Stopped(
            code,
            f"stopped after step {stage.run.step} of {settings.max_steps}; --backend trl keeps no "
            f"checkpoints: the logs are in {stage.run.path}, the next run begins anew",
        )

    # 3. What is kept is the latest adapter, but for falls of the validation beyond its noise.
    return keep_best(stage, best, guard, examples)


def asked(stage, examples):
    """Return the `rlm.trl.grpo.Questions`: the batches of `data.Batches`, in its order."""
    from rlm.trl.grpo import Questions

    settings, room = stage.settings, stage.engine.context_tokens
    batches = data.Batches(examples, settings.questions_per_step, seed=settings.seed)
    drawn = [e for batch in islice(batches, settings.max_steps) for e in batch]
    unique = {example.id: example for example in drawn}
    places = {name: i for i, name in enumerate(unique)}
    prompts = [stage.task.prompt(example.question, **example.asks) for example in unique.values()]
    for prompt in prompts if room else []:
        data.check_room(prompt, settings.max_tokens, room)
    return Questions(list(unique.values()), prompts, [places[e.id] for e in drawn])


def fields(settings, prompts, peak_rate: float) -> dict[str, Any]:
    """Return the fields of the GRPOConfig that takes the steps of the settings."""
    from rlm.trl.options import config_fields, micro_batch_rows

    completions = settings.questions_per_step * settings.group_size
    longest = max(len(prompt.ids) for prompt in prompts) + settings.max_tokens
    auto = settings.checkpointing == "auto"  # then by the device
    again = {} if auto else {"gradient_checkpointing": settings.checkpointing == "on"}
    return again | config_fields(
        steps=settings.max_steps,
        questions=settings.questions_per_step,
        group_size=settings.group_size,
        updates=settings.updates_per_batch,
        rows=micro_batch_rows(completions, longest, settings.token_budget),
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        learning_rate=peak_rate,
        max_grad_norm=settings.max_grad_norm,
        loss=settings.loss,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        kl_weight=settings.kl_weight,
        advantage_scale=settings.advantage_scale,
        keep_truncated=settings.truncated == "keep",
        seed=settings.seed,
        options=settings.trl_options,
    )


def after_batch(stage, best, guard, watch, step: int, batch, advantage, metrics) -> bool:
    """Log, validate and keep what our own loop does after a step; return True to end."""
    from rlm.rollouts.batch import describe, records

    settings, run = stage.settings, stage.run
    row = {"step": step} | describe(batch, settings.format) | metrics
    record = partial(records, step, batch, advantage)
    # In float16 gradients may be infinite while the loss's scale is still too high.
    scaling = str(next(stage.policy.model.parameters()).dtype) == "torch.float16"
    names = ("loss",) if scaling else ("loss", "gradient_norm")
    finite = guard.passed(step, {name: metrics[name] for name in names}, record)
    row["skipped_steps"] = guard.skipped
    ended = guard.gave_up
    if finite and (step == settings.max_steps or due(step, settings.eval_every)):
        row |= best.row(step)
        ended |= settings.early_stop and best.fell(row.get("validation_accuracy"))
    run.log(row)
    watch.look(row)
    run.write_rollouts(record())
    return ended
