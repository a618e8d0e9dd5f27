"""What train_grpo.py needs around the algorithm: micro-batches, rates, when to do what, the end."""


def packed(policy, batch, advantage, settings, reference, mine, token_budget) -> list[tuple]:
    """Return the micro-batches of the groups `mine`, each with what its loss needs.

    For each of its N tokens: the advantage, the sampler's log-probability, whether it counts,
    the reference's log-probability (None without a KL term).
    """
    import torch

    from rlm import sharding
    from rlm.learner import micro_batches, pack

    device = next(policy.model.parameters()).device
    packs: list[tuple] = []
    parts = micro_batches([batch.ids(b) for b in mine], token_budget)
    missing = sharding.missing_turns(policy.model, len(parts)) if settings.kl_weight else 0
    for part in parts:
        chosen = [(mine[i], rows) for i, rows in part]
        pieces = pack([batch.ids(b, rows) for b, rows in chosen], device=device)
        each_token = pieces.spread(torch.cat([advantage[b, rows] for b, rows in chosen]))  # [N]
        sampler = batch.logprobs(chosen).to(device)  # [N]
        mask = pieces.spread(batch.counted(chosen, settings.truncated == "keep"))  # [N]
        ref = reference.logprobs(pieces, **scale(policy, settings)) if settings.kl_weight else None
        packs.append((pieces, each_token, sampler, mask, ref))
    sharding.run_along(policy.model, missing)
    return packs


def first_kl(policy, batch, b: int, settings, reference):
    """Return the KL to the start for each token of two completions, to know it for little."""
    from rlm.grpo import kl_estimate
    from rlm.learner import pack

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


def checked(figures: dict, optimizer) -> dict:
    """Return the figures that must be finite, none if no group was live.

    In float16 gradients may be infinite while the loss's scale is still too high.
    """
    if "loss" not in figures:
        return {}
    names = ("loss",) if optimizer.scaling else ("loss", "gradient_norm")
    return {name: figures[name] for name in names}


def keep_best(stage, best, guard, examples) -> dict:
    """Save the best adapter; return its figures. RunError if the run was given up."""
    if not guard.gave_up:
        stage.check_learned()
    best.put_back()
    summary = stage.finish(best.evaluation, examples, step=best.step)
    guard.check()
    return summary
