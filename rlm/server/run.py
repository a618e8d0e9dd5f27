"""Run the application: warm up, say when it is ready, and at a signal end in good order."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable

import uvicorn

from rlm.errors import InputError
from rlm.server.admission import Admission

logger = logging.getLogger("rlm.server")

DEAD_SECONDS = 1.0  # so long /health can still tell that the engine is dead
CONNECTIONS = 2048  # the queue's limit answers 429 long before
HEADER_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 15
CLOSE_SECONDS = 3  # for responses that are still being sent


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not listening yet; InputError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _taken(host, port, error) from None
    return sock


def _taken(host: str, port: int, error: OSError) -> InputError:
    return InputError(
        f"--host {host} --port {port}: cannot listen there ({error.strerror}); stop what does, "
        "or use another --port (0 takes a free one)"
    )


class Server(uvicorn.Server):
    """The HTTP server and its worker. on_ready: called once requests are accepted."""

    def __init__(
        self, app, worker: Admission, *, drain_seconds: float, on_ready: Callable[[], None]
    ):
        super().__init__(
            uvicorn.Config(
                app,
                # Not what happens to be installed (trackio brings uvloop): what is tested.
                loop="asyncio",
                http="h11",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=HEADER_BYTES,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        self.worker, self.drain_seconds, self.on_ready = worker, drain_seconds, on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task | None = None
        self._asked = False

    def serve_on(self, sock: socket.socket) -> None:
        """Serve until a signal or the engine's death; InputError if the port is taken after all."""
        host, port = sock.getsockname()[:2]
        try:
            self.run(sockets=[sock])
        except OSError as error:
            raise _taken(host, port, error) from None
        finally:
            self.worker.stop(0 if self.force_exit else 2)

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.worker.start(self._loop, on_ready=self.on_ready, on_dead=self._dead)

    def handle_exit(self, sig, frame) -> None:
        """Drain at the first signal, end at once at the second."""
        if self._asked or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._asked = True
        self.stop_soon()

    def stop_soon(self) -> None:
        """Let the accepted requests end, then the server; from any thread."""
        assert self._loop is not None, "the server has not started"
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        begun = time.monotonic()
        await self.worker.drain(self.drain_seconds)
        logger.info("all requests have ended after %.1f s", time.monotonic() - begun)
        self.should_exit = True

    def _dead(self) -> None:
        def end() -> None:
            self.should_exit = True

        if self._loop:
            self._loop.call_later(DEAD_SECONDS, end)
