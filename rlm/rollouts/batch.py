"""A step's rollouts with their scores: the batch, its metrics, its records.

It does not know where questions come from, nor how a loss is made.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field

import torch

from rlm.answers import reward_hacking
from rlm.answers.formats import turn_of
from rlm.evaluation.measure import numbered_steps
from rlm.learner.losses import live, live_groups
from rlm.models.token_lengths import TokenLengths
from rlm.records import Example, Prompt, Rollout, Score
from rlm.tools.metrics import call_metrics

Piece = tuple[int, slice]  # a group's index and some of its completions
ALL = slice(None)


@dataclass(frozen=True)
class Batch:
    """B questions with G scored completions each. groups and scores are [B][G].

    discarded: (example, group, scores) of the dead groups that were replaced; they count in the
    metrics, not in the update.
    """

    examples: list[Example]
    prompts: list[Prompt]
    groups: list[list[Rollout]]
    scores: list[list[Score]]
    discarded: list[tuple[Example, list[Rollout], list[Score]]] = field(default_factory=list)

    def rewards(self) -> torch.Tensor:
        """Return the total rewards [B, G]."""
        return torch.tensor([[float(s.total) for s in group] for group in self.scores])

    def judged(self) -> torch.Tensor:
        """Return [B, G] bool: False for a completion whose answer could not be judged."""
        return torch.tensor([[s.judged for s in group] for group in self.scores])

    def live(self) -> torch.Tensor:
        """Return [B] bool: groups whose judged rewards differ."""
        return live(self.rewards(), self.judged())

    def ids(self, b: int, rows: slice = ALL) -> tuple[list[int], list[list[int]]]:
        """Return group b as the learner packs it: the prompt's ids, the completions' ids."""
        return self.prompts[b].ids, [rollout.ids for rollout in self.groups[b][rows]]

    def cost(self, b: int) -> int:
        """Return the tokens that learning group b goes through."""
        return len(self.prompts[b].ids) + sum(len(rollout.ids) for rollout in self.groups[b])

    def sampled(self, chosen: list[Piece]) -> list[list[bool]] | None:
        """Return of each token of the chosen completions whether the model sampled it.

        None where no tool wrote any. The others are seen by the learner and not learned from.
        """
        rollouts = [r for b, rows in chosen for r in self.groups[b][rows]]
        return [r.sampled for r in rollouts] if any(r.calls for r in rollouts) else None

    def logprobs(self, chosen: list[Piece]) -> torch.Tensor:
        """Return the sampler's log-probabilities [N] of the tokens that it sampled, of these."""
        rollouts = [r for b, rows in chosen for r in self.groups[b][rows]]
        return torch.tensor([x for r in rollouts for x in r.sampled_logprobs])

    def loss_mask(self, chosen: list[Piece], keep_truncated: bool) -> torch.Tensor:
        """Return 1.0 for each of the chosen completions that counts in the loss, else 0.0."""
        rollouts = [r for b, rows in chosen for r in self.groups[b][rows]]
        flags = [keep_truncated or r.finish == "stop" for r in rollouts]
        return torch.tensor(flags, dtype=torch.float32)

    def loss_tokens(self, keep_truncated: bool) -> int:
        """Return the completion tokens that count in the loss: the denominator of a token mean."""
        rollouts = [r for group in self.groups for r in group]
        return sum(r.length for r in rollouts if keep_truncated or r.finish == "stop")

    def tokens(self) -> int:
        """Return all sampled completion tokens of the groups that are learned from."""
        return self.loss_tokens(True)

    def staleness(self, version: int) -> float:
        """Return how many steps older than `version` the weights that sampled were, on average."""
        versions = [rollout.version for group in self.groups for rollout in group]
        return version - sum(versions) / len(versions)

    def sequences(self) -> int:
        """Return the number of completions."""
        return sum(map(len, self.groups))

    def all_live(self) -> bool:
        """Return True if no group's rewards are all equal."""
        return bool(self.live().all())

    def plus(self, other: "Batch") -> "Batch":
        """Return the groups of both batches."""
        return Batch(
            self.examples + other.examples,
            self.prompts + other.prompts,
            self.groups + other.groups,
            self.scores + other.scores,
            self.discarded + other.discarded,
        )

    def with_dead_replaced(self, fresh: "Batch") -> "Batch":
        """Return this batch, its dead groups replaced by the live ones of `fresh` in turn."""
        spare = [b for b, alive in enumerate(fresh.live().tolist()) if alive]
        examples, prompts = list(self.examples), list(self.prompts)
        groups, scores, discarded = list(self.groups), list(self.scores), list(self.discarded)
        # All of the fresh groups count in the metrics, but for those that are learned from.
        unused = set(range(len(fresh.groups)))
        for b, alive in enumerate(self.live().tolist()):
            if not alive and spare:
                discarded.append((self.examples[b], self.groups[b], self.scores[b]))
                new = spare.pop(0)
                unused.discard(new)
                examples[b], prompts[b] = fresh.examples[new], fresh.prompts[new]
                groups[b], scores[b] = fresh.groups[new], fresh.scores[new]
        left = sorted(unused)
        discarded += [(fresh.examples[b], fresh.groups[b], fresh.scores[b]) for b in left]
        return Batch(examples, prompts, groups, scores, discarded)


