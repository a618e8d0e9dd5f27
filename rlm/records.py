"""The nouns of the toolkit: what flows from data to loss. One meaning per field, everywhere.

Example -> Prompt -> Rollout (B, G) -> Score -> advantages (B, G) -> loss -> adapter

Shape letters, used in every comment: B prompts, G samples of each, N = B * G or a number of
tokens where it says so, P prompt tokens, C completion tokens, T = P + C, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its known answer.

    id: unique within a task, e.g. ``addition-train-17``.
    gold: the final answer as text; `rlm.answers.kinds.check_gold` can read it (checked at load).
    solution: the reasoning that leads to it, without tags and without the final answer;
        None where the data has none (such examples serve GRPO and evaluation, not SFT).
    template: the name of the template that generated it, "" where there is none.
    steps: how many sums or lines the known solution takes, 0 where that is not known.
    kind: of the answer, one of `rlm.answers.kinds.KINDS`; it says how answers are compared.
    accepted: further golds that are as right as `gold`.
    choices: the texts of the choices A, B, ... that `question` shows, for the kind choice.
    """

    id: str
    question: str
    gold: str
    solution: str | None = None
    template: str = ""
    steps: int = 0
    kind: str = "number"
    accepted: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """All that is right as an answer, the gold first."""
        return (self.gold, *self.accepted)

    @property
    def asks(self) -> dict[str, Any]:
        """What a prompt has to know beside the question: the kind, where it is no number."""
        return {} if self.kind == "number" else {"kind": self.kind}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question after the chat template, ready for the model.

    ids: token ids, P of them.
    prefill: what the template itself has already opened of the assistant's turn
        (``"<think>\\n"`` with some models, mostly ``""``); it is part of `ids`.
    """

    ids: list[int]
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one token was chosen from, in nats by the model itself: at temperature 1, nothing cut.

    likeliest: (id, log-probability) of the likeliest tokens, the first one first.
    """

    logprob: float
    likeliest: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool in a completion, with its result (rlm/tools).

    name: of the tool, "" where the call could not be read. arguments: JSON, or the text as it
        stood there. result: what the model was shown, without the marks around it.
    failure: why it failed, one of `rlm.tools.tool.REASONS`; None if it did not.
    first, tokens: where in `Rollout.ids` the tokens begin that were put in, and how many they are.
    start, written, end: characters of `Rollout.text`: where the call begins, where it ends, and
        where its result ends; what lies between the last two the tool wrote.
    """

    name: str
    arguments: str
    result: str
    failure: str | None
    first: int
    tokens: int
    start: int
    written: int
    end: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the engine sampled for one prompt.

    ids: the sampled tokens, C of them, the end token included when it was sampled. Where tools
        were called, the tokens of their results stand among them (`calls` says which).
    logprobs: log-probability of each sampled token under the sampling distribution at
        the given temperature (before top-k and top-p cut it), in nats, float32; 0 for a token that
        a tool wrote.
    text: the whole assistant turn: the prompt's prefill and the decoded completion,
        without the end token.
    finish: "stop" (end token or stop string) or "length" (cut off at the maximum).
    version: of the weights that sampled it, as the engine's last `sync` was told: in a training
        the number of steps that they had taken.
    choices: one for each sampled token, where the sampling asked for them.
    calls: of tools, in order.
    """

    ids: list[int]
    logprobs: list[float]
    text: str
    finish: str
    version: int = 0
    choices: list[Choice] | None = None
    calls: tuple[ToolCall, ...] = ()

    @property
    def tool_tokens(self) -> int:
        """How many of the tokens tools wrote."""
        return sum(call.tokens for call in self.calls)

    @property
    def length(self) -> int:
        """How many tokens the model sampled."""
        return len(self.ids) - self.tool_tokens

    @property
    def sampled(self) -> list[bool]:
        """Of each token whether the model sampled it; a tool wrote the others."""
        flags = [True] * len(self.ids)
        for call in self.calls:
            flags[call.first : call.first + call.tokens] = [False] * call.tokens
        return flags

    @property
    def sampled_logprobs(self) -> list[float]:
        """The log-probabilities of the tokens that the model sampled."""
        if not self.calls:
            return self.logprobs
        return [x for x, own in zip(self.logprobs, self.sampled, strict=True) if own]

    @property
    def own_text(self) -> str:
        """The text without what tools wrote: what the model itself says, and is judged by."""
        parts, at = [], 0
        for call in self.calls:
            parts.append(self.text[at : call.written])
            at = call.end
        return "".join([*parts, self.text[at:]])


@dataclass(frozen=True, slots=True)
class Score:
    """What a rollout earned. total = sum of weight * part.

    parts: reward name -> its unweighted value.
    reason: why no answer could be read (`rlm.answers.reading.REASONS`), None if one was read.
    judged: False where the answer could be read and not be judged (`rlm.answers.kinds`): neither
        right nor wrong, it takes no part in its group's advantage.
    facts: name -> a figure that earns nothing; its mean over all completions is logged.
    trace: what else rollouts.jsonl shall say of the completion, plain JSON values.
    """

    total: float
    parts: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    facts: dict[str, float] = field(default_factory=dict)
    trace: dict = field(default_factory=dict)
    judged: bool = True
