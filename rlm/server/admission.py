"""Who is let in: the part of a worker that the event loop sees, whatever does the work behind it.

A request is reserved before anything is spent on it, submitted with its prompt, and released when
it has ended. It does not know how tokens are made.
"""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from rlm.server.errors import ApiError
from rlm.server.job import Job

TIMEOUT, CANCELLED = "timeout", "cancelled"


class Admission(ABC):
    """max_queue: requests that may wait until one of their samples runs; more are refused.

    ready: set once requests are accepted. dead: it has given up. closing: the server ends.
    """

    def __init__(self, *, max_queue: int):
        self.max_queue = max_queue
        self.ready = threading.Event()
        self.dead = self.closing = False
        self.last_step = time.monotonic()  # when the last tokens came
        self.tokens = 0  # sampled so far
        self.token_seconds = 0.0  # what a token of a sample takes, as measured; 0: not known
        self.tells_logprobs = True
        self.jobs: set[Job] = set()  # all that are accepted and not ended; of the event loop
        self.upstreams: tuple = ()  # the servers that do the work, if others do it
        self._waiting: set[Job] = set()  # those of them none of whose samples runs, under the lock
        self._lock = threading.Condition()
        self._started = False

    @abstractmethod
    def start(self, loop: asyncio.AbstractEventLoop, *, on_ready: Callable, on_dead: Callable):
        """Begin to work. `loop` calls on_ready once requests are accepted, on_dead if it ends."""

    @abstractmethod
    def stop(self, seconds: float = 2.0) -> None:
        """End what `start` began, from any thread; it waits so long at most."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it works, or would if there were something to do."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Samples that run now."""

    @property
    @abstractmethod
    def context_tokens(self) -> int | None:
        """How many tokens prompt and completion may have together; None if not limited."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Hand over an accepted request, now with its prompt."""

    @abstractmethod
    def cancel(self, job: Job, failure: ApiError, cause: str = CANCELLED) -> None:
        """End a request, also one that has ended; its rows are free soon."""

    @property
    def queued(self) -> int:
        """Accepted requests none of whose samples runs."""
        return len(self._waiting)

    def check_open(self) -> None:
        """ApiError 503 unless requests can be accepted now."""
        if self.dead or (self._started and not self.alive):
            raise ApiError(503, "engine_dead", "the engine has stopped; the server ends itself")
        if self.closing:
            message = "the server is shutting down; try again in a moment"
            raise ApiError(503, "shutting_down", message, retry_after=5)
        if not self.ready.is_set():
            message = "the model is not ready yet; try again in a moment"
            raise ApiError(503, "not_ready", message, retry_after=2)

    def reserve(self, job: Job) -> None:
        """Accept a request before anything is spent on it; ApiError 429 if the queue is full."""
        self.check_open()
        if self.queued >= self.max_queue:
            message = f"{self.queued} requests are waiting; try again in a moment"
            raise ApiError(429, "overloaded", message, retry_after=self._retry_after())
        self.jobs.add(job)
        with self._lock:
            self._waiting.add(job)

    def release(self, job: Job) -> None:
        """Forget a request that has ended, or was never submitted."""
        self.jobs.discard(job)
        with self._lock:
            self._waiting.discard(job)

    def measured(self, seconds: float) -> None:
        """Note what a token of a sample took: a mean over the latest, slow to move."""
        known = self.token_seconds
        self.token_seconds = known + 0.05 * (seconds - known) if known else seconds

    def seconds_for(self, tokens: int) -> float:
        """Return what a sample of so many tokens takes at the measured speed, its wait included."""
        rounds = 1 + max(0, self.queued - 1) / max(1, self.rows)
        return tokens * self.token_seconds * rounds

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let the accepted ones end, cancel what is left then."""
        self.closing = True
        end = time.monotonic() + seconds
        while self.jobs and time.monotonic() < end:
            await asyncio.sleep(0.02)
        failure = ApiError(503, "shutting_down", "the server is shutting down", retry_after=5)
        for job in list(self.jobs):
            self.cancel(job, failure)

    def _retry_after(self) -> int:
        """Return the seconds in which the queue may be half empty, 1 to 30."""
        ages = [time.monotonic() - job.accepted for job in self.jobs]
        return max(1, min(30, round(max(ages, default=1) / 2)))
