"""Separate the reasoning from the answer while the text is still arriving.

However the text is cut into pieces, the deltas of a channel join to the same string, and no
part of a tag is ever shown. A text without the reasoning's opener is all answer. The work is in
proportion to the text, in white space without end too.
"""

import re

from rlm.answers.formats import Format

REASONING, ANSWER = "reasoning", "answer"


class Splitter:
    """Feed it pieces of one assistant turn (its prefill first); it returns (channel, delta)s."""

    def __init__(self, fmt: Format):
        self.format = fmt
        self._buffer = ""
        self._channel = ""  # not known yet
        self._space: list[str] = []  # white space that is shown once something follows it
        self._begun = False

    def feed(self, piece: str, final: bool = False) -> list[tuple[str, str]]:
        """Return what can be shown now; what might be the beginning of a tag is held back."""
        self._buffer += piece
        out: list[tuple[str, str]] = []
        if not self._channel and not self._find_channel(final):
            return out
        start = 0
        while found := self._next_tag(start):
            self._emit(self._buffer[start : found.start()], out)
            start = found.end()
            if self._channel == REASONING:
                self._enter(ANSWER)
        held = 0 if final else _held(self._buffer[start:], self._tags())
        cut = len(self._buffer) - held
        self._emit(self._buffer[start:cut], out)
        self._buffer = self._buffer[cut:]
        return out

    def finish(self) -> list[tuple[str, str]]:
        """Return the rest, once the turn has ended."""
        return self.feed("", final=True)

    def _tags(self) -> tuple[str, ...]:
        if self._channel == REASONING:
            return (self.format.reasoning_close,)
        return tuple(t for t in (self.format.answer_open, self.format.answer_close) if t)

    def _next_tag(self, start: int) -> re.Match[str] | None:
        """Return the first tag of the channel in the buffer from `start` on."""
        pattern = "|".join(map(re.escape, self._tags()))
        return re.compile(pattern).search(self._buffer, start) if pattern else None

    def _find_channel(self, final: bool) -> bool:
        """Decide by the first characters; False while they could still become the opener."""
        text = self._buffer = self._buffer.lstrip()
        opener = self.format.reasoning_open
        if opener and text.startswith(opener):
            self._buffer = text[len(opener) :]
            self._enter(REASONING)
        elif opener and opener.startswith(text) and not final:
            return False
        else:
            self._enter(ANSWER)
        return True

    def _enter(self, channel: str) -> None:
        self._channel, self._space, self._begun = channel, [], False

    def _emit(self, text: str, out: list[tuple[str, str]]) -> None:
        """Add text without the white space at the channel's ends; inner white space stays."""
        if not self._begun:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            out.append((self._channel, "".join(self._space) + body))
            self._begun, self._space = True, []
        self._space.append(text[len(body) :])


def _held(text: str, tags: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that begins one of the tags."""
    lengths = (n for tag in tags for n in range(1, len(tag)) if text.endswith(tag[:n]))
    return max(lengths, default=0)
