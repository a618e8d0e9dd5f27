"""What comes back: a finished job -> its samples read, their votes, usage and timing.

An answer is what `rlm.answers` reads, a number as its exact value; what cannot be read is none. It
is read from what the model itself wrote: the result of a tool is no answer.
"""

import bisect
import time
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel

from rlm.answers.kinds import stated
from rlm.answers.reading import Answer, read_answer
from rlm.answers.texts import Stated
from rlm.evaluation.statistics import majority
from rlm.models.text_stream import decode
from rlm.models.token_lengths import TokenLengths
from rlm.records import Rollout
from rlm.server.job import OWN_ENDS, Job
from rlm.server.splitter import ANSWER, REASONING, Placed, Splitter

Finish = Literal["stop", "length", "stop_sequence", "timeout", "cancelled", "error"]


class Usage(BaseModel):
    """Tokens. completion_tokens: that all samples sampled; reasoning_tokens are among them.

    tool_tokens: that tools wrote into them, in no other count.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    tool_tokens: int
    total_tokens: int


class Timing(BaseModel):
    """Milliseconds since the request was accepted; tokens per second outside the queue."""

    queue_ms: float
    first_token_ms: float
    total_ms: float
    tokens_per_second: float


class Vote(BaseModel):
    """How n samples voted. winner: the answer with the most votes, the first of them in a tie.

    votes: answer -> samples that gave it. agreement: the winner's share of all n.
    """

    n: int
    winner: str | None
    votes: dict[str, int]
    agreement: float


class CallReply(BaseModel):
    """A call of a tool that the server ran. arguments: JSON, or the text as it stood there.

    result: what the model was shown. failure: why it failed, null if it did not. tokens: of the
    result. start, end: characters of the reasoning or of the answer's text, whichever channel
    says: from the call to the end of its result.
    """

    name: str
    arguments: str
    result: str
    failure: str | None
    tokens: int
    channel: Literal["reasoning", "answer"]
    start: int
    end: int


class SampleReply(BaseModel):
    """One sample; null texts were not asked for."""

    index: int
    reasoning: str | None
    answer: str | None
    answer_parsed: bool
    text: str | None
    tool_calls: list[CallReply]
    finish_reason: Finish
    completion_tokens: int


class ReasoningReply(BaseModel):
    """answer: the exact value in its shortest spelling, null where none can be read.

    text: the whole turn, tags and results of tools included (without the reasoning if that was
    left out). tool_calls: in it, in order.
    """

    id: str
    object: Literal["phase1.reasoning"]
    created: int
    model: str
    seed: int
    reasoning: str | None
    answer: str | None
    answer_parsed: bool
    text: str
    tool_calls: list[CallReply]
    finish_reason: Finish
    vote: Vote | None
    samples: list[SampleReply] | None
    usage: Usage
    timing: Timing


@dataclass(frozen=True)
class Read:
    """A sample taken apart. said: the text behind the reasoning, without tags.

    tokens, reasoning_tokens: that were sampled. calls: of tools, in order.
    """

    index: int
    reasoning: str
    said: str
    text: str
    answer: Answer | Stated
    finish: str
    tokens: int
    reasoning_tokens: int
    tool_tokens: int = 0
    calls: tuple[Placed, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it came to its own end."""
        return self.finish in OWN_ENDS

    @property
    def vote(self) -> tuple | None:
        value = self.answer.value
        percent = isinstance(self.answer, Answer) and self.answer.percent
        return None if value is None else (value, percent)


def read_samples(job: Job, fmt, tokenizer, kind: str = "number") -> list[Read]:
    """Return the samples of a finished job."""
    return [read_sample(job, index, fmt, tokenizer, kind) for index in range(len(job.samples))]


