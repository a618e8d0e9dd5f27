"""From a checked request to a running job: the same for both endpoints.

The order matters: a place in the queue first, then the tokens of the prompt, then the engine.
"""

import asyncio
import logging
import math
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rlm.answers.formats import Format
from rlm.engine.sampling import Closing, Sampling
from rlm.errors import InputError
from rlm.models.prompts import chat_prompt, raw_prompt, token_ids
from rlm.models.templates import check_options
from rlm.records import Example, Prompt, ToolCall
from rlm.seeds import derive
from rlm.server.admission import TIMEOUT, Admission
from rlm.server.errors import ApiError, invalid, late
from rlm.server.job import Job
from rlm.server.metrics import Metrics
from rlm.server.requests import EFFORTS, MAX_TIMEOUT, Ask
from rlm.server.splitter import Placed, Splitter, Whole
from rlm.tools.toolbox import Toolbox

logger = logging.getLogger("rlm.server")

JOIN_SECONDS = 0.03  # deltas are joined for so long
KEEP_ALIVE_SECONDS = 10.0
DEFAULT_SECONDS = 120.0  # a request's time where neither server nor client says another
SLACK = 3.0  # times what its tokens take at the measured speed: that falls with more clients
GRACE_SECONDS = 2.0  # after its deadline a request does not wait any longer for a step to end


