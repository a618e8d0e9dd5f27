"""POST /v1/chat/completions and GET /v1/models, so that every client of that API works.

The reasoning comes under both names in use, `reasoning_content` and `reasoning`.
"""

import logging
import time
from collections.abc import AsyncGenerator
from functools import partial

from pydantic import BaseModel
from starlette.responses import Response

from rlm.server.chat_requests import ChatRequest
from rlm.server.errors import ApiError, encode, failed
from rlm.server.job import Job
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
    reasoning_content: str
    reasoning: str


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
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
        return EventStream(_chunks(service, asked, job, request_id), partial(service.abandon, job))
    await finished(service, job, receive)
    samples, used = _finish(service, asked, job, request_id)
    reply = ChatReply(
        id=job.id,
        object="chat.completion",
        created=int(time.time()),
        model=service.model,
        choices=[_choice(sample) for sample in samples],
        usage=used,
    )
    return Response(encode(reply.model_dump()), media_type="application/json")


def models(service: Service, started: int) -> dict:
    """Return the list of the one model."""
    model = Model(id=service.model, object="model", created=started, owned_by="local")
    return ModelList(object="list", data=[model]).model_dump()


def _finish(service: Service, asked: ChatRequest, job: Job, request_id: str) -> tuple:
    """Return the samples and their usage; note both in the metrics and the log."""
    samples = read_samples(job, service.format, service.tokenizer)
    used = usage(job, samples)
    times = timing(job, used["completion_tokens"])
    service.note(request_id, [sample.finish for sample in samples], used, times)
    said = "\n".join(message.text() for message in asked.messages)
    service.note_content(request_id, said, [sample.text for sample in samples])
    details = {"reasoning_tokens": used.pop("reasoning_tokens")}
    return samples, used | {"completion_tokens_details": details}


def _choice(sample: Read) -> ChatChoice:
    return ChatChoice(
        index=sample.index,
        message=ChatMessage(
            role="assistant",
            content=sample.said,
            reasoning_content=sample.reasoning,
            reasoning=sample.reasoning,
        ),
        finish_reason=FINISHES.get(sample.finish, sample.finish),
    )


async def _chunks(
    service: Service, asked: ChatRequest, job: Job, request_id: str
) -> AsyncGenerator[bytes]:
    """Yield the chunks of a stream, [DONE] as the last one, or an error instead of it."""
    head = {
        "id": job.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": service.model,
    }
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def chunk(index: int, delta: dict, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        # As the API has it: with include_usage every chunk has the field, null but in the last.
        return data(head | {"choices": [choice]} | ({"usage": None} if with_usage else {}))

    try:
        first = {"role": "assistant", "content": ""}
        yield b"".join(chunk(index, first) for index in range(len(job.samples)))
        told: set[int] = set()
        async for news in service.follow(job):
            if news is None:
                yield KEEP_ALIVE
                continue
            out = [chunk(index, _delta(channel, delta)) for index, channel, delta in news]
            if job.done and not job.succeeded:
                raise job.failure or failed()
            for index, sample in enumerate(job.samples):
                if sample.finish and index not in told:
                    told.add(index)
                    out.append(chunk(index, {}, FINISHES.get(sample.finish, sample.finish)))
            if out:
                yield b"".join(out)
        _, used = _finish(service, asked, job, request_id)
        if with_usage:
            yield data(head | {"choices": [], "usage": used})
        yield DONE
    except ApiError as error:
        yield data(error.body(request_id))
    except Exception:
        logger.exception("request %s: the stream has failed", request_id)
        yield data(failed().body(request_id))


def _delta(channel: str, delta: str) -> dict:
    if channel == REASONING:
        return {"reasoning_content": delta, "reasoning": delta}
    return {"content": delta}
