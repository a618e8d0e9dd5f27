"""From a checked request to a running job: the same for both endpoints.

The order matters: a place in the queue first, then the tokens of the prompt, then the engine.
"""

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rlm.answers.formats import Format
from rlm.engine.sampling import Closing, Sampling
from rlm.errors import InputError
from rlm.models.prompts import chat_prompt, token_ids
from rlm.records import Example
from rlm.seeds import derive
from rlm.server.admission import TIMEOUT, Admission
from rlm.server.errors import ApiError, invalid, late
from rlm.server.job import Job
from rlm.server.metrics import Metrics
from rlm.server.requests import Ask
from rlm.server.splitter import Splitter

logger = logging.getLogger("rlm.server")

JOIN_SECONDS = 0.03  # deltas are joined for so long
KEEP_ALIVE_SECONDS = 10.0
GRACE_SECONDS = 2.0  # after its deadline a request does not wait any longer for a step to end


@dataclass
class Service:
    """What the endpoints need. max_tokens, timeout_seconds: the most a request can have.

    shots: worked examples that stand before every conversation. role: where the instruction
    stands, of `rlm.answers.formats.ROLES`; None: where the format has it.
    """

    worker: Admission
    tokenizer: object
    format: Format
    model: str
    max_tokens: int
    timeout_seconds: float
    log_content: bool = False
    shots: Sequence[Example] = ()
    role: str | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self):
        # One thread, so that a flood of long prompts takes one core at most.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        # On lines of its own, as a model is taught to write it.
        closer = f"\n{self.format.reasoning_close}\n"
        self._closer = tuple(token_ids(self.tokenizer, closer))

    async def start(self, ask: Ask, prefix: str) -> tuple[Job, int]:
        """Return the job on its way to the engine, and its seed; ApiError if it is refused."""
        seed = secrets.randbelow(2**53) if ask.seed is None else ask.seed
        seconds = min(ask.timeout_seconds or self.timeout_seconds, self.timeout_seconds)
        job = Job(
            id=f"{prefix}-{uuid.uuid4().hex}",
            # As Engine.generate does it: the same seed gives the same samples everywhere.
            seeds=[derive(seed, 0, index) for index in range(ask.n)],
            deadline=time.monotonic() + seconds,
            live=ask.stream,
        )
        self.worker.reserve(job)
        try:
            await self._prepare(job, ask)
            self.worker.submit(job)
        except BaseException:
            self.worker.release(job)
            raise
        return job, seed

    async def _prepare(self, job: Job, ask: Ask) -> None:
        """Make the prompt's tokens and see that there is room for the completion."""
        loop = asyncio.get_running_loop()
        try:
            job.prompt = await loop.run_in_executor(
                self._tokenizing,
                chat_prompt,
                ask.messages,
                self.tokenizer,
                self.format.name,
                self.shots,
                self.role,
            )
        except InputError as error:
            raise invalid(str(error), "messages") from None
        tokens, context = len(job.prompt.ids), self.worker.context_tokens
        room = context - tokens if context else self.max_tokens
        wanted = ask.max_tokens or max(1, min(self.max_tokens, room))
        if wanted > room:
            advice = f"use max_tokens {room} or less" if room > 0 else "shorten the prompt"
            raise ApiError(
                400,
                "context_length_exceeded",
                f"a prompt of {tokens} tokens and max_tokens {wanted} are more than the model's "
                f"context of {context} tokens; {advice}",
                param="max_tokens" if ask.max_tokens else "prompt",
            )
        job.sampling = Sampling(
            max_tokens=min(wanted, self.max_tokens),
            temperature=ask.temperature,
            top_k=ask.top_k,
            top_p=ask.top_p,
            stop=ask.stop,
            closing=self._closing(ask.max_reasoning_tokens),
        )

    def _closing(self, tokens: int | None) -> Closing | None:
        if tokens is None or not self.format.reasoning_close:
            return None
        opener, closer = self.format.reasoning_open, self.format.reasoning_close
        return Closing(tokens, self._closer, opener, closer)

    async def follow(self, job: Job) -> AsyncIterator[list[tuple[int, str, str]] | None]:
        """Yield the news of a live job: (sample, channel, delta)s, or None after some silence.

        Deltas are joined, so a batch has at most one for each sample and channel. A sample that
        has ended by then has no more of them.
        """
        splitters = [Splitter(self.format) for _ in job.samples]
        ended = [False] * len(job.samples)
        if job.prompt and job.prompt.prefill:
            for splitter in splitters:
                splitter.feed(job.prompt.prefill)
        over = False
        while not over:
            if not await self._news(job):
                yield None
                continue
            over = job.done
            batch = []
            for index, sample in enumerate(job.samples):
                if ended[index]:
                    continue
                text, sample.pieces = "".join(sample.pieces), []
                ended[index] = sample.finish is not None
                deltas = splitters[index].feed(text, final=ended[index])
                batch += [(index, channel, delta) for channel, delta in deltas]
            yield batch
            if batch and not over:  # the beginning of a tag is held back: do not wait for nothing
                await asyncio.sleep(JOIN_SECONDS)

    async def finish(self, job: Job) -> None:
        """Wait until all samples have ended."""
        while not job.done:
            await self._news(job)

    async def _news(self, job: Job) -> bool:
        """Wait for news; a step that does not end must not hold up a client for ever."""
        left = job.deadline + GRACE_SECONDS - time.monotonic()
        if left <= 0:
            self.worker.cancel(job, late(), TIMEOUT)
        return await job.wait(max(0.01, min(left, KEEP_ALIVE_SECONDS)))

    def abandon(self, job: Job) -> None:
        """Free the rows of a job whose client has gone."""
        if not job.done:
            self.metrics.cancelled.inc()
        self.worker.cancel(job, ApiError(503, "cancelled", "the client has gone"))

    def note(self, request_id: str, finishes: list[str], used: dict, times: dict) -> None:
        """Put a finished job into the metrics and, without any content, into the log."""
        self.metrics.first_token.observe(times["first_token_ms"] / 1e3)
        self.metrics.total.observe(times["total_ms"] / 1e3)
        self.metrics.rate.observe(times["tokens_per_second"])
        logger.info(
            "%s done: %s, prompt %d tokens, completion %d, queue %.0f ms, total %.0f ms",
            request_id,
            " ".join(finishes),
            used["prompt_tokens"],
            used["completion_tokens"],
            times["queue_ms"],
            times["total_ms"],
        )

    def note_content(self, request_id: str, asked: str, texts: list[str]) -> None:
        """Log what was asked and answered, if that is wanted."""
        if self.log_content:
            logger.info("%s asked %r, answered %r", request_id, asked, texts)