@dataclass
class Service:
    """What the endpoints need. max_tokens, timeout_seconds: the most a request can have.

    timeout_seconds: None is DEFAULT_SECONDS, or more where max_tokens take longer at the measured
    speed, and leaves a request that says how long it can wait its time.
    reasoning_fields: the names that clients of the chat API find the reasoning under.
    shots: worked examples that stand before every conversation. role: where the instruction
    stands, of `rlm.answers.formats.ROLES`; None: where the format has it. kind: of the answers,
    which are asked for and read, of `rlm.answers.kinds.KINDS`. tools: that the model may call in a
    conversation; in a text that it goes on with it may call none.
    """

    worker: Admission
    tokenizer: object
    format: Format
    model: str
    max_tokens: int
    timeout_seconds: float | None
    reasoning_fields: tuple[str, ...] = ("reasoning_content",)
    log_content: bool = False
    shots: Sequence[Example] = ()
    role: str | None = None
    kind: str = "number"
    tools: Toolbox | None = None
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
        job = Job(
            id=f"{prefix}-{uuid.uuid4().hex}",
            # As Engine.generate does it: the same seed gives the same samples everywhere.
            seeds=[derive(seed, 0, index) for index in range(ask.n)],
            deadline=math.inf,
            live=ask.stream,
        )
        self.worker.reserve(job)
        try:
            await self._prepare(job, ask)
            assert job.sampling
            job.deadline = job.accepted + self._seconds(ask, job.sampling.max_tokens)
            self.worker.submit(job)
        except BaseException:
            self.worker.release(job)
            raise
        return job, seed

    def _seconds(self, ask: Ask, tokens: int) -> float:
        """Return the seconds that a request has, its wait included."""
        if self.timeout_seconds is not None:
            return min(ask.timeout_seconds or self.timeout_seconds, self.timeout_seconds)
        needed = SLACK * self.worker.seconds_for(tokens)
        return ask.timeout_seconds or min(MAX_TIMEOUT, max(DEFAULT_SECONDS, needed))

    async def _prepare(self, job: Job, ask: Ask) -> None:
        """Make the prompt's tokens and see that there is room for the completion."""
        if ask.logprobs is not None and not self.worker.tells_logprobs:
            message = (
                "logprobs: this server's models run elsewhere and do not tell them; leave it out"
            )
            raise ApiError(400, "unsupported_parameter", message, param="logprobs")
        loop = asyncio.get_running_loop()
        job.prompt = await loop.run_in_executor(self._tokenizing, self._prompt, ask)
        tools = self.tools if ask.prompt is None else None
        results = tools.bound(self.tokenizer).room if tools else 0
        tokens, context = len(job.prompt.ids), self.worker.context_tokens
        room = context - tokens - results if context else self.max_tokens
        wanted = ask.max_tokens or max(1, min(self.max_tokens, room))
        if wanted > room:
            advice = f"use max_tokens {room} or less" if room > 0 else "shorten the prompt"
            kept = f", with {results} for the results of tools," if results else ""
            raise ApiError(
                400,
                "context_length_exceeded",
                f"a prompt of {tokens} tokens and max_tokens {wanted}{kept} are more than the "
                f"model's context of {context} tokens; {advice}",
                param="max_tokens" if ask.max_tokens else "prompt",
            )
        job.sampling = Sampling(
            max_tokens=min(wanted, self.max_tokens),
            temperature=ask.temperature,
            top_k=ask.top_k,
            top_p=ask.top_p,
            stop=ask.stop,
            closing=self._closing(ask, min(wanted, self.max_tokens)),
            tools=tools,
            top_logprobs=ask.logprobs,
        )

    def _prompt(self, ask: Ask) -> Prompt:
        """Return the prompt of a conversation, or of a text as it is; ApiError if there is none."""
        if ask.prompt is not None:
            try:
                return raw_prompt(self.tokenizer, ask.prompt)
            except InputError as error:
                raise invalid(str(error), "prompt") from None
        try:
            check_options(self.tokenizer, ask.template)
        except InputError as error:
            name = "chat_template_kwargs"
            raise ApiError(400, "unsupported_parameter", f"{name}: {error}", param=name) from None
        try:
            return chat_prompt(
                ask.messages,
                self.tokenizer,
                self.format.name,
                self.shots,
                self.role,
                self.kind,
                tools=self.tools,
                beside=not ask.replace_instruction,
                options=ask.template,
            )
        except InputError as error:
            raise invalid(str(error), "messages") from None

    def _closing(self, ask: Ask, most: int) -> Closing | None:
        """Return how the reasoning is bounded, None for not at all. most: tokens in all."""
        tokens = ask.max_reasoning_tokens
        if tokens is None and ask.effort and EFFORTS[ask.effort] < 1:
            tokens = max(1, int(EFFORTS[ask.effort] * most))
        if tokens is None or not self.format.reasoning_close or ask.prompt is not None:
            return None
        opener, closer = self.format.reasoning_open, self.format.reasoning_close
        return Closing(tokens, self._closer, opener, closer)

    async def follow(
        self, job: Job, *, whole: bool = False
    ) -> AsyncIterator[list[tuple[int, str, str]] | None]:
        """Yield the news of a live job: (sample, channel, delta)s, or None after some silence.

        As `follow_calls`, without calls.
        """
        async for news in self.follow_calls(job, whole=whole):
            if news is None:
                yield None
            else:
                yield [(i, c, told) for i, c, told in news if isinstance(told, str)]

    async def follow_calls(
        self, job: Job, *, whole: bool = False
    ) -> AsyncIterator[list[tuple[int, str, str | Placed]] | None]:
        """Yield the news of a live job: (sample, channel, delta or call)s, None after some silence.

        Deltas are joined for a while. A sample that has ended by then has no more of them. A call
        comes once its result was shown. whole: nothing is taken apart, all is the answer.
        """
        splitters = [Whole() if whole else Splitter(self.format) for _ in job.samples]
        calls: list[list[ToolCall]] = [[] for _ in job.samples]  # not shown yet
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
            batch: list[tuple[int, str, str | Placed]] = []
            for index, sample in enumerate(job.samples):
                if ended[index]:
                    continue
                pieces, sample.pieces = sample.pieces, []
                ended[index] = sample.finish is not None
                told = _split(splitters[index], pieces, calls[index], final=ended[index])
                batch += [(index, channel, delta) for channel, delta in told]
            yield batch
            if batch and not over:  # the beginning of a tag is held back: do not wait for nothing
                await asyncio.sleep(JOIN_SECONDS)

    async def finish(self, job: Job) -> None:
        """Wait until all samples have ended."""
        while not job.done:
            await self._news(job)

    async def _news(self, job: Job) -> bool:
        """Wait for news; a step that does not end must not hold up a client for ever."""
        grace = max(GRACE_SECONDS, SLACK * self.worker.token_seconds)
        left = job.deadline + grace - time.monotonic()
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


def _split(
    splitter: Splitter | Whole, pieces: list[str | ToolCall], calls: list[ToolCall], *, final: bool
) -> list[tuple[str, str | Placed]]:
    """Return the deltas of a sample, and each call behind the delta that shows its result.

    calls: that are not shown yet; it is kept up to date.
    """
    told: list[tuple[str, str | Placed]] = []
    text: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            text.append(piece)
            continue
        calls.append(piece)
        told += splitter.feed("".join(text))
        told += _shown(splitter, calls)
        text = []
    told += splitter.feed("".join(text), final=final)
    return told + _shown(splitter, calls)


def _shown(splitter: Splitter | Whole, calls: list[ToolCall]) -> list[tuple[str, str | Placed]]:
    """Return the calls that are shown by now, and take them out."""
    told: list[tuple[str, str | Placed]] = []
    while calls and isinstance(splitter, Splitter) and (placed := splitter.place(calls[0])):
        told.append((placed.channel, placed))
        del calls[0]
    return told
