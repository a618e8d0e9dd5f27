"""Separate the reasoning from the answer while the text is still arriving.

However the text is cut into pieces, the deltas of a channel join to the same string, and no
part of a tag is ever shown. A text without the reasoning's opener is all answer.
"""

from rlm.formats import Format

REASONING, ANSWER = "reasoning", "answer"


class Splitter:
    """Feed it pieces of one assistant turn (its prefill first); it returns (channel, delta)s."""

    def __init__(self, fmt: Format):
        self.format = fmt
        self._buffer = ""
        self._channel: str | None = None
        self._space = ""
        self._begun = False

    def feed(self, piece: str, final: bool = False) -> list[tuple[str, str]]:
        """Return what can be shown now; what might be the beginning of a tag is held back."""
        self._buffer += piece
        out: list[tuple[str, str]] = []
        if self._channel is None and not self._find_channel(final):
            return out
        while True:
            tags = self._tags()
            found = [(at, tag) for tag in tags if (at := self._buffer.find(tag)) >= 0]
            if not found:
                break
            at, tag = min(found)
            self._emit(self._buffer[:at], out)
            self._buffer = self._buffer[at + len(tag) :]
            if self._channel == REASONING:
                self._enter(ANSWER)
        held = 0 if final else _held(self._buffer, tags)
        cut = len(self._buffer) - held
        self._emit(self._buffer[:cut], out)
        self._buffer = self._buffer[cut:]
        return out

    def finish(self) -> list[tuple[str, str]]:
        """Return the rest, once the turn has ended."""
        return self.feed("", final=True)

    def _tags(self) -> tuple[str, ...]:
        if self._channel == REASONING:
            return (self.format.reasoning_close,)
        return tuple(t for t in (self.format.answer_open, self.format.answer_close) if t)

    def _find_channel(self, final: bool) -> bool:
        """Decide by the first characters; False while they could still become the opener."""
        text, opener = self._buffer.lstrip(), self.format.reasoning_open
        if opener and text.startswith(opener):
            self._buffer = text[len(opener) :]
            self._enter(REASONING)
        elif opener and opener.startswith(text) and not final:
            return False
        else:
            self._enter(ANSWER)
        return True

    def _enter(self, channel: str) -> None:
        self._channel, self._space, self._begun = channel, "", False

    def _emit(self, text: str, out: list[tuple[str, str]]) -> None:
        """Add text without the white space at the channel's ends; inner white space stays."""
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            self._begun = True
            out.append((self._channel, body))


def _held(text: str, tags: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that begins one of the tags."""
    lengths = (n for tag in tags for n in range(1, len(tag)) if text.endswith(tag[:n]))
    return max(lengths, default=0)
