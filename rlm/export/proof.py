"""Whether two models are the same: by the logits behind fixed prompts and by greedy answers.

    same_model(live, fresh, tokenizer, prompts(tokenizer, "think"), tolerance=1e-5, max_tokens=16)

It does not know what was saved or how. Models are looked at one after the other (`look`,
`compare`), so that one can be freed before the other is loaded.
"""

from dataclasses import dataclass

import torch

from rlm.data import problems
from rlm.engine.cuda_graphs import rounded_width
from rlm.engine.engine import Engine, Sampling
from rlm.errors import InputError
from rlm.models.prompts import make_prompt
from rlm.records import Prompt

PROMPTS = 32
SHORT, LONG = 16, 64  # tokens of a greedy answer at most: after each training, for an export
EXACT = 1e-5  # the same weights in the same format: nothing is rounded otherwise
REORDERED = 1e-4  # the same weights in float32, added up in another order
SEED = 20  # of the prompts, which are the same for ever


class ProofError(InputError):
    """Two models that had to be the same are not; one line says what differs by how much."""


@dataclass(frozen=True)
class Seen:
    """logits: [n, V] float32 behind the last token of each prompt. answers: n lists of ids.

    max_tokens: of an answer, which is cut off there.
    """

    logits: torch.Tensor
    answers: list[list[int]]
    max_tokens: int

    def first(self) -> "Seen":
        """Return what a look with one token would have seen."""
        return Seen(self.logits, [ids[:1] for ids in self.answers], 1)


class Watched(Engine):
    """An engine that keeps the logits behind each prompt, in the order the prompts came in."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen: list[torch.Tensor] = []
        runner = self._runner
        logits = runner.logits

        def kept(old, admitted, new, waiting):
            found = logits(old, admitted, new, waiting)
            self.seen.append(found[len(old) :].float().cpu())
            return found

        runner.logits = kept


def prompts(tokenizer, format_name: str) -> list[Prompt]:
    """Return the fixed prompts: sums of three numbers, through the tokenizer's chat template."""
    examples = problems.additions(SEED, PROMPTS)
    return [make_prompt(example.question, tokenizer, format_name) for example in examples]


def look(model, tokenizer, prompts: list[Prompt], *, max_tokens: int) -> Seen:
    """Return what the model makes of the prompts; its own state stays as it is."""
    # Not by what memory is free: other shapes of a step would round the same model otherwise.
    room = len(prompts) * rounded_width(max(len(p.ids) for p in prompts) + max_tokens)
    options = {"max_rows": len(prompts), "cache_tokens": room, "cuda_graphs": False}
    engine = Watched(model, tokenizer, **options)
    groups = engine.generate(prompts, 1, Sampling(max_tokens, temperature=0.0), seed=0)
    return Seen(torch.cat(engine.seen), [rollout.ids for (rollout,) in groups], max_tokens)


def difference(one: Seen, other: Seen) -> float:
    """Return the largest difference of two logits at the same place; infinite for other shapes."""
    if one.logits.shape != other.logits.shape:
        return float("inf")
    return float((one.logits - other.logits).abs().max())


def compare(one: Seen, other: Seen, *, tolerance: float, same_answers: bool = True) -> dict:
    """Return prompts, max_tokens, logit_difference, logit_tolerance, equal_answers_fraction.

    The last is a share of the prompts; answers were compared up to max_tokens tokens.
    ProofError if a logit differs by more than `tolerance`, or is no number, or, with
    `same_answers`, if a single greedy answer differs.
    """
    found = difference(one, other)
    pairs = list(zip(one.answers, other.answers, strict=True))
    equal = sum(first == second for first, second in pairs)
    # Written so that NaN fails.
    if not found <= tolerance or (same_answers and equal < len(pairs)):
        raise ProofError(
            f"logits differ by up to {found:.3g} ({tolerance:.3g} is allowed), "
            f"{len(pairs) - equal} of {len(pairs)} greedy answers differ"
        )
    return {
        "prompts": len(pairs),
        "max_tokens": one.max_tokens,
        "logit_difference": found,
        "logit_tolerance": tolerance,
        "equal_answers_fraction": equal / len(pairs),
    }


def same_model(one, other, tokenizer, prompts, *, tolerance: float, max_tokens: int) -> dict:
    """Return `compare` of two models with equal answers; ProofError if they are not the same."""
    first, second = (look(m, tokenizer, prompts, max_tokens=max_tokens) for m in (one, other))
    return compare(first, second, tolerance=tolerance)


def told(metrics: dict) -> str:
    """Return the metrics of `compare` in words.

    >>> told({"prompts": 32, "max_tokens": 16, "logit_difference": 0.0,
    ...       "logit_tolerance": 1e-05, "equal_answers_fraction": 1.0})
    'logits differ by 0 at most (1e-05 is allowed), 32 of 32 greedy answers of 16 tokens are equal'
    """
    prompts, tokens = metrics["prompts"], metrics["max_tokens"]
    equal = round(metrics["equal_answers_fraction"] * prompts)
    return (
        f"logits differ by {metrics['logit_difference']:.3g} at most "
        f"({metrics['logit_tolerance']:.3g} is allowed), "
        f"{equal} of {prompts} greedy answers of {tokens} tokens are equal"
    )
