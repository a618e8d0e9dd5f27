"""Several `vllm serve` as one: who is up, who is least busy, who waits for room.

Everything happens in the event loop. A server is asked for its health every second; one that
fails is taken out at once, with what runs on it, and taken in again when it is well and still
serves what is wanted.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field

from rlm.errors import InputError
from rlm.server.upstream import Client, Lost, Served, Unfit

logger = logging.getLogger("rlm.server")

PROBE_SECONDS = 1.0


@dataclass(eq=False)
class Upstream:
    """One server. in_flight: samples that we have there. failures: requests that it lost.

    why: the reason while it is not up. turn: when it was last chosen; among equals the one that
    has waited longest is next. leashes: of what runs there, to be cut if it is taken out.
    """

    client: Client
    up: bool = False
    why: str = "it has not been asked yet"
    in_flight: int = 0
    failures: int = 0
    turn: int = 0
    out_since: float = field(default_factory=time.monotonic)
    leashes: set[asyncio.Timeout] = field(default_factory=set)

    @property
    def url(self) -> str:
        return self.client.url


async def look_at(
    urls: list[str], key: str | None, model: str | None, probe_ids: list[int]
) -> tuple[Served, dict[str, str]]:
    """Return what the servers serve, and why some do not answer yet: url -> reason.

    InputError if a server that answers is none to be used, if two have contexts of different
    lengths, or if none answers.
    """
    clients = [Client(url, key) for url in urls]
    looks = [client.look(model, probe_ids) for client in clients]
    results = await asyncio.gather(*looks, return_exceptions=True)
    for client in clients:
        await client.close()
    found: dict[str, Served] = {}
    absent: dict[str, str] = {}
    for url, result in zip(urls, results, strict=True):
        if isinstance(result, Unfit):
            raise InputError(f"--upstream {url}: {result}")
        if isinstance(result, Lost):
            absent[url] = str(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            found[url] = result
    if not found:
        told = "; ".join(f"{url}: {why}" for url, why in absent.items())
        raise InputError(f"--upstream {told}: nothing to be used there; start `vllm serve` first")
    (first, served), *others = found.items()
    for url, other in others:
        if other != served:
            raise InputError(
                f"--upstream {url}: serves {other.model} with a context of {other.context_tokens} "
                f"tokens, {first} {served.model} with {served.context_tokens}; start all of them "
                "with the same model and --max-model-len"
            )
    return served, absent


class Pool:
    """served: what all servers have to serve. room: samples that may run on each of them.

    absent: url -> why it is not up at the start; probe_ids: see Client.look.
    """

    def __init__(
        self,
        urls: list[str],
        key: str | None,
        *,
        served: Served,
        absent: dict[str, str],
        room: int,
        probe_ids: list[int],
    ):
        self.served, self.room, self._probe_ids = served, room, probe_ids
        self.upstreams = [
            Upstream(Client(url, key), up=url not in absent, why=absent.get(url, ""))
            for url in urls
        ]
        self._waiting: deque[asyncio.Future[Upstream]] = deque()
        self._watchers: list[asyncio.Task] = []
        self._turn = 0

    @property
    def up(self) -> bool:
        """Whether any server is."""
        return any(upstream.up for upstream in self.upstreams)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch the servers."""
        for upstream in self.upstreams:
            if not upstream.up:
                logger.warning("upstream %s: not up yet: %s", upstream.url, upstream.why)
        self._watchers = [loop.create_task(self._watch(upstream)) for upstream in self.upstreams]

    async def close(self) -> None:
        """End the watching and close all connections."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for upstream in self.upstreams:
            await upstream.client.close()

    async def acquire(self, *, avoid: Upstream | None = None, first: bool = False) -> Upstream:
        """Return the least busy server, with a place on it; wait for one while all are full.

        avoid: not that one if there is another. first: before all others that wait.
        """
        if (first or not self._waiting) and (upstream := self._choose(avoid)):
            return upstream
        future: asyncio.Future[Upstream] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, upstream: Upstream) -> None:
        """Give a place back."""
        upstream.in_flight -= 1
        self._serve_waiting()

    async def complete(self, upstream: Upstream, body: dict, take) -> None:
        """As Client.complete; Lost also when the server is taken out meanwhile."""
        if not upstream.up:
            raise Lost(upstream.why, out=True)
        try:
            async with asyncio.timeout(None) as leash:
                upstream.leashes.add(leash)
                try:
                    await upstream.client.complete(body, take)
                finally:
                    upstream.leashes.discard(leash)
        except TimeoutError:
            raise Lost(upstream.why, out=True) from None

    def note(self, upstream: Upstream, lost: Lost) -> None:
        """Count a request that a server lost; take it out if it can do no other either."""
        upstream.failures += 1
        logger.info("upstream %s: lost a request: %s", upstream.url, lost)
        if lost.out:
            self._take_out(upstream, str(lost))

    def _choose(self, avoid: Upstream | None) -> Upstream | None:
        able = [u for u in self.upstreams if u.up and u.in_flight < self.room]
        if not able:
            return None
        best = min(able, key=lambda u: (u is avoid, u.in_flight, u.turn))
        best.in_flight += 1
        self._turn += 1
        best.turn = self._turn
        return best

    def _serve_waiting(self) -> None:
        while self._waiting:
            if self._waiting[0].done():  # cancelled, and its task has not run since
                self._waiting.popleft()
            elif upstream := self._choose(None):
                self._waiting.popleft().set_result(upstream)
            else:
                return

    async def _watch(self, upstream: Upstream) -> None:
        """Ask a server for its health, again and again."""
        while True:
            try:
                if upstream.up:
                    await upstream.client.healthy()
                else:
                    await self._look_again(upstream)
            except (Lost, Unfit) as error:
                self._take_out(upstream, str(error))
            except Exception:
                logger.exception("upstream %s could not be asked", upstream.url)
            await asyncio.sleep(PROBE_SECONDS)

    async def _look_again(self, upstream: Upstream) -> None:
        found = await upstream.client.look(self.served.model, self._probe_ids)
        if found != self.served:
            raise Unfit(f"has a context of {found.context_tokens} tokens, not of "
                        f"{self.served.context_tokens}")  # fmt: skip
        upstream.up = True
        seconds = time.monotonic() - upstream.out_since
        logger.warning("upstream %s: up, after %.1f s", upstream.url, seconds)
        self._serve_waiting()

    def _take_out(self, upstream: Upstream, why: str) -> None:
        was_up, known = upstream.up, upstream.why
        upstream.up, upstream.why = False, why
        if was_up:
            upstream.out_since = time.monotonic()
            for leash in list(upstream.leashes):
                leash.reschedule(0)
        if was_up or why != known:
            state = "taken out" if was_up else "still out"
            logger.warning("upstream %s: %s: %s", upstream.url, state, why)
