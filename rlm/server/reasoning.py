"""POST /phase1/reasoning: the reply in one piece, as plain text, or as a stream of events."""

import logging
import time
from collections.abc import AsyncGenerator
from functools import partial

from starlette.responses import PlainTextResponse, Response

from rlm.server.errors import ApiError, encode, failed
from rlm.server.job import Job
from rlm.server.replies import (
    Read,
    ReasoningReply,
    SampleReply,
    Timing,
    Usage,
    count_votes,
    first_ended,
    read_sample,
    read_samples,
    timing,
    usage,
)
from rlm.server.requests import ReasoningRequest
from rlm.server.service import Service
from rlm.server.splitter import REASONING, Placed
from rlm.server.stream import KEEP_ALIVE, EventStream, event, finished

logger = logging.getLogger("rlm.server")

TOOL = "tool"  # the event of a call


async def reason(service: Service, asked: ReasoningRequest, request_id: str, receive) -> Response:
    """Return the response to a checked request; ApiError if there is none."""
    job, seed = await service.start(asked.ask(), "reasoning")
    if asked.stream:
        events = _events(service, asked, job, seed, request_id)
        return EventStream(events, partial(service.abandon, job))
    await finished(service, job, receive)
    reply = make_reply(service, asked, job, seed, request_id)
    if asked.format == "text":
        return PlainTextResponse(reply["text"])
    return Response(encode(reply), media_type="application/json")


def make_reply(
    service: Service, asked: ReasoningRequest, job: Job, seed: int, request_id: str
) -> dict:
    """Return the reply to a finished job, and note it in the metrics and the log."""
    samples = read_samples(job, service.format, service.tokenizer, service.kind)
    votes = asked.vote == "majority" or (asked.vote == "auto" and asked.n > 1)
    chosen, vote = count_votes(samples) if votes else (first_ended(samples), None)
    used = usage(job, samples)
    times = timing(job, used["completion_tokens"])
    service.note(request_id, [sample.finish for sample in samples], used, times)
    service.note_content(request_id, asked.prompt, [sample.text for sample in samples])
    shown = _shown(chosen, asked.include_reasoning)
    del shown["index"], shown["completion_tokens"]
    return ReasoningReply(
        id=job.id,
        object="phase1.reasoning",
        created=int(time.time()),
        model=service.model,
        seed=seed,
        vote=vote,
        samples=[SampleReply(**_shown(sample, asked.include_reasoning)) for sample in samples]
        if asked.include_samples
        else None,
        usage=Usage(**used),
        timing=Timing(**times),
        **shown,
    ).model_dump()


def _shown(sample: Read, with_reasoning: bool) -> dict:
    return {
        "index": sample.index,
        "reasoning": sample.reasoning if with_reasoning else None,
        "answer": sample.answer.canonical,
        "answer_parsed": sample.answer.value is not None,
        "text": sample.text if with_reasoning else sample.said,
        "tool_calls": [
            placed.told()
            for placed in sample.calls
            if with_reasoning or placed.channel != REASONING
        ],
        "finish_reason": sample.finish,
        "completion_tokens": sample.tokens,
    }


async def _events(
    service: Service, asked: ReasoningRequest, job: Job, seed: int, request_id: str
) -> AsyncGenerator[bytes]:
    """Yield the events: start, deltas and calls of tools, each sample's end, done; or error.

    A call comes behind the delta with its result.
    """
    try:
        yield event("start", {"id": job.id, "seed": seed, "model": service.model})
        told: set[int] = set()
        async for news in service.follow_calls(job):
            if news is None:
                yield KEEP_ALIVE
                continue
            out = [
                event(TOOL, {"index": index} | delta.told())
                if isinstance(delta, Placed)
                else event(channel, {"index": index, "delta": delta})
                for index, channel, delta in news
                if asked.include_reasoning or channel != REASONING
            ]
            ended = [i for i, s in enumerate(job.samples) if s.finish and i not in told]
            told.update(ended)
            out += [_sample_event(service, job, index) for index in ended]
            if out:
                yield b"".join(out)
        job.check()
        reply = make_reply(service, asked, job, seed, request_id)
        for name in ("reasoning", "text", "tool_calls"):  # the events had them
            del reply[name]
            for sample in reply["samples"] or ():
                del sample[name]
        yield event("done", reply)
    except ApiError as error:
        yield event("error", error.body(request_id))
    except Exception:
        logger.exception("request %s: the stream has failed", request_id)
        yield event("error", failed().body(request_id))


def _sample_event(service: Service, job: Job, index: int) -> bytes:
    sample = read_sample(job, index, service.format, service.tokenizer, service.kind)
    said = {"answer": sample.answer.canonical, "finish_reason": sample.finish}
    return event("sample", {"index": index} | said)
