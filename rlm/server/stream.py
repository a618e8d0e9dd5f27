"""Responses that notice at once when their client has gone, and hold nobody up if it is slow.

With the framework's own, a generator that waits to send is told of the end only by the garbage
collector; here its job is dropped first.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import partial

from starlette.responses import Response

from rlm.server.errors import encode

SEND_SECONDS = 60.0  # a client that takes nothing for so long is given up
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
KEEP_ALIVE = b": keep-alive\n\n"


class EventStream(Response):
    """Server-sent events. on_gone: called when the client has gone before the end."""

    def __init__(self, events: AsyncGenerator[bytes], on_gone: Callable[[], None]):
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.events, self.on_gone = events, on_gone

    async def __call__(self, scope, receive, send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        watcher = asyncio.create_task(watch(receive, self.on_gone))
        try:
            await send(start)
            async for event in self.events:
                message = {"type": "http.response.body", "body": event, "more_body": True}
                await asyncio.wait_for(send(message), SEND_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # the server closes the connection of a response without an end
        finally:
            watcher.cancel()
            self.on_gone()
            await self.events.aclose()


async def watch(receive, on_gone: Callable[[], None]) -> None:
    """Wait for the client to go."""
    while (await receive())["type"] != "http.disconnect":
        pass
    on_gone()


async def finished(service, job, receive) -> None:
    """Wait until a job has ended; ApiError if there is nothing to reply, or the client went.

    That is a job no sample of which came to its own end, or to its deadline while tokens came.
    """
    gone = partial(service.abandon, job)
    watcher = asyncio.create_task(watch(receive, gone))
    try:
        await service.finish(job)
    finally:
        watcher.cancel()
        gone()
    job.check()


def event(name: str, data: dict) -> bytes:
    """Return one named event."""
    return b"event: " + name.encode() + b"\ndata: " + encode(data) + b"\n\n"


def data(value: dict) -> bytes:
    """Return one event without a name."""
    return b"data: " + encode(value) + b"\n\n"
