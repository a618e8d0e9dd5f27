"""The calls of one request: where its text was looked at, the call that runs, those that ended.

It does not know what a call is (rlm.tools.toolbox) nor how its tokens get into the cache
(rlm.engine.native, rlm.engine.padded).
"""

from dataclasses import dataclass, field

from rlm.records import ToolCall
from rlm.tools.forms import Found
from rlm.tools.toolbox import Bound
from rlm.tools.workers import Job


@dataclass(eq=False, slots=True)
class Calls:
    """seen: characters of the text that were looked at. start: where the last result ended.

    job: the call that runs now, found: where it stands, name and arguments: as far as they could
    be read. at_stop: it ended with an end token. tokens: that tools wrote so far. offset:
    characters of a rollout's text before the text that is looked at.
    """

    bound: Bound
    offset: int
    done: list[ToolCall] = field(default_factory=list)
    tokens: int = 0
    seen: int = 0
    start: int = 0
    job: Job | None = None
    found: Found | None = None
    name: str = ""
    arguments: str = ""
    at_stop: bool = False

    def look(self, text: str, *, ended: bool = False) -> bool:
        """Begin the call that has just ended in the text; return whether there is one.

        ended: the model has ended its turn with it.
        """
        number = len(self.done)
        self.found = self.bound.find(text, self.start, self.seen, number, ended=ended)
        self.seen, self.at_stop = len(text), ended
        if self.found is None:
            return False
        self.name, self.arguments, self.job = self.bound.begin(self.found, number)
        return True

    def result(self, stop_ids: frozenset[int]) -> tuple[list[int], str, str, str | None]:
        """Return (ids, text as shown, result, failure) of the call that has come to an end."""
        assert self.job is not None and self.job.outcome is not None
        ids, shown, outcome = self.bound.result(
            self.job.outcome, ended=self.at_stop, stops=stop_ids
        )
        self.job = None
        return ids, shown, outcome.text, outcome.failure

    def note(self, first: int, tokens: int, shown: int, end: int, result: str, failure) -> ToolCall:
        """Keep and return the call whose result, of `shown` characters, now ends the text.

        first, tokens: where its tokens stand. end: characters of the text.
        """
        assert self.found is not None
        begin, written = self.found.start, end - shown
        places = [self.offset + place for place in (begin, written, end)]
        call = ToolCall(self.name, self.arguments, result, failure, first, tokens, *places)
        self.done.append(call)
        self.tokens += tokens
        self.seen = self.start = end
        return call

    def drop(self) -> None:
        """Nobody waits for the call any more."""
        if self.job:
            self.job.drop()
            self.job = None
