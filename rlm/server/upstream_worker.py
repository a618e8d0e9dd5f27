"""A worker whose tokens are made by other servers: one task a sample, in the event loop.

The rows are those of the engine (rlm.engine.requests), fed with the tokens that come in: so stop
texts, the bound on the reasoning, texts and usage are the engine's own. A reasoning that has used
up its tokens (`Sampling.closing`) takes two requests: the first is closed by us at that token, then
prompt, what was written and the closer go up as the prompt of the second, with a seed of its own. A
reasoning that ends by itself takes one, and is what it is without a bound.

When a server is lost, a sample of which nobody has seen anything begins anew on another one:
every sample of a plain reply, and of a stream those without a token. The others end with an error.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from rlm.engine.requests import Event, Group, Row
from rlm.engine.sampling import Sampling
from rlm.models.text_stream import TextStream
from rlm.records import Rollout
from rlm.seeds import derive
from rlm.server.admission import CANCELLED, TIMEOUT, Admission
from rlm.server.errors import ApiError, failed, late
from rlm.server.job import Job
from rlm.server.pool import Pool, Upstream
from rlm.server.upstream import Lost, Refused

logger = logging.getLogger("rlm.server")

MOVES = 3  # a sample that was lost so often, and once more, is given up
JOINED_TOKENS = 16  # of a chunk where nobody waits for single tokens


@dataclass(eq=False)
class Run:
    """A sample on its way. begun: when it got its place. fresh: no token of this request yet."""

    job: Job
    index: int
    row: Row
    begun: float = 0.0
    fresh: bool = True
    task: asyncio.Task | None = None

    @property
    def over(self) -> bool:
        return self.job.samples[self.index].finish is not None


class UpstreamWorker(Admission):
    """pool: the servers. stop_ids: what ends a completion. max_queue: see Admission."""

    def __init__(self, pool: Pool, tokenizer, *, stop_ids: frozenset[int], max_queue: int):
        super().__init__(max_queue=max_queue)
        self.pool, self.tokenizer, self.stop_ids = pool, tokenizer, stop_ids
        self.upstreams = tuple(pool.upstreams)
        self.moved = 0  # samples that began anew on another server
        self._runs: dict[Job, list[Run]] = {}
        self._timers: dict[Job, asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.tells_logprobs = False

    def start(self, loop: asyncio.AbstractEventLoop, *, on_ready: Callable, on_dead: Callable):
        """Begin to watch the servers; they have been looked at before, so all is ready."""
        self._loop, self._started = loop, True
        self.pool.start(loop)
        self.ready.set()
        loop.call_soon(on_ready)

    def stop(self, seconds: float = 2.0) -> None:
        """Nothing is left to end: the tasks end with their loop."""

    @property
    def alive(self) -> bool:
        return not self.dead

    @property
    def rows(self) -> int:
        """Samples that have a place on a server."""
        return sum(upstream.in_flight for upstream in self.upstreams)

    @property
    def context_tokens(self) -> int:
        return self.pool.served.context_tokens

    def check_open(self) -> None:
        """ApiError 503 unless requests can be accepted now: so while no server is up."""
        super().check_open()
        if not self.pool.up:
            raise _none_up()

    def submit(self, job: Job) -> None:
        """Start a task for each sample."""
        assert self._loop and job.prompt and job.sampling
        if job.done:  # cancelled before its turn
            return
        runs = [Run(job, index, self._row(job)) for index in range(len(job.seeds))]
        self._runs[job] = runs
        self._timers[job] = self._loop.call_at(job.deadline, self._late, job)
        for run in runs:
            run.task = self._loop.create_task(self._sample(run))

    def cancel(self, job: Job, failure: ApiError, cause: str = CANCELLED) -> None:
        """End a request; the connections of its samples are closed, which frees their rows."""
        if not job.done:
            job.fail(failure, cause)
        self._let_go(job)
        self.release(job)

    async def drain(self, seconds: float) -> None:
        """As every worker; then the connections to the servers are closed."""
        await super().drain(seconds)
        await self.pool.close()

    def _late(self, job: Job) -> None:
        """End a request whose time is over; what its samples have so far is told."""
        for run in self._runs.get(job, ()):
            if not run.over:
                self._tell(run, run.row.end("cancelled", self.tokenizer), TIMEOUT)
        none_came = job.started is None and not self.pool.up
        job.fail(_none_up() if none_came else late(), TIMEOUT)
        self._let_go(job)

    def _let_go(self, job: Job) -> None:
        for run in self._runs.pop(job, ()):
            if run.task:
                run.task.cancel()
        if timer := self._timers.pop(job, None):
            timer.cancel()

    def _row(self, job: Job) -> Row:
        assert job.prompt and job.sampling
        followed = job.live or job.sampling.stop or job.sampling.closing
        text = TextStream(self.tokenizer, job.sampling.stop) if followed else None
        return Row(0, Group(job.prompt), job.sampling, iter(()), job.live, text)

    # --- one sample --------------------------------------------------------------------------

    async def _sample(self, run: Run) -> None:
        """Work on a sample until it has ended, on as many servers as it takes."""
        moves, upstream = 0, None
        try:
            while not run.over:
                upstream = await self.pool.acquire(avoid=upstream, first=moves > 0)
                try:
                    self._has_place(run)
                    while not run.over:
                        await self._request(run, upstream)
                except Lost as lost:
                    self.pool.note(upstream, lost)
                    moves += 1
                    self._move(run, moves)
                finally:
                    self.pool.release(upstream)
        except Refused as error:
            logger.error("request %s: refused by its server: %s", run.job.id, error)
            self._fail(run, failed())
        except Exception:
            logger.exception("request %s has failed", run.job.id)
            self._fail(run, failed())

    def _has_place(self, run: Run) -> None:
        run.begun = time.monotonic()
        with self._lock:
            self._waiting.discard(run.job)

    async def _request(self, run: Run, upstream: Upstream) -> None:
        """Take in one completion; then the closer, if it ended where the reasoning has to."""
        run.fresh = True

        def take(ids: list[int], finish: str | None) -> bool:
            for index, id in enumerate(ids):
                # What the server takes for the end of a turn is one.
                ends = finish == "stop" and index == len(ids) - 1
                self._take(run, id, self.stop_ids | {id} if ends else self.stop_ids)
                if run.over or run.row.forced:
                    return True
            if finish:  # it has ended before we expected it
                self._tell(run, run.row.end("length", self.tokenizer), finish)
            return run.over

        await self.pool.complete(upstream, self._body(run), take)
        while run.row.forced and not run.over:
            self._take(run, run.row.forced[0], self.stop_ids)

    def _body(self, run: Run) -> dict:
        """Return what is asked of the server for what is still to come."""
        row, job = run.row, run.job
        sampling: Sampling = row.sampling
        seed = job.seeds[run.index]
        patient = row.text is None  # nobody looks at the text before its end
        return {
            "model": self.pool.served.model,
            "prompt": row.group.prompt.ids + row.ids,
            "max_tokens": sampling.max_tokens - len(row.ids),
            "temperature": 0.0 if sampling.way == "greedy" else sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # Behind the closer another seed: with the same the first draws would come again.
            "seed": derive(seed, "closed") if row.ids else seed,
            "stop_token_ids": sorted(self.stop_ids),
            # A server takes what is not said from the model's generation_config.json.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stream_interval": JOINED_TOKENS if patient else 1,
        }

    def _take(self, run: Run, id: int, stop_ids: frozenset[int]) -> None:
        run.fresh = False
        self.tokens += 1
        self.last_step = time.monotonic()
        run.job.begin(run.begun)
        event = run.row.take(id, 0.0, self.tokenizer, stop_ids)
        if event:
            self._tell(run, event, event.cause)

    def _tell(self, run: Run, event: Event, cause: str | None) -> None:
        run.job.add(run.index, event.text)
        if event.rollout:
            assert cause
            if event.rollout.ids and run.begun:
                self.measured((time.monotonic() - run.begun) / len(event.rollout.ids))
            run.job.end(run.index, event.rollout, cause)

    def _move(self, run: Run, moves: int) -> None:
        """Let a sample that lost its server begin anew, if nobody can see that."""
        if run.over:
            return
        if moves > MOVES or (run.job.live and not run.fresh):
            message = "the model server that worked on this has failed; ask again"
            self._fail(run, ApiError(503, "engine_dead", message, retry_after=1))
            return
        self.moved += 1
        if not run.fresh:
            run.row = self._row(run.job)

    def _fail(self, run: Run, failure: ApiError) -> None:
        """End one sample; the others of its request go on."""
        run.job.failure = run.job.failure or failure
        run.job.end(run.index, Rollout([], [], "", "error"), "error")


def _none_up() -> ApiError:
    message = "no model server is up; try again in a moment"
    return ApiError(503, "not_ready", message, retry_after=5)
