"""POST /v1/chat/completions and GET /v1/models, so that every client of that API works.

The reasoning comes under the names of `Service.reasoning_fields`. Calls of the server's own tools
and their results are a part of its text: the `tool_calls` of this API would ask the client to run
them.
"""

import logging
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.responses import Response

from rlm.server.chat_requests import ChatRequest
from rlm.server.errors import ApiError, encode, failed
from rlm.server.job import Job
from rlm.server.logprobs import Teller, chosen_of
from rlm.server.replies import Read, read_samples, timing, usage
from rlm.server.service import Service
from rlm.server.splitter import REASONING
from rlm.server.stream import KEEP_ALIVE, EventStream, data, finished

logger = logging.getLogger("rlm.server")

FINISHES = {"stop_sequence": "stop", "timeout": "length", "cancelled": "stop", "error": "stop"}
DONE = b"data: [DONE]\n\n"


class ChatMessage(BaseModel):
    role: str
    content: str
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: dict | None = None
    finish_reason: str


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int]


class ChatReply(BaseModel):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class Model(BaseModel):
    id: str
    object: str
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: str
    data: list[Model]


async def chat(service: Service, asked: ChatRequest, request_id: str, receive) -> Response:
    """Return the response to a checked request; ApiError if there is none."""
    job, _ = await service.start(asked.ask(), "chatcmpl")
    if asked.stream:
        events = chunks(
            service, asked, job, request_id, kind="chat.completion.chunk", said=_said(asked),
            choices=_Choices(service, asked, job),
        )  # fmt: skip
        return EventStream(events, partial(service.abandon, job))
    await finished(service, job, receive)
    samples, used = finish(service, _said(asked), job, request_id)
    reply = head(service, job, "chat.completion") | {
        "choices": [_choice(service, asked, job, sample) for sample in samples],
        "usage": used,
    }
    return Response(encode(reply), media_type="application/json")


def models(service: Service, started: int) -> dict:
    """Return the list of the one model."""
    return {"object": "list", "data": [_model(service, started)]}


def model(service: Service, name: str, started: int) -> dict:
    """Return the model of that name; ApiError 404 if it is another one's."""
    if name != service.model:
        message = f"there is no such model here; the one that is served is {service.model}"
        raise ApiError(404, "model_not_found", message, param="model")
    return _model(service, started)


def _model(service: Service, started: int) -> dict:
    made = Model(id=service.model, object="model", created=started, owned_by="local")
    return made.model_dump()


def head(service: Service, job: Job, kind: str) -> dict:
    """Return what a reply and its chunks begin with."""
    created = int(time.time())
    return {"id": job.id, "object": kind, "created": created, "model": service.model}


def finish(service: Service, said: str, job: Job, request_id: str) -> tuple[list[Read], dict]:
    """Return the samples and their usage; note both in the metrics and the log."""
    samples = read_samples(job, service.format, service.tokenizer, service.kind)
    used = usage(job, samples)
    times = timing(job, used["completion_tokens"])
    service.note(request_id, [sample.finish for sample in samples], used, times)
    service.note_content(request_id, said, [sample.text for sample in samples])
    details = {"reasoning_tokens": used.pop("reasoning_tokens")}
    del used["tool_tokens"]  # the API has no place for them
    return samples, used | {"completion_tokens_details": details}


def finish_reason(finish: str) -> str:
    """Return why a sample ended in the API's words: stop or length."""
    return FINISHES.get(finish, finish)


def _said(asked: ChatRequest) -> str:
    return "\n".join(message.text() for message in asked.messages)


def _choice(service: Service, asked: ChatRequest, job: Job, sample: Read) -> dict:
    message = {"role": "assistant", "content": sample.said}
    logprobs, rollout = None, job.samples[sample.index].rollout
    if asked.logprobs and rollout:
        teller = Teller(service.tokenizer)
        content = [teller.chat(*each) for each in chosen_of(rollout, sample.finish)]
        logprobs = {"content": content, "refusal": None}
    return {
        "index": sample.index,
        "message": message | dict.fromkeys(service.reasoning_fields, sample.reasoning),
        "logprobs": logprobs,
        "finish_reason": finish_reason(sample.finish),
    }


class Choices(Protocol):
    """What a route's chunks say of a sample: at the start, of a piece of it, of its end."""

    whole: bool  # nothing is taken apart, all is the answer

    def begin(self) -> list[dict]: ...

    def piece(self, index: int, channel: str, text: str) -> dict: ...

    def end(self, index: int, finish: str) -> dict: ...


async def chunks(
    service: Service,
    asked: Any,
    job: Job,
    request_id: str,
    *,
    kind: str,
    said: str,
    choices: Choices,
) -> AsyncGenerator[bytes]:
    """Yield the chunks of a stream, [DONE] as the last one, or an error instead of it.

    asked: a request with `stream_options`. kind: the name of a chunk's object. said: what was
    asked, for the log.
    """
    begin = head(service, job, kind)
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    # As the API has it: with include_usage every chunk has the field, null but in the last.
    rest = {"usage": None} if with_usage else {}

    def chunk(choice: dict) -> bytes:
        return data(begin | {"choices": [choice]} | rest)

    try:
        if first := choices.begin():
            yield b"".join(map(chunk, first))
        told: set[int] = set()
        async for news in service.follow(job, whole=choices.whole):
            if news is None:
                yield KEEP_ALIVE
                continue
            out = [chunk(choices.piece(*each)) for each in news]
            if job.done:
                job.check()
            for index, sample in enumerate(job.samples):
                if sample.finish and index not in told:
                    told.add(index)
                    out.append(chunk(choices.end(index, sample.finish)))
            if out:
                yield b"".join(out)
        _, used = finish(service, said, job, request_id)
        if with_usage:
            yield data(begin | {"choices": [], "usage": used})
        yield DONE
    except ApiError as error:
        yield data(error.body(request_id))
    except Exception:
        logger.exception("request %s: the stream has failed", request_id)
        yield data(failed().body(request_id))


class _Choices:
    """The choices of the chat API's chunks."""

    whole = False

    def __init__(self, service: Service, asked: ChatRequest, job: Job):
        self._service, self._asked, self._job = service, asked, job
        self._tellers = [Teller(service.tokenizer) for _ in job.samples]

    def begin(self) -> list[dict]:
        first = {"role": "assistant", "content": ""}
        return [self._choice(index, first) for index in range(len(self._job.samples))]

    def piece(self, index: int, channel: str, text: str) -> dict:
        return self._choice(index, _delta(self._service, channel, text))

    def end(self, index: int, finish: str) -> dict:
        return self._choice(index, {}, finish_reason(finish))

    def _choice(self, index: int, delta: dict, finish: str | None = None) -> dict:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        if self._asked.logprobs:
            content = [self._tellers[index].chat(*each) for each in self._job.unread(index)]
            choice["logprobs"] = {"content": content, "refusal": None} if content else None
        return choice


def _delta(service: Service, channel: str, delta: str) -> dict:
    if channel == REASONING:
        return dict.fromkeys(service.reasoning_fields, delta)
    return {"content": delta}