def describe(batch: Batch, format_name: str, *, tools: bool = False) -> dict[str, float]:
    """Return the metrics of all that was sampled, the discarded groups included.

    reward_mean, reward_spread: of all completions that were judged; the spread is their standard
    deviation (divided by n). all_right, all_wrong, mixed: shares of the groups, by correctness
    where it is rewarded. live_fraction: groups whose rewards differ. sampled_completions: how many
    there are; unjudged_completions: how many of them could not be judged and are in no reward. The
    other shares are of all completions:
    truncated (cut off at the maximum), unreadable (no answer could be read) and by its reason,
    step_by_step (at least two numbered steps), and those of `rlm.answers.reward_hacking.SIGNS`.
    completion_tokens: mean length, without what tools wrote. With `tools` the metrics of
    `rlm.tools.metrics.call_metrics`. Then the means of the scores' parts, as reward_NAME, each of
    the completions that it was given to, and of their facts.
    """
    examples = batch.examples + [example for example, _, _ in batch.discarded]
    groups = batch.groups + [group for _, group, _ in batch.discarded]
    scores = batch.scores + [group for _, _, group in batch.discarded]
    rollouts = [r for group in groups for r in group]
    flat = [s for group in scores for s in group]
    count = len(flat)
    judged = [s for s in flat if s.judged]
    totals = torch.tensor([float(s.total) for s in judged] or [0.0])
    metrics = {
        "reward_mean": totals.mean().item(),
        "reward_spread": totals.std(correction=0).item(),
        "live_fraction": live(judged_values(scores)).float().mean().item(),
        **live_groups(judged_values(scores, "correctness")),
        "sampled_completions": count,
        "unjudged_completions": count - len(judged),
        "truncated_fraction": sum(r.finish == "length" for r in rollouts) / count,
        "unreadable_fraction": sum(s.reason is not None for s in flat) / count,
        "step_by_step_fraction": sum(numbered_steps(r.own_text) >= 2 for r in rollouts) / count,
        "completion_tokens": sum(r.length for r in rollouts) / count,
    }
    if tools:
        metrics |= call_metrics(rollouts, [s.parts.get("correctness") for s in flat])
    shown = [
        reward_hacking.signs(
            example.question, turn_of(r.own_text), format_name, gold=example.gold, kind=example.kind
        )
        for example, group in zip(examples, groups, strict=True)
        for r in group
    ]
    for name in reward_hacking.SIGNS:
        metrics[f"{name}_fraction"] = sum(signs[name] for signs in shown) / count
    for name in dict.fromkeys(name for s in flat for name in s.parts):
        given = [s.parts[name] for s in judged if name in s.parts]
        metrics[f"reward_{name}"] = sum(given) / max(1, len(given))
    for name in flat[0].facts:
        metrics[name] = sum(s.facts[name] for s in flat) / count
    for reason, number in sorted(Counter(s.reason for s in flat if s.reason).items()):
        metrics[f"unreadable_{reason}"] = number / count
    return metrics


def judged_values(scores: list[list[Score]], part: str = "") -> torch.Tensor:
    """Return the totals, or a part where all have it [B, G], for what is the same within a group.

    In the place of one that was not judged stands the first of its group that was, else 0.
    """
    part = part if all(part in s.parts for group in scores for s in group) else ""
    rows = []
    for group in scores:
        values = [float(s.parts[part] if part else s.total) for s in group]
        first = next((v for v, s in zip(values, group, strict=True) if s.judged), 0.0)
        rows.append([v if s.judged else first for v, s in zip(values, group, strict=True)])
    return torch.tensor(rows)


def records(step: int, batch: Batch, advantage: torch.Tensor, tokenizer=None) -> list[dict]:
    """Return a record for rollouts.jsonl of each completion that was learned from.

    With a tokenizer also, for each token in order: token_lengths, its characters in the text
    (a prefill has none of them), and logprobs, its log-probability in nats to two places (0 of what
    a tool wrote). Where tools were called also `calls`, a `rlm.records.ToolCall` each.
    A graph of agents may add `agents` and `graph`; rlm/report/report.py shows them.
    """
    lengths = TokenLengths(tokenizer) if tokenizer else None
    made = []
    for example, prompt, group, scores, row in zip(
        batch.examples, batch.prompts, batch.groups, batch.scores, advantage.tolist(), strict=True
    ):
        for rollout, score, value in zip(group, scores, row, strict=True):
            record = {
                "step": step,
                "id": example.id,
                "question": example.question,
                "gold": example.gold,
                "text": rollout.text,
                "tokens": rollout.length,
                "finish": rollout.finish,
                "adapter_version": rollout.version,
                "reward": score.total,
                "parts": score.parts,
                "reason": score.reason,
                "judged": score.judged,
                "advantage": round(value, 6),
            }
            if rollout.calls:
                record["calls"] = [asdict(call) for call in rollout.calls]
            if lengths:
                told = lengths(rollout.text, rollout.ids, prompt.prefill, rollout.calls)
                record["token_lengths"] = told
                # -0.0 is 0: most tokens of a sure model are, and a 0 is short.
                record["logprobs"] = [round(x, 2) or 0 for x in rollout.logprobs]
            made.append(record | score.trace)
    return made
