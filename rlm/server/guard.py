"""The door: request id, key, and the body, capped in size and time, before the framework sees it.

Plain ASGI. Without a key in place only this machine may ask, by a name of this machine: so a web
page cannot reach the server under a foreign name that points here.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable

from rlm.server.errors import ApiError, encode, failed

logger = logging.getLogger("rlm.server")

MAX_BODY = 256 * 1024  # bytes
BODY_SECONDS = 15.0
LINGER_BYTES, LINGER_SECONDS = 1024 * 1024, 2.0
OPEN = {("GET", "/"), ("GET", "/health")}
NOSNIFF = (b"x-content-type-options", b"nosniff")
LOCAL = ("127.0.0.1", "localhost", "[::1]")
NO_KEY = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
NO_NAME = "this server has no key and answers to 127.0.0.1 and localhost only; give it a key"


class RequestGuard:
    """is_key: whether a text is the key; None where no key is needed.

    paths: the routes. count: called with (path, status) of every response; the path is the
    route's own, "" for an unknown one.
    """

    def __init__(self, app, *, is_key: Callable[[str], bool] | None, paths, count: Callable):
        self.app, self.is_key, self.paths, self.count = app, is_key, paths, count

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        begun, sent = time.monotonic(), {}
        path = next((r.path for r in self.paths if r.path_regex.match(scope["path"])), "")

        async def reply(message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                own = (
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                )
                message = message | {"headers": [*message["headers"], *own]}
            sent["complete"] = not message.get("more_body", message["type"].endswith("start"))
            await send(message)

        try:
            headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in scope["headers"]}
            self._check_key(scope, headers)
            body = await _read(receive, headers)
            if body is not None:
                await self.app(scope, _replay(body, receive), reply)
        except ApiError as error:
            await _refuse(error, request_id, receive, reply)
        except Exception:
            logger.exception("request %s has failed", request_id)
            if sent and not sent["complete"]:
                raise  # the connection is closed: the client sees that there is no end
            if not sent:
                await _refuse(failed(), request_id, receive, reply)
        finally:
            status = sent.get("status", 499)  # the client had gone before there was an answer
            self.count(path, status)
            took = 1e3 * (time.monotonic() - begun)
            level = logging.DEBUG if path in ("/health", "/metrics") else logging.INFO
            logger.log(
                level, "%s %s %s %d %.0f ms", request_id, scope["method"], path, status, took
            )

    def _check_key(self, scope, headers: dict[str, str]) -> None:
        if (scope["method"], scope["path"]) in OPEN:
            return
        if self.is_key is None:
            if re.sub(r":\d*$", "", headers.get("host", "")) not in LOCAL:
                raise _unauthorized(NO_NAME)
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not self.is_key(given.strip()):
            raise _unauthorized(NO_KEY)


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "authentication_error", message, headers={"WWW-Authenticate": "Bearer"})


def _too_large() -> ApiError:
    message = f"the body is over {MAX_BODY} bytes; send a shorter one"
    return ApiError(413, "body_too_large", message, headers={"Connection": "close"})


async def _read(receive, headers: dict[str, str]) -> bytes | None:
    """Return the body; None if the client has gone. ApiError if it is too large or too slow."""
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise _too_large()
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY:
                    raise _too_large()
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        message = f"the body took more than {BODY_SECONDS:.0f} seconds; send it faster"
        raise ApiError(408, "body_too_slow", message, headers={"Connection": "close"}) from None


def _replay(body: bytes, receive):
    """Return a `receive` that gives the whole body first, then what is really received."""
    given = False

    async def again():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(error: ApiError, request_id: str, receive, send) -> None:
    body = encode(error.body(request_id))
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    named = {**headers, **error.headers}.items()
    raw = [(name.lower().encode(), value.encode()) for name, value in named]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    close = error.headers.get("Connection") == "close"
    await send({"type": "http.response.body", "body": body, "more_body": close})
    if close:
        # Closed with unread bytes in it, a connection is reset, and the answer may be lost.
        await _linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _linger(receive) -> None:
    """Throw away what the client still sends, within bounds."""
    size = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
