"""POST /v1/completions: the model goes on with a text, as it is, without a chat template.

A reasoning model is asked by the chat route; this is for programs that make prompts themselves. No
tool is called: such a program can stop at a call, and go on behind a result of its own.
"""

import logging
from functools import partial
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import Response

from rlm.server.chat_requests import AnySeed, StreamOptions
from rlm.server.errors import encode
from rlm.server.job import Job
from rlm.server.logprobs import Teller, chosen_of
from rlm.server.openai_route import ChatUsage, chunks, finish, finish_reason, head
from rlm.server.requests import (
    MAX_PROMPT,
    MAX_TOKENS,
    Ask,
    MaxTokens,
    Samples,
    Stops,
    Temperature,
    TopK,
    TopP,
    drawn,
)
from rlm.server.service import Service
from rlm.server.stream import EventStream, finished
from rlm.server.unkept import OpenRequest

logger = logging.getLogger("rlm.server")

KIND = "text_completion"
DEFAULT_TOKENS = 16  # as the API has it
Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_TOKENS)]


class CompletionRequest(OpenRequest):
    """A text to go on with. A field that is not listed is refused, unless it changes nothing."""

    model_config = ConfigDict(extra="ignore")

    prompt: Text | Ids | Annotated[list[Text], Field(min_length=1, max_length=1)] = Field(
        description="a text, or token ids; one for a request"
    )
    model: str | None = Field(None, description="ignored: there is one model")
    max_tokens: MaxTokens = Field(DEFAULT_TOKENS, description="-1: what the server allows")
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = None
    seed: AnySeed | None = None
    stop: Stops | None = None
    n: Samples | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one(cls, value):
        """A list of one prompt is that prompt."""
        nested = isinstance(value, list) and value and isinstance(value[0], list | str)
        if nested and len(value) > 1:
            raise ValueError("several prompts; send a request for each")
        return value[0] if nested else value

    @field_validator("prompt")
    @classmethod
    def _whole_characters(cls, value):
        try:
            f"{value}".encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a surrogate)") from None
        return value

    def ask(self) -> Ask:
        """Return what is asked of the model."""
        return Ask(
            prompt=self.prompt if isinstance(self.prompt, str) else tuple(map(int, self.prompt)),
            max_tokens=self.max_tokens,
            **drawn(self),
            seed=self.seed,
            n=self.n or 1,
            stop=tuple(self.stop or ()),
            logprobs=self.logprobs,
        )


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: dict | None = None
    finish_reason: str


class CompletionReply(BaseModel):
    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage


async def complete(
    service: Service, asked: CompletionRequest, request_id: str, receive
) -> Response:
    """Return the response to a checked request; ApiError if there is none."""
    job, _ = await service.start(asked.ask(), "cmpl")
    said = str(asked.prompt)
    if asked.stream:
        told = _Choices(service, asked, job)
        events = chunks(service, asked, job, request_id, kind=KIND, said=said, choices=told)
        return EventStream(events, partial(service.abandon, job))
    await finished(service, job, receive)
    _, used = finish(service, said, job, request_id)
    choices = []
    for index, sample in enumerate(job.samples):
        assert sample.rollout and sample.finish
        logprobs = None
        if asked.logprobs is not None:
            chosen = chosen_of(sample.rollout, sample.finish)
            logprobs = Teller(service.tokenizer).plain(chosen)
        choices.append(_choice(index, sample.rollout.text, logprobs, sample.finish))
    reply = head(service, job, KIND) | {"choices": choices, "usage": used}
    return Response(encode(reply), media_type="application/json")


def _choice(index: int, text: str, logprobs: dict | None, finish: str | None) -> dict:
    reason = finish and finish_reason(finish)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class _Choices:
    """The choices of a stream's chunks."""

    whole = True

    def __init__(self, service: Service, asked: CompletionRequest, job: Job):
        self._asked, self._job = asked, job
        self._tellers = [Teller(service.tokenizer) for _ in job.samples]
        self._offsets = [0] * len(job.samples)

    def begin(self) -> list[dict]:
        return []

    def piece(self, index: int, channel: str, text: str) -> dict:
        return _choice(index, text, self._logprobs(index), None)

    def end(self, index: int, finish: str) -> dict:
        return _choice(index, "", self._logprobs(index), finish)

    def _logprobs(self, index: int) -> dict | None:
        if self._asked.logprobs is None or not (chosen := self._job.unread(index)):
            return None
        logprobs = self._tellers[index].plain(chosen, self._offsets[index])
        self._offsets[index] += sum(map(len, logprobs["tokens"]))
        return logprobs