def read_sample(job: Job, index: int, fmt, tokenizer, kind: str = "number") -> Read:
    """Return one sample that has ended. kind: of the answers, of `rlm.answers.kinds.KINDS`."""
    sample = job.samples[index]
    assert job.prompt and sample.rollout and sample.finish, "it has not ended"
    rollout = sample.rollout
    text, own = rollout.text, rollout.own_text
    splitter, parts = Splitter(fmt), {REASONING: "", ANSWER: ""}
    for channel, delta in (*splitter.feed(text), *splitter.finish()):
        parts[channel] += delta
    answer: Answer | Stated = Answer(reason="empty")
    if sample.finish in OWN_ENDS:
        answer = _answer(own, fmt.name, kind, sample.finish)
    return Read(
        index=index,
        reasoning=parts[REASONING],
        said=parts[ANSWER],
        text=text,
        answer=answer,
        finish=sample.finish,
        tokens=rollout.length,
        reasoning_tokens=_tokens_of(splitter.reasoned, rollout, job.prompt.prefill, tokenizer),
        tool_tokens=rollout.tool_tokens,
        calls=tuple(placed for call in rollout.calls if (placed := splitter.place(call))),
    )


def _answer(text: str, format_name: str, kind: str, finish: str) -> Answer | Stated:
    """Return what a text states; a completion that was cut off may have stated a part of it."""
    if kind != "number":
        found, reason = stated(text, format_name, kind, finish=finish)
        return Stated(found, found, reason)
    answer = read_answer(text, format_name)
    # Cut off in the middle of a number, its beginning would be a made-up answer.
    if finish == "length" and read_answer(text + "0", format_name) != answer:
        return answer if text[-1:].isspace() else Answer(reason="unparsable")
    return answer


def _tokens_of(characters: int, rollout: Rollout, prefill: str, tokenizer) -> int:
    """Return how many tokens the model sampled for so many characters of the turn."""
    characters, ids = characters - len(prefill), rollout.ids
    if rollout.calls:
        lengths = TokenLengths(tokenizer)(rollout.text, ids, prefill, rollout.calls)
        starts = accumulate(lengths, initial=0)
        return sum(
            own and at < characters for own, at in zip(rollout.sampled, starts, strict=False)
        )
    # The text of the first k tokens grows with k, so the right k is found by halving.
    counts = range(len(ids))
    return bisect.bisect_left(counts, characters, key=lambda k: len(decode(tokenizer, ids[:k])))


def count_votes(samples: list[Read]) -> tuple[Read, Vote]:
    """Return the sample that won, and the votes. Unread ones do not vote, but count in n.

    Without any vote it is the first sample that came to its own end.
    """
    winner = majority([sample.vote for sample in samples])
    names = [sample.answer.canonical for sample in samples]
    counts = Counter(name for name in names if name is not None)
    n = len(samples)
    if winner is None:
        return first_ended(samples), Vote(n=n, winner=None, votes={}, agreement=0.0)
    answer = names[winner] or ""
    vote = Vote(n=n, winner=answer, votes=dict(counts), agreement=counts[answer] / n)
    return samples[winner], vote


def first_ended(samples: list[Read]) -> Read:
    """Return the first sample that came to its own end, else the first."""
    return next((sample for sample in samples if sample.ended), samples[0])


def usage(job: Job, samples: list[Read]) -> dict:
    """Return the tokens of a job; the prompt counts once, what tools wrote in no other count."""
    completion = sum(sample.tokens for sample in samples)
    prompt = len(job.prompt.ids) if job.prompt else 0
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        reasoning_tokens=sum(sample.reasoning_tokens for sample in samples),
        tool_tokens=sum(sample.tool_tokens for sample in samples),
        total_tokens=prompt + completion,
    ).model_dump()


def timing(job: Job, tokens: int) -> dict:
    """Return the times of a job; one that never left the queue has no first token but its end."""
    end = job.ended or time.monotonic()
    started = end if job.started is None else job.started
    first = end if job.first_token is None else job.first_token
    running = end - started
    return Timing(
        queue_ms=_ms(started - job.accepted),
        first_token_ms=_ms(first - job.accepted),
        total_ms=_ms(end - job.accepted),
        tokens_per_second=round(tokens / running, 1) if running > 0 else 0.0,
    ).model_dump()


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 1)
