"""The maths of GRPO: advantages from rewards, a loss from log-probabilities. Pure tensors.

It does not know about models, tokens' meaning, micro-batches or processes. What a mean needs of
the whole optimiser step (how many tokens, how many completions) is passed in, so losses and
metrics of micro-batches add up to those of the step, whatever the cut.

Where this differs from TRL 1.16's GRPOTrainer, on purpose:
- A group of equal rewards has advantage exactly 0; TRL's may be a rounding error over 1e-4.
- cispo truncates weights at 1 + clip_high, as its paper writes it; TRL's epsilon_high is the
  bound itself (TRL's 5.0 is clip_high 4.0 here).
- Denominators are the step's true counts. TRL's per-sequence losses average micro-batches of
  equal size, which is the same, and also averages a last, smaller one with them, which is not.
- Clip shares weigh tokens in every loss; TRL counts sequences in GSPO.
- An entropy bonus is averaged as the loss averages its tokens; TRL's is the mean over each
  micro-batch's tokens, whatever the loss.
- Weights for another engine's samples multiply the token losses of vespo as of all others; TRL
  puts them inside its weight of the whole completion.
"""

import math

import torch

LOSSES = ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "gspo", "sapo", "luspo", "vespo")
UNCLIPPED = ("sapo", "vespo")  # they have a soft bound of their own
SCALES = ("group", "batch", "none")
EPSILON = 1e-4  # added to the standard deviation, as TRL does
# Of better and of worse completions: sapo's temperatures, vespo's k and lambda, as TRL has them.
SAPO = (1.0, 1.05)
VESPO_K, VESPO_LAMBDA = (2.0, 3.0), (3.0, 2.0)


def live(rewards: torch.Tensor, judged: torch.Tensor | None = None) -> torch.Tensor:
    """Return [B] bool: groups whose rewards differ, the only ones that teach anything.

    rewards [B, G]. By max != min: a division would leave rounding errors as advantages.
    judged [B, G] bool: which rewards count; None: all.

    >>> live(torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 0.0]])).tolist()
    [False, True]
    """
    if judged is None:
        return rewards.amax(1) != rewards.amin(1)
    most, least = (rewards.masked_fill(~judged, x) for x in (-torch.inf, torch.inf))
    return judged.any(1) & (most.amax(1) != least.amin(1))


def live_groups(rewards: torch.Tensor, *, right: float = 1.0) -> dict[str, float]:
    """Return the shares of groups that are all right, all wrong and mixed; they sum to 1.

    rewards [B, G]. Mixed: rewards differ. Of the others, all right from `right` upwards. With
    shaped rewards, pass the correctness alone if its shares are wanted.

    >>> live_groups(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    {'all_right_fraction': 0.25, 'all_wrong_fraction': 0.25, 'mixed_fraction': 0.5}
    """
    mixed = live(rewards)
    all_right = ~mixed & (rewards[:, 0] >= right)
    groups = len(rewards)
    right_count, mixed_count = int(all_right.sum()), int(mixed.sum())
    return {
        "all_right_fraction": right_count / groups,
        "all_wrong_fraction": (groups - right_count - mixed_count) / groups,
        "mixed_fraction": mixed_count / groups,
    }


