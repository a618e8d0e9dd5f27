"""One request of the engine: what was asked, what it has so far, and how it ends."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch

from rlm.engine.kv_cache import Prefix
from rlm.engine.sampling import Sampling
from rlm.engine.tool_calls import Calls
from rlm.models.text_stream import TextStream, decode
from rlm.records import Choice, Prompt, Rollout, ToolCall

DRAWN = 256  # random numbers that are drawn at a time


@dataclass(frozen=True, slots=True)
class Event:
    """What one step did to one request.

    token: the sampled token, None where there is none (the end of a cancelled request, a result).
    text: the piece of text that is now certain, for a request submitted with stream=True.
    rollout: the result if the request has ended, else None.
    cause: why it ended: "stop" (end token), "stop_text", "length" or "cancelled"; else None.
    choice: what the token was chosen from, where the sampling asked for it.
    call: the call of a tool that has its result now; the text is what was shown to the model.
    """

    id: int
    token: int | None
    text: str = ""
    rollout: Rollout | None = None
    cause: str | None = None
    choice: Choice | None = None
    call: ToolCall | None = None


@dataclass(eq=False, slots=True)
class Group:
    """Requests that share a prompt; its cache is kept until the last of them runs."""

    prompt: Prompt
    waiting: deque = field(default_factory=deque)
    prefix: Prefix | None = None
    logits: torch.Tensor | None = None  # [V] behind the prompt's last token

    def forget(self) -> None:
        """Drop the cached prompt."""
        self.prefix = self.logits = None


@dataclass(eq=False, slots=True)
class Row:
    """One request.

    uniforms: its random numbers. watched: has an event for every token. text: where the text
    is followed, for a stream or for stop texts. cached: its tokens in the cache. forced: tokens
    that come next, whatever is sampled. closed: there is no reasoning (any more) to bound.
    most: tokens that it may have at most, the prompt's included. quiet: nothing is to be done for
    a token that does not end it, but to keep it. last: tokens before the last that it may have.
    calls: of tools, None without any. more: how many of its tokens before the last one are not in
    the cache yet.
    """

    id: int
    group: Group
    sampling: Sampling
    uniforms: Iterator[float]
    watched: bool
    text: TextStream | None
    cached: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    forced: deque = field(default_factory=deque)
    closed: bool = False
    calls: Calls | None = None
    more: int = 0
    most: int = field(init=False)
    quiet: bool = field(init=False)
    last: int = field(init=False)
    origin: Prompt = field(init=False)  # what it was asked; its group's may go on from there

    def __post_init__(self):
        self.most = len(self.group.prompt.ids) + self.sampling.max_tokens
        self.most += self.calls.bound.room if self.calls else 0
        told = self.sampling.top_logprobs is not None
        self.quiet = self.text is None and not self.watched and not told
        self.last = self.sampling.max_tokens - 1
        self.origin = self.group.prompt

    @property
    def sampled(self) -> int:
        """How many of its tokens were sampled."""
        return len(self.ids) - (self.calls.tokens if self.calls else 0)

    def take(
        self,
        token: int,
        logprob: float,
        tokenizer,
        stop_ids: frozenset[int],
        choice: Choice | None = None,
    ) -> Event | None:
        """Add a sampled token; return an event if it ends the request or if it is watched."""
        if self.forced:
            self.forced.popleft()
        self.ids.append(token)
        self.logprobs.append(logprob)
        if choice:
            self.choices.append(choice)
        full = self.sampled >= self.sampling.max_tokens
        if token in stop_ids:
            if not full and self._calls_now(ended=True):
                return Event(self.id, token, choice=choice) if self.watched else None
            return self.end("stop", tokenizer, token)
        piece = self.text.push(token) if self.text else ""
        if self.text and self.text.stopped:
            return self.end("stop_text", tokenizer, token, piece)
        if full:
            return self.end("length", tokenizer, token, piece)
        self._calls_now()
        if self.sampling.closing and not self.closed:
            self._bound_reasoning()
        return Event(self.id, token, piece, choice=choice) if self.watched else None

    def _calls_now(self, *, ended: bool = False) -> bool:
        """Begin the call that has just ended, if there is one; return whether there is."""
        return bool(self.calls and self.text and self.calls.look(self.text.text, ended=ended))

    def answer(self, stop_ids: frozenset[int]) -> Event:
        """Put in the result of the call that has come to an end; return the event of that."""
        assert self.calls is not None and self.text is not None
        ids, shown, result, failure = self.calls.result(stop_ids)
        first = len(self.ids)
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.more = len(ids)
        piece = self.text.put(shown)
        end = len(self.text.text)
        call = self.calls.note(first, len(ids), len(shown), end, result, failure)
        return Event(self.id, None, piece, call=call)

    def _bound_reasoning(self) -> None:
        """Put the closer next in line once the reasoning has had its tokens."""
        closing = self.sampling.closing
        assert closing is not None and self.text is not None  # submit() follows its text
        text = (self.group.prompt.prefill + self.text.text).lstrip()
        opened = text.startswith(closing.opener)
        if closing.closer in text or not (opened or closing.opener.startswith(text)):
            self.closed = True
        elif opened and self.sampled >= closing.after:
            self.forced.extend(closing.ids)
            self.closed = True

    def end(self, cause: str, tokenizer, token: int | None = None, piece: str = "") -> Event:
        """Return the last event, with the rollout as far as it came."""
        if self.calls:
            self.calls.drop()
        if self.text:
            piece += self.text.finish()
            text = self.text.text
            if self.text.stopped:  # it stood in what was held back
                cause = "stop_text"
        else:
            text = decode(tokenizer, self.ids[:-1] if cause == "stop" else self.ids)
        finish = "stop" if cause == "stop_text" else cause
        told = self.sampling.top_logprobs is not None
        choices = self.choices if told else None
        calls = tuple(self.calls.done) if self.calls else ()
        text = self.group.prompt.prefill + text
        rollout = Rollout(self.ids, self.logprobs, text, finish, choices=choices, calls=calls)
        choice = self.choices[-1] if choices and token is not None else None
        return Event(self.id, token, piece, rollout, cause, choice)


def uniforms(seed: int) -> Iterator[float]:
    """Yield the random numbers of a request, float32 in [0, 1), the same on every device."""
    return chain.from_iterable(_blocks(seed))


def _blocks(seed: int) -> Iterator[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(DRAWN, generator=generator).tolist()
