"""A step's rollouts with their scores: the batch, its figures, and what a probe of it advises.

It does not know where questions come from, nor how a loss is made.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch

from rlm.evaluation import numbered_steps
from rlm.grpo import live, live_groups
from rlm.records import Example, Prompt, Rollout, Score


@dataclass(frozen=True)
class Batch:
    """B questions with G scored completions each. groups and scores are [B][G].

    discarded: (group, scores) of the dead groups that were replaced; they count in the figures,
    not in the update.
    """

    examples: list[Example]
    prompts: list[Prompt]
    groups: list[list[Rollout]]
    scores: list[list[Score]]
    discarded: list[tuple[list[Rollout], list[Score]]] = field(default_factory=list)

    def rewards(self) -> torch.Tensor:
        """Return the total rewards [B, G]."""
        return torch.tensor([[float(s.total) for s in group] for group in self.scores])

    def ids(self, b: int) -> tuple[list[int], list[list[int]]]:
        """Return group b as the learner packs it: the prompt's ids, the completions' ids."""
        return self.prompts[b].ids, [rollout.ids for rollout in self.groups[b]]

    def logprobs(self, chosen: list[int]) -> torch.Tensor:
        """Return the sampler's log-probabilities [N] of the chosen groups' tokens, in order."""
        return torch.tensor([x for b in chosen for r in self.groups[b] for x in r.logprobs])

    def counted(self, chosen: list[int], keep_truncated: bool) -> torch.Tensor:
        """Return 1.0 for each completion of the chosen groups that counts in the loss, else 0.0."""
        flags = [keep_truncated or r.finish == "stop" for b in chosen for r in self.groups[b]]
        return torch.tensor(flags, dtype=torch.float32)

    def counted_tokens(self, keep_truncated: bool) -> int:
        """Return the completion tokens that count in the loss: the denominator of a token mean."""
        rollouts = [r for group in self.groups for r in group]
        return sum(len(r.ids) for r in rollouts if keep_truncated or r.finish == "stop")

    def tokens(self) -> int:
        """Return all sampled completion tokens of the groups that are learned from."""
        return self.counted_tokens(True)

    def sequences(self) -> int:
        """Return the number of completions."""
        return sum(map(len, self.groups))

    def all_live(self) -> bool:
        """Return True if no group's rewards are all equal."""
        return bool(live(self.rewards()).all())

    def with_dead_replaced(self, fresh: "Batch") -> "Batch":
        """Return this batch, its dead groups replaced by the live ones of `fresh` in turn."""
        spare = [b for b, alive in enumerate(live(fresh.rewards()).tolist()) if alive]
        lists = [list(x) for x in (self.examples, self.prompts, self.groups, self.scores)]
        news = (fresh.examples, fresh.prompts, fresh.groups, fresh.scores)
        discarded = [*self.discarded]
        # All of the fresh groups count in the figures, but for those that are learned from.
        unused = set(range(len(fresh.groups)))
        for b, alive in enumerate(live(self.rewards()).tolist()):
            if not alive and spare:
                discarded.append((self.groups[b], self.scores[b]))
                new = spare.pop(0)
                unused.discard(new)
                for mine, other in zip(lists, news, strict=True):
                    mine[b] = other[new]
        discarded += [(fresh.groups[b], fresh.scores[b]) for b in sorted(unused)]
        return Batch(*lists, discarded)


def describe(batch: Batch) -> dict[str, float]:
    """Return the figures of all that was sampled, the discarded groups included.

    reward_mean, reward_spread: of all completions; the spread is their standard deviation
    (divided by n). all_right, all_wrong, mixed: shares of the groups, by correctness where it is
    rewarded. live_fraction: groups whose rewards differ. The other shares are of all completions:
    truncated (cut off at the maximum), unreadable (no answer could be read) and by its reason,
    step_by_step (at least two numbered steps). completion_tokens: mean length. Then the means of
    the scores' parts, as reward_NAME, and of their facts.
    """
    groups = batch.groups + [group for group, _ in batch.discarded]
    scores = batch.scores + [group for _, group in batch.discarded]
    rollouts = [r for group in groups for r in group]
    flat = [s for group in scores for s in group]
    count = len(flat)
    totals = torch.tensor([[float(s.total) for s in group] for group in scores])
    verdicts = totals
    if "correctness" in flat[0].parts:
        verdicts = torch.tensor([[float(s.parts["correctness"]) for s in g] for g in scores])
    figures = {
        "reward_mean": totals.mean().item(),
        "reward_spread": totals.std(correction=0).item(),
        "live_fraction": live(totals).float().mean().item(),
        **live_groups(verdicts),
        "truncated_fraction": sum(r.finish == "length" for r in rollouts) / count,
        "unreadable_fraction": sum(s.reason is not None for s in flat) / count,
        "step_by_step_fraction": sum(numbered_steps(r.text) >= 2 for r in rollouts) / count,
        "completion_tokens": sum(len(r.ids) for r in rollouts) / count,
    }
    for name in flat[0].parts:
        figures[f"reward_{name}"] = sum(s.parts[name] for s in flat) / count
    for name in flat[0].facts:
        figures[name] = sum(s.facts[name] for s in flat) / count
    for reason, number in sorted(Counter(s.reason for s in flat if s.reason).items()):
        figures[f"unreadable_{reason}"] = number / count
    return figures


def probe_advice(figures: dict[str, float], max_tokens: int) -> list[str]:
    """Return what a probe before training says: its figures, and what to change if it must be."""
    lines = [
        f"probe: reward {figures['reward_mean']:.3f}, groups all right "
        f"{figures['all_right_fraction']:.0%}, all wrong {figures['all_wrong_fraction']:.0%}, "
        f"mixed {figures['mixed_fraction']:.0%}; cut off {figures['truncated_fraction']:.0%}, "
        f"unreadable {figures['unreadable_fraction']:.0%}"
    ]
    if figures["truncated_fraction"] > 0.2:
        lines.append(
            f"warning: more than a fifth of the completions were cut off at --max-tokens "
            f"{max_tokens}; they score 0 whatever their reasoning. Raise --max-tokens, or run "
            "train_sft.py first so that the model learns to stop"
        )
    if figures["live_fraction"] == 0:
        if figures["unreadable_fraction"] > 0.5:
            cause = "most answers cannot be read: run train_sft.py first and give its --adapter"
        elif figures["all_right_fraction"] > 0.5:
            cause = "the questions are too easy: use harder ones (--task, --digits)"
        else:
            cause = (
                "raise --group-size or --temperature, or use easier questions (--task, --digits)"
            )
        lines.append(f"warning: no group's rewards differ, so there is nothing to learn; {cause}")
    return lines


def records(step: int, batch: Batch, advantage: torch.Tensor) -> list[dict]:
    """Return a record for rollouts.jsonl of each completion that was learned from."""
    return [
        {
            "step": step,
            "id": example.id,
            "question": example.question,
            "gold": example.gold,
            "text": rollout.text,
            "tokens": len(rollout.ids),
            "finish": rollout.finish,
            "reward": score.total,
            "parts": score.parts,
            "reason": score.reason,
            "advantage": round(value, 6),
        }
        | score.trace
        for example, group, scores, row in zip(
            batch.examples, batch.groups, batch.scores, advantage.tolist(), strict=True
        )
        for rollout, score, value in zip(group, scores, row, strict=True)
    ]