def advantages(
    rewards: torch.Tensor, scale: str = "group", judged: torch.Tensor | None = None
) -> torch.Tensor:
    """Return [B, G]: how much better each completion is than its own group.

    A_i = (r_i - mean(r)) / (std(r) + 1e-4), arXiv:2402.03300 section 4.1.2. std divides by the
    count minus one.
    rewards: [B, G], finite. scale: "group" divides by the group's own std; "batch" by the std of
    all B * G rewards (arXiv:2508.08221); "none" not at all (Dr. GRPO, arXiv:2503.20783).
    judged: [B, G] bool, None for all: a reward that is False there is in no mean and no std, and
    its own advantage is 0.
    Exactly 0 in a group whose rewards are all equal. ValueError for G 1, an unknown scale, or a
    reward that is not finite.

    >>> advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none").tolist()
    [[0.75, -0.25, -0.25, -0.25]]
    >>> advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))  # std 0.5 and 0
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    if scale not in SCALES:
        raise ValueError(f"advantage scale {scale!r}: unknown; use one of {', '.join(SCALES)}")
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)}: groups are [B, G] and need at least 2 "
            "samples to have a mean to beat; use a group size of 2 or more"
        )
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}; check the rewards")
    if not rewards.is_floating_point():
        rewards = rewards.float()
    if judged is not None and not bool(judged.all()):
        return _advantages_of_judged(rewards, scale, judged)
    result = rewards - rewards.mean(1, keepdim=True)  # [B, G]
    if scale == "group":
        result = result / (rewards.std(1, keepdim=True) + EPSILON)
    elif scale == "batch":
        result = result / (rewards.std() + EPSILON)
    return torch.where(live(rewards)[:, None], result, torch.zeros_like(result))


def _advantages_of_judged(rewards: torch.Tensor, scale: str, judged: torch.Tensor) -> torch.Tensor:
    """Return the advantages [B, G] where groups are as small as what was judged of them."""
    result = torch.zeros_like(rewards)
    of_batch = rewards[judged].std() if int(judged.sum()) > 1 else rewards.new_zeros(())
    for b in range(len(rewards)):
        group = rewards[b, judged[b]]
        if len(group) > 1 and bool(live(group[None])):
            by = {"group": group.std() + EPSILON, "batch": of_batch + EPSILON, "none": 1.0}[scale]
            result[b, judged[b]] = (group - group.mean()) / by
    return result


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return each token's estimate of KL(policy || reference), never negative, in nats.

    k3 = p_ref/p - log(p_ref/p) - 1, arXiv:2402.03300 eq. 4. Any shape.

    >>> kl_estimate(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.5, 0.5]).log())  # 2-ln2-1
    tensor([0.0000, 0.3069])
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1


def importance_weights(
    logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor,
    cap: float,
    *,
    drop: bool = False,
    sequence: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (weights, ratios) [N], detached: what makes up for an engine with other kernels.

    ratio = exp(logprobs - sampler_logprobs), weight = min(ratio, cap), to be multiplied with each
    token's loss: truncated importance sampling, Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training" (fengyao.notion.site/off-policy-rl). With `drop` a
    weight above the cap is 0 instead. With `sequence` [N] (as in `policy_loss`) the ratio is that
    of the whole completion: the product over its tokens that count in `mask` [N].
    The four are TRL 1.16's vllm_importance_sampling_mode token_truncate, token_mask,
    sequence_truncate and sequence_mask (its default), the cap its
    vllm_importance_sampling_clip_max.
    logprobs: the learner's before its first update on these tokens; sampler_logprobs: what the
    engine sampled them with, at the same temperature.

    >>> learner, engine = torch.tensor([0.5, 0.9, 0.2]).log(), torch.tensor([0.5, 0.3, 0.4]).log()
    >>> importance_weights(learner, engine, 2.0)
    (tensor([1.0000, 2.0000, 0.5000]), tensor([1.0000, 3.0000, 0.5000]))
    >>> importance_weights(learner, engine, 2.0, drop=True, sequence=torch.tensor([0, 0, 1]))
    (tensor([0.0000, 0.0000, 0.5000]), tensor([3.0000, 3.0000, 0.5000]))
    """
    log_ratio = (logprobs - sampler_logprobs).detach()
    if sequence is not None:
        counted = log_ratio if mask is None else log_ratio * mask
        empty = log_ratio.new_zeros(_completions(sequence))
        log_ratio = empty.index_add(0, sequence, counted)[sequence]
    ratios = log_ratio.exp()
    return ratios.masked_fill(ratios > cap, 0) if drop else ratios.clamp(max=cap), ratios


