"""What train_grpo.py needs around the algorithm: micro-batches, rates, when to do what, the end."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class MicroBatch:
    """Some completions, and what their loss needs, a value for each of their N tokens.

    groups: their ids, packed when it is their turn, so that one layout at a time is there. learned:
    of `rlm.rollouts.batch.Batch.sampled`: tokens that a tool wrote are none of the N.
    advantages, counts: a value per completion; counts: whether its tokens count. old_logprobs:
    None where the old policy is the one that learns. ref_logprobs: None without a KL term.
    """

    groups: list
    learned: Any
    device: Any
    advantages: Any
    counts: Any
    sampler_logprobs: Any
    old_logprobs: Any = None
    ref_logprobs: Any = None

    def pack(self):
        """Return the completions as a `rlm.learner.logprobs.Packed`."""
        from rlm.learner.logprobs import pack

        return pack(self.groups, learned=self.learned, once=True, device=self.device)


def micro_batches(
    policy, batch, advantage, settings, reference, mine, token_budget, sampler=None
) -> list[MicroBatch]:
    """Return the groups `mine` in parts of at most token_budget tokens. advantage [B, G].

    sampler: the `rlm.learner.logprobs.ReferencePolicy` that sampled, None for the policy itself.
    """
    import torch

    from rlm.learner import logprobs, sharding

    device = next(policy.model.parameters()).device
    made: list[MicroBatch] = []
    shared = logprobs.packs(policy.model)
    parts = logprobs.micro_batches([batch.ids(b) for b in mine], token_budget, shared=shared)
    passes = bool(settings.kl_weight) + (sampler is not None or asks_learner(settings))
    missing = sharding.missing_turns(policy.model, passes * len(parts))
    for part in parts:
        chosen = [(mine[i], rows) for i, rows in part]
        one = MicroBatch(
            groups=[batch.ids(b, rows) for b, rows in chosen],
            learned=batch.sampled(chosen),
            device=device,
            advantages=torch.cat([advantage[b, rows] for b, rows in chosen]),
            counts=batch.loss_mask(chosen, settings.truncated == "keep"),
            sampler_logprobs=batch.logprobs(chosen).to(device),
        )
        made.append(with_other_policies(one, policy, settings, reference, sampler))
    sharding.run_along(policy.model, missing)
    return made


def with_other_policies(part: MicroBatch, policy, settings, reference, sampler) -> MicroBatch:
    """Return the part with the log-probabilities of the reference and of the old policy."""
    if not (settings.kl_weight or settings.updates_per_batch > 1 or sampler):
        return part
    pieces, options = part.pack(), logits_options(policy, settings)
    if sampler:  # by the learner's kernels: the engine's rounding is what --importance-cap is for
        old = sampler.logprobs(pieces, **options)
    else:
        old = old_logprobs(policy, pieces, part.sampler_logprobs, settings)
    ref = reference.logprobs(pieces, **options) if settings.kl_weight else None
    return replace(part, ref_logprobs=ref, old_logprobs=old)


def asks_learner(settings) -> bool:
    """Return whether the old log-probabilities have to be the learner's own.

    Of several updates the clipped ratio is to the policy before the first. What our own engine
    sampled with is the learner's; of another engine the learner is asked.
    """
    another = settings.engine == "vllm" or settings.importance_cap > 0
    return settings.updates_per_batch > 1 and another


def old_logprobs(policy, pieces, sampler_logprobs, settings):
    """Return the old log-probabilities [N] of the clipped ratio; None where that is always 1."""
    import torch

    from rlm.learner.logprobs import token_logprobs

    if settings.updates_per_batch == 1:
        return None  # the policy that sampled is the one that learns
    if not asks_learner(settings):
        return sampler_logprobs
    with torch.no_grad():
        return token_logprobs(policy.model, pieces, **logits_options(policy, settings))[0]


def first_kl(policy, batch, b: int, settings, reference):
    """Return the KL to the start for each token of two completions, to know it for little."""
    from rlm.learner.logprobs import pack
    from rlm.learner.losses import kl_estimate

    rows, device = slice(2), next(policy.model.parameters()).device
    chosen = [(b, rows)]
    pieces = pack([batch.ids(b, rows)], learned=batch.sampled(chosen), device=device)
    ref = reference.logprobs(pieces, **logits_options(policy, settings))
    return kl_estimate(batch.logprobs(chosen).to(device), ref)


def logits_options(policy, settings) -> dict:
    """Return what logits are divided by, and how many of them are tokens."""
    return {"temperature": settings.temperature, "vocab_size": len(policy.tokenizer)}


def entropy_options(settings) -> dict:
    """Return which entropies `rlm.learner.logprobs.token_logprobs` makes: learned from, or not."""
    return {"statistics": True, "entropy_gradient": settings.entropy_bonus > 0}


def learns_dead_groups(settings) -> bool:
    """Return whether a group without advantages has a share in the gradient."""
    return bool(settings.kl_weight or settings.entropy_bonus)


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
