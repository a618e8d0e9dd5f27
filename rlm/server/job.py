"""One accepted request: its samples, what has come of them, and what is waiting to be read.

The engine's thread makes the news, the event loop puts them in here and reads them; so nothing
here needs a lock, and a reader who is slow holds up nobody.
"""

import asyncio
import time
from dataclasses import dataclass, field

from rlm.engine.sampling import Sampling
from rlm.records import Choice, Prompt, Rollout, ToolCall
from rlm.server.errors import ApiError, failed

# Why a sample ended, and what a client is told. The other causes are the server's words already.
FINISHES = {"stop_text": "stop_sequence"}
OWN_ENDS = ("stop", "length", "stop_sequence")  # the sample came to its own end


@dataclass(eq=False)
class Sample:
    """One completion. finish: None while it runs.

    pieces: text that nobody has read yet, each call of a tool behind the piece with its result.

    chosen: (token, what it was chosen from), those that nobody has read yet.
    """

    pieces: list[str | ToolCall] = field(default_factory=list)
    chosen: list[tuple[int, Choice]] = field(default_factory=list)
    rollout: Rollout | None = None
    finish: str | None = None


@dataclass(eq=False)
class Job:
    """A request on its way. Times are those of time.monotonic().

    seeds: one for each sample. live: whether the pieces are wanted while they arrive.
    failure: what the client is told if no sample came to its own end.
    """

    id: str
    seeds: list[int]
    deadline: float
    live: bool
    prompt: Prompt | None = None
    sampling: Sampling | None = None
    failure: ApiError | None = None
    accepted: float = field(default_factory=time.monotonic)
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def __post_init__(self):
        self.samples = [Sample() for _ in self.seeds]
        self.news = asyncio.Event()
        self.open = len(self.seeds)

    @property
    def done(self) -> bool:
        return self.open == 0

    @property
    def succeeded(self) -> bool:
        """Whether any sample came to its own end."""
        return any(sample.finish in OWN_ENDS for sample in self.samples)

    @property
    def cut(self) -> bool:
        """Whether its deadline fell while tokens came: they are the reply."""
        return bool(self.failure and self.failure.status == 504 and self.started is not None)

    def check(self) -> None:
        """ApiError if there is nothing to reply: no sample came to its own end, nor was it cut."""
        if not self.succeeded and not self.cut:
            raise self.failure or failed()

    def begin(self, started: float) -> None:
        """Note when its first sample got a row, and so its first token."""
        if self.started is None:
            self.started, self.first_token = started, time.monotonic()

    def add(self, index: int, piece: str) -> None:
        """Take in a piece of a sample's text."""
        if piece and self.live:
            self.samples[index].pieces.append(piece)
            self.news.set()

    def unread(self, index: int) -> list[tuple[int, Choice]]:
        """Take out what a sample's tokens were chosen from that nobody has read yet."""
        sample = self.samples[index]
        chosen, sample.chosen = sample.chosen, []
        return chosen

    def called(self, index: int, call: ToolCall) -> None:
        """Take in a call of a tool that has its result, which is the end of the last piece."""
        if self.live:
            self.samples[index].pieces.append(call)
            self.news.set()

    def chose(self, index: int, token: int, choice: Choice) -> None:
        """Take in what a token was chosen from."""
        if self.live:
            self.samples[index].chosen.append((token, choice))
            self.news.set()

    def end(self, index: int, rollout: Rollout, cause: str) -> None:
        """Take in the end of a sample."""
        sample = self.samples[index]
        if sample.finish is None:
            sample.rollout, sample.finish = rollout, FINISHES.get(cause, cause)
            self.open -= 1
            self.ended = time.monotonic()
            self.news.set()

    def fail(self, failure: ApiError, cause: str = "error") -> None:
        """End all samples that still run."""
        self.failure = self.failure or failure
        for index in range(len(self.samples)):
            self.end(index, Rollout([], [], "", cause), cause)

    async def wait(self, seconds: float) -> bool:
        """Wait for news, so long at most; return whether there are any."""
        try:
            await asyncio.wait_for(self.news.wait(), seconds)
        except TimeoutError:
            return False
        self.news.clear()
        return True