def uncertain(entropy: torch.Tensor, share: float, mask: torch.Tensor) -> torch.Tensor:
    """Return 1.0 for the share of the counted tokens with the highest entropy, else 0.0 [N].

    arXiv:2506.01939: the few tokens at which a reasoning forks carry what there is to learn. The
    threshold is the (1 - share) quantile of this call's tokens, so it depends on what shares a
    micro-batch, as in TRL 1.16 (top_entropy_quantile). entropy, mask [N].

    >>> uncertain(torch.tensor([0.1, 0.9, 0.3, 0.0, 2.0]), 0.5, torch.tensor([1, 1, 1, 1, 0]))
    tensor([0., 1., 1., 0., 0.])
    """
    counted = mask > 0
    if not bool(counted.any()):
        return torch.zeros_like(entropy)
    threshold = torch.quantile(entropy[counted].float(), 1 - share)
    return ((entropy >= threshold) & counted).to(entropy.dtype)


def with_entropy_bonus(
    terms: torch.Tensor, entropy: torch.Tensor | None, weight: float
) -> torch.Tensor:
    """Return each token's loss less weight times its entropy [N], both with gradient.

    A policy that is sure too early stops exploring: Williams and Peng 1991, "Function Optimization
    Using Connectionist Reinforcement Learning Algorithms"; Mnih et al. 2016, arXiv:1602.01783
    section 4. ValueError without entropies.

    >>> p = torch.tensor([[0.5, 0.5], [0.75, 0.25]])  # H = ln 2 and 2 ln 2 - 3/4 ln 3
    >>> with_entropy_bonus(torch.zeros(2), -(p * p.log()).sum(1), 0.1)
    tensor([-0.0693, -0.0562])
    """
    if entropy is None:
        raise ValueError(f"entropy bonus {weight} needs entropies; pass them, or use weight 0")
    return terms - weight * entropy


