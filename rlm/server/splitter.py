"""Separate the reasoning from the answer while the text is still arriving.

However the text is cut into pieces, the deltas of a channel join to the same string, and no tag
or part of one is ever shown. What stands before the first tag is the answer if no tag follows, and
reasoning if the reasoning is opened or closed behind it: so it is held back until that is known. A
reasoning that is opened once more behind the answer is reasoning, too. The work is in proportion to
the text, in white space without end too. A call of a tool and its result are a part of the channel
in which the result ends; `Splitter.place` says where.
"""

import re
from dataclasses import dataclass

from rlm.answers.formats import Format
from rlm.records import ToolCall

REASONING, ANSWER = "reasoning", "answer"


@dataclass(frozen=True, slots=True)
class Placed:
    """A call with its place: characters of what is shown of a channel, its result included."""

    call: ToolCall
    channel: str
    start: int
    end: int

    def told(self) -> dict:
        """Return what a client is told of it."""
        call = self.call
        return {
            "name": call.name,
            "arguments": call.arguments,
            "result": call.result,
            "failure": call.failure,
            "tokens": call.tokens,
            "channel": self.channel,
            "start": self.start,
            "end": self.end,
        }


class Splitter:
    """Feed it pieces of one assistant turn (its prefill first); it returns (channel, delta)s.

    reasoned: characters of the turn up to the end of the reasoning that was shown.
    """

    def __init__(self, fmt: Format):
        self.format = fmt
        self.reasoned = 0
        self._tags = tuple(tag for tag in fmt.tags if tag)
        self._tag = re.compile("|".join(map(re.escape, self._tags))) if self._tags else None
        self._buffer, self._at = "", 0  # not shown yet; where in the turn that begins
        self._searched = 0  # of the buffer, where no tag begins
        self._channel = ""  # not known yet
        self._space: dict[str, list[str]] = {REASONING: [], ANSWER: []}  # shown if more follows
        self._begun = {REASONING: False, ANSWER: False}
        self._length = {REASONING: 0, ANSWER: 0}  # characters shown
        # Where stretches of the turn stand: (first in the turn, channel, first in the channel).
        self._stretches: list[tuple[int, str, int]] = []

    def feed(self, piece: str, final: bool = False) -> list[tuple[str, str]]:
        """Return what can be shown now; what might be the beginning of a tag is held back."""
        self._buffer += piece
        out: list[tuple[str, str]] = []
        if not self._channel and not self._tag:
            self._channel = ANSWER
        while found := self._next_tag():
            self._meet(found[0], found.start(), out)
            self._drop(len(found[0]))
        held = 0 if final else _held(self._buffer, self._tags)
        self._searched = len(self._buffer) - held
        if not self._channel and final:
            self._channel = ANSWER
        if self._channel:
            self._show(self._searched, out)
        return out

    def finish(self) -> list[tuple[str, str]]:
        """Return the rest, once the turn has ended."""
        return self.feed("", final=True)

    def place(self, call: ToolCall) -> Placed | None:
        """Return where a call of the turn is shown, None as long as its result is not."""
        if self._at < call.end or not self._stretches:
            return None
        first, channel, begun = next(s for s in reversed(self._stretches) if s[0] < call.end)
        return Placed(call, channel, begun + max(0, call.start - first), begun + call.end - first)

    def _next_tag(self) -> re.Match[str] | None:
        return self._tag.search(self._buffer, self._searched) if self._tag else None

    def _meet(self, tag: str, start: int, out: list[tuple[str, str]]) -> None:
        """Show what stands before a tag, and enter the channel behind it."""
        fmt = self.format
        if tag == fmt.reasoning_open:
            before = after = REASONING
        elif tag == fmt.reasoning_close:
            before, after = REASONING, ANSWER
        else:  # around the answer; inside the reasoning it is a slip of the pen
            before, after = ANSWER, self._channel or ANSWER
        self._channel = self._channel or before
        self._show(start, out)
        entered, self._channel = after != self._channel, after
        apart = entered or tag in (fmt.reasoning_open, fmt.reasoning_close)
        if self._begun[after] and apart and not any(self._space[after]):
            self._space[after].append("\n" if entered else " ")  # what a tag parted stays apart

    def _show(self, end: int, out: list[tuple[str, str]]) -> None:
        """Show the buffer up to `end`, without the white space at the channel's ends."""
        channel, text = self._channel, self._buffer[:end]
        body, first = text.rstrip(), self._at
        if not self._begun[channel]:
            first += len(body) - len(body.lstrip())
            body = body.lstrip()
        if body:
            out.append((channel, "".join(self._space[channel]) + body))
            self._note(first, channel, self._length[channel] + sum(map(len, self._space[channel])))
            self._length[channel] += len(out[-1][1])
            self._begun[channel], self._space[channel] = True, []
            if channel == REASONING:
                self.reasoned = self._at + len(text.rstrip())
        if self._begun[channel]:
            self._space[channel].append(text[len(text.rstrip()) :])
        self._drop(end)

    def _note(self, first: int, channel: str, begun: int) -> None:
        """Keep where a stretch begins, unless it goes on from the last one."""
        if self._stretches:
            last, of, there = self._stretches[-1]
            if of == channel and begun - there == first - last:
                return
        self._stretches.append((first, channel, begun))

    def _drop(self, end: int) -> None:
        """Forget the first `end` characters of the buffer."""
        self._buffer, self._at = self._buffer[end:], self._at + end
        self._searched = 0


class Whole:
    """In the place of a Splitter: all is the answer, as it comes, and nothing is called."""

    def feed(self, piece: str, final: bool = False) -> list[tuple[str, str]]:
        """Return the piece."""
        return [(ANSWER, piece)] if piece else []


def _held(text: str, tags: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that begins one of the tags."""
    lengths = (n for tag in tags for n in range(1, len(tag)) if text.endswith(tag[:n]))
    return max(lengths, default=0)
