"""POST /v1/responses in its plain form: the reasoning is one item of the output, the answer one.

Nothing is kept between two requests, and no tool of a client is called. A stream has the API's own
events.
"""

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from rlm.server.errors import ApiError, encode, failed
from rlm.server.job import Job
from rlm.server.openai_route import finish, finish_reason
from rlm.server.responses_requests import ResponsesRequest
from rlm.server.service import Service
from rlm.server.splitter import ANSWER, REASONING
from rlm.server.stream import KEEP_ALIVE, EventStream, event, finished

logger = logging.getLogger("rlm.server")


class ResponsesReply(BaseModel):
    """output: items of the types reasoning and message."""

    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[dict]
    usage: dict | None


async def respond(service: Service, asked: ResponsesRequest, request_id: str, receive) -> Response:
    """Return the response to a checked request; ApiError if there is none."""
    job, _ = await service.start(asked.ask(), "resp")
    if asked.stream:
        return EventStream(_events(service, asked, job, request_id), partial(service.abandon, job))
    await finished(service, job, receive)
    (sample,), used = finish(service, _said(asked), job, request_id)
    items = Items()
    for channel, text in ((REASONING, sample.reasoning), (ANSWER, sample.said)):
        if text:
            list(items.take(channel, text))
    list(items.end())
    reply = _reply(service, asked, job, items.done, used)
    return Response(encode(reply), media_type="application/json")


def _said(asked: ResponsesRequest) -> str:
    return "\n".join(message.text() for message in asked.messages())


def _reply(
    service: Service, asked: ResponsesRequest, job: Job, output: list[dict], used: dict | None
) -> dict:
    """Return the response object. used: None while it is in progress."""
    status, why = "in_progress", None
    if used:
        cut = finish_reason(job.samples[0].finish or "") == "length"
        status, why = (
            ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None)
        )
    return {
        "id": job.id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": service.model,
        "output": output,
        "usage": used and _usage(used),
        "error": None,
        "incomplete_details": why,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "temperature": 0.7 if asked.temperature is None else asked.temperature,
        "top_p": asked.top_p or 1.0,
        "reasoning": {"effort": asked.reasoning and asked.reasoning.effort, "summary": None},
        "text": {"format": {"type": "text"}},
        "metadata": {},
        "previous_response_id": None,
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "truncation": "disabled",
        "store": False,
        "background": False,
    }


def _usage(used: dict) -> dict:
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": used["completion_tokens_details"],
        "total_tokens": used["total_tokens"],
    }


class Items:
    """The items of an output as they come; each method yields the events that tell of them."""

    def __init__(self):
        self.done: list[dict] = []
        self._channel, self._text, self._id = "", "", ""

    def take(self, channel: str, delta: str) -> Iterator[dict]:
        """Take in a piece of the reasoning or of the answer."""
        if channel != self._channel:
            yield from self._close()
            yield from self._open(channel)
        self._text += delta
        yield self._told(f"{self._kind}.delta", delta=delta, **self._logprobs)

    def end(self) -> Iterator[dict]:
        """Close what is open; an output without an answer gets an empty one."""
        if self._channel != ANSWER:
            yield from self._close()
            yield from self._open(ANSWER)
        yield from self._close()

    @property
    def _kind(self) -> str:
        return "reasoning_text" if self._channel == REASONING else "output_text"

    @property
    def _logprobs(self) -> dict:
        return {} if self._channel == REASONING else {"logprobs": []}

    def _part(self) -> dict:
        more: dict = {} if self._channel == REASONING else {"annotations": [], "logprobs": []}
        return {"type": self._kind, "text": self._text} | more

    def _item(self, status: str) -> dict:
        parts = [self._part()] if status == "completed" else []
        told: dict[str, Any] = {"id": self._id, "status": status, "content": parts}
        if self._channel == REASONING:
            return told | {"type": "reasoning", "summary": []}
        return told | {"type": "message", "role": "assistant"}

    def _told(self, name: str, **more) -> dict:
        place = {"item_id": self._id, "output_index": len(self.done), "content_index": 0}
        return {"type": f"response.{name}"} | place | more

    def _open(self, channel: str) -> Iterator[dict]:
        self._channel, self._text = channel, ""
        self._id = f"{'rs' if channel == REASONING else 'msg'}_{uuid.uuid4().hex}"
        place = {"output_index": len(self.done)}
        added = {"type": "response.output_item.added", "item": self._item("in_progress")}
        yield added | place
        yield self._told("content_part.added", part=self._part())

    def _close(self) -> Iterator[dict]:
        if not self._channel:
            return
        yield self._told(f"{self._kind}.done", text=self._text, **self._logprobs)
        yield self._told("content_part.done", part=self._part())
        item = self._item("completed")
        place = {"output_index": len(self.done)}
        yield {"type": "response.output_item.done", "item": item} | place
        self.done.append(item)
        self._channel = ""


async def _events(
    service: Service, asked: ResponsesRequest, job: Job, request_id: str
) -> AsyncGenerator[bytes]:
    """Yield the events of a stream, response.completed or response.incomplete as the last one."""
    sent = 0

    def tell(told: dict) -> bytes:
        nonlocal sent
        sent += 1
        return event(told["type"], told | {"sequence_number": sent - 1})

    items = Items()
    try:
        begun = _reply(service, asked, job, [], None)
        for name in ("response.created", "response.in_progress"):
            yield tell({"type": name, "response": begun})
        async for news in service.follow(job):
            if news is None:
                yield KEEP_ALIVE
                continue
            told = [told for _, channel, delta in news for told in items.take(channel, delta)]
            if told:
                yield b"".join(map(tell, told))
        job.check()
        yield b"".join(map(tell, items.end()))
        _, used = finish(service, _said(asked), job, request_id)
        reply = _reply(service, asked, job, items.done, used)
        yield tell({"type": f"response.{reply['status']}", "response": reply})
    except ApiError as error:
        yield tell(_error(error))
    except Exception:
        logger.exception("request %s: the stream has failed", request_id)
        yield tell(_error(failed()))


def _error(error: ApiError) -> dict:
    return {"type": "error", "code": error.code, "message": error.message, "param": error.param}