def token_terms(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    sequence: torch.Tensor,
    *,
    loss_type: str,
    clip_low: float,
    clip_high: float,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return each token's loss before any mean [N], its weight w [N], and what was clipped.

    w = exp(logprobs - old_logprobs), and arXiv:2402.03300 eq. 3 in all losses but cispo:
        t = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)
    cispo, arXiv:2506.13585 eq. 4-5:  t = -detach(min(w, 1 + clip_high)) A logprobs
    gspo, arXiv:2507.18071 eq. 5-7:   w = exp(mean over the completion's tokens of the log-ratio)
    luspo, arXiv:2602.05261:          gspo's w
    sapo, arXiv:2511.20347:           t = -4 / T sigmoid(T (w - 1)) A, T by the sign of A
    vespo, arXiv:2602.10693:          t = -detach(phi(W)) A logprobs (`vespo_weights`)
    Arguments as in `policy_loss`.

    >>> old, one = torch.tensor([0.5, 0.5]).log(), torch.ones(2)
    >>> token_terms(old + 0.4, old, one, torch.tensor([0, 1]), mask=one,
    ...             loss_type="dapo", clip_low=0.2, clip_high=0.28)[0]  # w 1.49, cut to 1.28
    tensor([-1.2800, -1.2800])
    """
    # Masked before exp: a token that does not count cannot overflow.
    log_ratio = (logprobs - old_logprobs) * mask
    if loss_type in ("gspo", "luspo"):
        log_ratio = _sequence_mean(log_ratio, sequence, mask)[sequence]
    ratio = log_ratio.exp()
    high = ratio > 1 + clip_high
    if loss_type == "cispo":
        term = -ratio.clamp(max=1 + clip_high).detach() * advantages * logprobs
        low, high = torch.zeros_like(high), high & (advantages != 0)
    elif loss_type in UNCLIPPED:
        if loss_type == "sapo":
            heat = torch.where(advantages > 0, *SAPO).to(ratio.dtype)
            term = -torch.sigmoid(heat * (ratio - 1)) * 4 / heat * advantages
        else:
            term = -vespo_weights(log_ratio, advantages, sequence) * advantages * logprobs
        low = high = torch.zeros_like(high)
    else:
        clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
        term = -torch.minimum(ratio * advantages, clipped * advantages)
        low, high = (ratio < 1 - clip_low) & (advantages < 0), high & (advantages > 0)
    return term, ratio, {"clip_low_fraction": low, "clip_high_fraction": high}


def vespo_weights(
    log_ratio: torch.Tensor, advantages: torch.Tensor, sequence: torch.Tensor
) -> torch.Tensor:
    """Return phi(W) at each token [N], detached: 1 at W = 1, towards 0 far from it on both sides.

    phi(W) = W^k exp(lambda (1 - W)), W = exp(sum of the completion's log-ratios); k and lambda by
    the sign of its advantage. arXiv:2602.10693, with the bounds of TRL 1.16: a token's log-ratio
    20 at most, log W from log 1e-8 to 20.
    log_ratio [N], 0 where a token does not count; the others as in `policy_loss`.

    >>> vespo_weights(torch.tensor([2.0, 1.0]).log(), torch.ones(2), torch.tensor([0, 0]))
    tensor([0.1991, 0.1991])
    """
    empty = log_ratio.new_zeros(_completions(sequence))
    log_w = empty.index_add(0, sequence, log_ratio.detach().clamp(-20, 20))[sequence]
    log_w = log_w.clamp(math.log(1e-8), 20)
    better = advantages >= 0
    k, slope = torch.where(better, *VESPO_K), torch.where(better, *VESPO_LAMBDA)
    return (k * log_w + slope * (1 - log_w.exp())).exp().to(log_ratio.dtype)


def aggregate(
    terms: torch.Tensor,
    sequence: torch.Tensor,
    *,
    loss_type: str,
    tokens: float,
    sequences: int,
    max_tokens: int,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return the scalar that a step's token losses come to: who shares how much in the mean.

    grpo, gspo, sapo    sum of the completions' token means / sequences    arXiv:2402.03300 eq. 3
    dapo, cispo, vespo  sum / tokens                                       arXiv:2503.14476 eq. 8
    dr_grpo      sum / (sequences * max_tokens)                       arXiv:2503.20783 section 3.2
    luspo        sum / sequences, so a longer completion counts more  arXiv:2602.05261
    bnpo         mean over this call's tokens, weighed by the call's share of `sequences`: TRL's,
                 without a paper; it depends on what shares a micro-batch
    Arguments as in `policy_loss`.

    >>> terms, sequence = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 1, 1])
    >>> options = dict(tokens=3, sequences=2, max_tokens=4, mask=torch.ones(3))
    >>> for loss in ("grpo", "dapo", "dr_grpo"):  # (1 + 4) / 2, 9 / 3, 9 / 8
    ...     print(aggregate(terms, sequence, loss_type=loss, **options).item())
    2.5
    3.0
    1.125
    """
    terms = terms * mask
    if loss_type in ("grpo", "gspo", "sapo"):
        return _sequence_mean(terms, sequence, mask).sum() / sequences
    if loss_type == "dr_grpo":
        return terms.sum() / (sequences * max_tokens)
    if loss_type == "luspo":
        return terms.sum() / sequences
    if loss_type == "bnpo":
        share = _completions(sequence) / sequences
        return terms.sum() / mask.sum().clamp(min=1) * share
    return terms.sum() / max(tokens, 1)


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    sequence: torch.Tensor,
    *,
    loss_type: str = "dapo",
    tokens: float,
    sequences: int,
    max_tokens: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ref_logprobs: torch.Tensor | None = None,
    kl_weight: float = 0.0,
    kl_unbiased: bool = True,
    entropy: torch.Tensor | None = None,
    entropy_bonus: float = 0.0,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return (loss, metrics): the share of some whole completions in the step's loss.

    aggregate(token_terms + kl_weight * kl - entropy_bonus * entropy), see there; arXiv:2402.03300
    eq. 3. kl is kl_estimate, times the ratio with `kl_unbiased` (arXiv:2512.02556, TRL's default):
    only then is its gradient that of KL(policy || reference), even where the ratio is 1.
    N tokens, all of a completion's in one call. logprobs [N], with gradient. old_logprobs [N],
    or None: the policy itself sampled, every ratio is 1. advantages [N], the completion's at
    each token (times a weight >= 0 if wanted). sequence [N] long: each token's completion,
    counted from 0 in this call. ref_logprobs [N]. entropy [N], with gradient.
    mask [N]: 1 for tokens that count, 0 for those that do not (a truncated completion's).
    tokens, sequences: of the whole optimiser step and all processes; tokens without the masked
    ones, sequences with them. max_tokens: the sampling limit.
    metrics, detached, each a sum over this call's counted tokens / `tokens`, so they add up to
    the step's token means: clip_low_fraction and clip_high_fraction (tokens whose gradient the
    clip took away; in cispo, cut), ratio_shift (ratio - 1) and, with ref_logprobs, kl.
    ValueError for an unknown loss, or a weight without its ref_logprobs or entropy.

    >>> loss, metrics = policy_loss(
    ...     torch.tensor([0.6, 0.3]).log(), torch.tensor([0.5, 0.5]).log(),
    ...     torch.tensor([1.0, -1.0]), torch.tensor([0, 1]),
    ...     tokens=2, sequences=2, max_tokens=8, clip_low=0.2, clip_high=0.1)
    >>> loss  # ratios 1.2 and 0.6: (-min(1.2, 1.1) - min(-0.6, -0.8)) / 2
    tensor(-0.1500)
    >>> metrics["clip_low_fraction"], metrics["clip_high_fraction"]
    (tensor(0.5000), tensor(0.5000))
    """
    _check(loss_type, kl_weight, ref_logprobs)
    mask = torch.ones_like(logprobs) if mask is None else mask.to(logprobs.dtype)
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    clip = {"loss_type": loss_type, "clip_low": clip_low, "clip_high": clip_high, "mask": mask}
    terms, ratio, token_metrics = token_terms(logprobs, old, advantages, sequence, **clip)
    token_metrics["ratio_shift"] = ratio - 1
    if ref_logprobs is not None:
        ref = torch.where(mask > 0, ref_logprobs, logprobs.detach())
        token_metrics["kl"] = kl_estimate(logprobs, ref) * (ratio if kl_unbiased else 1)
        terms = terms + kl_weight * token_metrics["kl"] if kl_weight else terms
    terms = with_entropy_bonus(terms, entropy, entropy_bonus) if entropy_bonus else terms
    step: dict = {"tokens": tokens, "sequences": sequences, "max_tokens": max_tokens}
    loss = aggregate(terms, sequence, loss_type=loss_type, mask=mask, **step)
    counts = max(tokens, 1)
    return loss, {name: (x.detach() * mask).sum() / counts for name, x in token_metrics.items()}


def _check(loss_type: str, kl_weight: float, ref_logprobs: torch.Tensor | None) -> None:
    if loss_type not in LOSSES:
        raise ValueError(f"loss {loss_type!r}: unknown; use one of {', '.join(LOSSES)}")
    if kl_weight and ref_logprobs is None:
        raise ValueError(f"KL weight {kl_weight} needs ref_logprobs; pass them, or use weight 0")


def _completions(sequence: torch.Tensor) -> int:
    return int(sequence.max()) + 1 if len(sequence) else 0


def _sequence_mean(x: torch.Tensor, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return [completions]: the mean of x [N], masked already, over each one's counted tokens."""
    empty = x.new_zeros(_completions(sequence))
    return empty.index_add(0, sequence, x) / empty.index_add(0, sequence, mask).clamp(min=1)
