"""The one thread that drives the engine, and the queue in front of it.

Requests come in from the event loop by `reserve`, `submit` and `cancel`, which never block;
their news go back by call_soon_threadsafe, once a step for all of them. It does not know HTTP.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from rlm.engine.sampling import Sampling
from rlm.errors import InputError, RunError
from rlm.records import Prompt, Rollout
from rlm.server.admission import CANCELLED, TIMEOUT, Admission
from rlm.server.errors import ApiError, failed, late
from rlm.server.job import Job

logger = logging.getLogger("rlm.server")

WARM_UP_TOKENS = 4
FAILURES = 3  # failing steps in a row until the engine counts as dead


class Worker(Admission):
    """Owns the engine. max_queue: requests that may wait for a row; more are refused.

    ready: set after one warm-up.
    """

    def __init__(self, engine, *, max_queue: int):
        super().__init__(max_queue=max_queue)
        self.engine = engine
        self._news: list[tuple] = []  # of the current step
        self._rows: dict[int, tuple[Job, int]] = {}  # the engine's id -> job and sample
        self._inbox: list[tuple[Callable, tuple]] = []
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- called from the event loop ----------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop, *, on_ready: Callable, on_dead: Callable):
        """Start the thread. `loop` calls on_ready after its warm-up, on_dead if it gives up."""
        self._loop, self._on_ready, self._on_dead = loop, on_ready, on_dead
        self._thread.start()
        self._started = True

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self.dead

    @property
    def rows(self) -> int:
        """Sequences that run now."""
        return len(self.engine.running)

    @property
    def context_tokens(self) -> int | None:
        return self.engine.context_tokens

    def submit(self, job: Job) -> None:
        """Hand an accepted request, now with its prompt, to the engine."""
        self._call(self._submit, job)

    def cancel(self, job: Job, failure: ApiError, cause: str = CANCELLED) -> None:
        """End a request; its rows are free within a step."""
        if not job.done:
            job.fail(failure, cause)
            self._call(self._drop, job, cause)
        self.release(job)

    def stop(self, seconds: float = 2.0) -> None:
        """End the thread; it may be in the middle of a step, and is left alone after a while."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _call(self, function: Callable, *arguments) -> None:
        with self._lock:
            self._inbox.append((function, arguments))
            self._lock.notify()

    # --- the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._warm_up()
            self.ready.set()
            self._tell(self._on_ready)
            self._flush()
            failures = 0
            while not self._stopping:
                self._take_orders()
                if self.engine.idle:
                    continue
                failures = 0 if self._step() else failures + 1
                if failures == FAILURES:
                    logger.error("%d steps have failed in a row: the engine is dead", FAILURES)
                    break
        except Exception:
            logger.exception("the engine's thread has failed")
        if not self._stopping:
            self.dead = True
            with self._lock:
                waiting = set(self._waiting)
            for job in {job for job, _ in self._rows.values()} | waiting:
                self._tell(job.fail, ApiError(503, "engine_dead", "the engine has stopped"))
            self._tell(self._on_dead)
            self._flush()

    def _warm_up(self) -> None:
        """Run the model once, so that the first request does not pay for what is made then."""
        prompt = Prompt([min(self.engine.stop_ids, default=0)])
        self.engine.submit(prompt, Sampling(WARM_UP_TOKENS), [0])
        took = []
        while not self.engine.idle:
            begun = time.monotonic()
            self.engine.step()
            took.append(time.monotonic() - begun)
        self.measured(min(took))
        self.last_step = time.monotonic()

    def _take_orders(self) -> None:
        """Do what was called for; with nothing to do, wait for it."""
        with self._lock:
            while not self._inbox and self.engine.idle and not self._stopping:
                self._lock.wait()
            orders, self._inbox = self._inbox, []
        for function, arguments in orders:
            function(*arguments)
        now = time.monotonic()
        for job in {job for job, _ in self._rows.values() if job.deadline <= now}:
            self._drop(job, TIMEOUT, late())
        self._flush()

    def _submit(self, job: Job) -> None:
        if job.done:  # cancelled before its turn
            return
        try:
            # Watched, so that a step that only waits for tools is known.
            options = {"stream": job.live, "watch": _calls(job)}
            ids = self.engine.submit(job.prompt, job.sampling, job.seeds, **options)
        except InputError as error:
            self._tell(job.fail, ApiError(400, "context_length_exceeded", str(error)))
        except Exception:
            logger.exception("request %s could not be submitted", job.id)
            self._tell(job.fail, failed())
        else:
            self._rows |= {id: (job, index) for index, id in enumerate(ids)}

    def _drop(self, job: Job, cause: str, failure: ApiError | None = None) -> None:
        """Take a job's rows out of the engine; what they have so far is told."""
        for id in [id for id, (owner, _) in self._rows.items() if owner is job]:
            _, index = self._rows.pop(id)
            event = self.engine.cancel(id)
            if event:
                self.tokens += event.rollout.length
                self._tell(job.add, index, event.text)
                self._tell(job.end, index, event.rollout, cause)
        if failure:
            self._tell(job.fail, failure, cause)

    def _step(self) -> bool:
        """Do one step and pass on what it did; return False if the engine failed."""
        begun = time.monotonic()
        try:
            events = self.engine.step()
        except Exception as error:
            told = isinstance(error, RunError)  # what the weights make: the engine itself is sound
            if told:
                logger.error("%s", error)
            else:
                logger.exception("a step has failed; its requests fail with it")
            left = {*self.engine.running, *self.engine.waiting}
            for id in self._rows.keys() - left:
                job, index = self._rows.pop(id)
                self._tell(setattr, job, "failure", failed())
                self._tell(job.end, index, Rollout([], [], "", "error"), "error")
            self._flush()
            return told
        self.last_step = time.monotonic()
        if events or not any(_calls(job) for job, _ in self._rows.values()):
            self.measured(self.last_step - begun)
        for id in (*self.engine.running, *(event.id for event in events)):
            job, _ = self._rows[id]
            if job in self._waiting:
                with self._lock:
                    self._waiting.discard(job)
                self._tell(job.begin, begun)
        for event in events:
            job, index = self._rows[event.id]
            self._tell(job.add, index, event.text)
            if event.call:
                self._tell(job.called, index, event.call)
            if event.choice and event.cause != "stop":  # the end token is no part of the text
                self._tell(job.chose, index, event.token, event.choice)
            if event.rollout:
                del self._rows[event.id]
                self.tokens += event.rollout.length
                self._tell(job.end, index, event.rollout, event.cause)
        self._flush()
        return True

    def _tell(self, function: Callable, *arguments) -> None:
        self._news.append((function, arguments))

    def _flush(self) -> None:
        """Hand the news to the event loop, all in one call."""
        if not self._news:
            return
        news, self._news = self._news, []

        def deliver() -> None:
            for function, arguments in news:
                function(*arguments)

        assert self._loop is not None, "the worker has not started"
        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: the server has ended, nobody listens
            self._stopping = True


def _calls(job: Job) -> bool:
    """Return whether the samples of a job may call tools."""
    return bool(job.sampling and job.sampling.tools)
