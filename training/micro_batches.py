"""What train_grpo.py needs around the algorithm: micro-batches, rates, when to do what, the end."""


def packed(policy, batch, advantage, settings, reference, mine, token_budget) -> list[tuple]:
    """Return the micro-batches of the groups `mine`, each with what its loss needs.

    For each of its N tokens: the advantage, the sampler's log-probability, the old policy's (None
    where it is the one that learns), whether it counts, the reference's (None without a KL term).
    """
    import torch

    from rlm.learner import sharding
    from rlm.learner.logprobs import micro_batches, pack

    device = next(policy.model.parameters()).device
    packs: list[tuple] = []
    parts = micro_batches([batch.ids(b) for b in mine], token_budget)
    passes = bool(settings.kl_weight) + asks_learner(settings)
    missing = sharding.missing_turns(policy.model, passes * len(parts))
    for part in parts:
        chosen = [(mine[i], rows) for i, rows in part]
        pieces = pack([batch.ids(b, rows) for b, rows in chosen], device=device)
        each_token = pieces.per_token(torch.cat([advantage[b, rows] for b, rows in chosen]))  # [N]
        sampler = batch.logprobs(chosen).to(device)  # [N]
        mask = pieces.per_token(batch.loss_mask(chosen, settings.truncated == "keep"))  # [N]
        ref = reference.logprobs(pieces, **scale(policy, settings)) if settings.kl_weight else None
        old = old_logprobs(policy, pieces, sampler, settings)
        packs.append((pieces, each_token, sampler, old, mask, ref))
    sharding.run_along(policy.model, missing)
    return packs


def asks_learner(settings) -> bool:
    """Return whether the old log-probabilities have to be the learner's own.

    Of several updates the clipped ratio is to the policy before the first. What our own engine
    sampled with is the learner's; of another engine the learner is asked.
    """
    another = settings.engine != "own" or settings.importance_cap > 0
    return settings.updates_per_batch > 1 and another


def old_logprobs(policy, pieces, sampler, settings):
    """Return the old log-probabilities [N] of the clipped ratio; None where that is always 1."""
    import torch

    from rlm.learner.logprobs import token_logprobs

    if settings.updates_per_batch == 1:
        return None  # the policy that sampled is the one that learns
    if not asks_learner(settings):
        return sampler
    with torch.no_grad():
        return token_logprobs(policy.model, pieces, **scale(policy, settings))[0]


def first_kl(policy, batch, b: int, settings, reference):
    """Return the KL to the start for each token of two completions, to know it for little."""
    from rlm.learner.logprobs import pack
    from rlm.learner.losses import kl_estimate

    rows, device = slice(2), next(policy.model.parameters()).device
    pieces = pack([batch.ids(b, rows)], device=device)
    ref = reference.logprobs(pieces, **scale(policy, settings))
    return kl_estimate(batch.logprobs([(b, rows)]).to(device), ref)


def scale(policy, settings) -> dict:
    """Return what logits are divided by, and how many of them are tokens."""
    return {"temperature": settings.temperature, "vocab_size": len(policy.tokenizer)}


def learning_rate(step: int, last: int, settings) -> float:
    """Return the rate of a step, counted from 1: a linear rise, then constant or a linear fall."""
    rise = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    fall = 1.0 - (step - 1) / last if settings.lr_schedule == "linear" else 1.0
    return settings.learning_rate * rise * fall


def due(step: int, every: int) -> bool:
    """Return whether something that is done every so many steps (0: never) is done now."""
    return every > 0 and step % every == 0


def checked(metrics: dict, optimizer) -> dict:
    """Return the metrics that must be finite, none if no group was live.

    In float16 gradients may be infinite while the loss's scale is still too high.
    """
    if "loss" not in metrics:
        return {}
    names = ("loss",) if optimizer.scaling else ("loss", "gradient_norm")
    return {name: metrics[name] for name in names}


def keep_best(stage, best, guard, examples) -> dict:
    """Save the best adapter; return its metrics. RunError if the run was given up."""
    if not guard.gave_up:
        stage.check_learned()
    best.put_back()
    summary = stage.finish(best.evaluation, examples, step=best.step)
    guard.check()
    return summary
