"""Text from tokens that arrive one by one: no half characters, no part of a stop text."""

BROKEN = "\ufffd"  # what a decoder shows for an incomplete or wrong sequence of bytes


def decode(tokenizer, ids: list[int]) -> str:
    """Return the text of the ids as it is, special tokens written out."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TextStream:
    """The text of one completion so far. The pieces returned join to `text`.

    Only a window of tokens is decoded each time: from the one before the last whole character.
    """

    def __init__(self, tokenizer, stops: tuple[str, ...] = ()):
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._context = self._read = 0  # the window's start; tokens whose text is known
        self._known = ""  # text of the window's tokens up to _read
        self._sent = 0
        self._free = 0  # characters of the text that cannot be a part of a stop text
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the piece of text that is now certain, often empty."""
        self._ids.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """Return the rest; nothing is held back any more."""
        return self._advance(final=True)

    def put(self, text: str) -> str:
        """Add a text that is not the model's, whatever stops are in it; return what is now certain.

        Nothing is held back any more.
        """
        piece = self._advance(final=True) + text
        self.text += text
        self._sent = self._free = len(self.text)
        return piece

    def _advance(self, final: bool) -> str:
        if self.stopped:
            return ""
        if self._read < len(self._ids):
            window = decode(self._tokenizer, self._ids[self._context :])
            if final or not window.endswith(BROKEN):
                self._take(window[len(self._known) :])
                self._context, self._read = self._read, len(self._ids)
                self._known = decode(self._tokenizer, self._ids[self._context :])
        held = 0 if final or self.stopped else self._held()
        piece = self.text[self._sent : len(self.text) - held]
        self._sent += len(piece)
        return piece

    def _take(self, new: str) -> None:
        """Append new text; end before the first stop text that is now complete."""
        start = len(self.text)
        self.text += new
        found = [
            at
            for stop in self._stops
            if (at := self.text.find(stop, max(self._free, start - len(stop) + 1))) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _held(self) -> int:
        """Return the length of the longest end of the text that begins a stop text."""
        own = len(self.text) - self._free
        lengths = (
            n
            for s in self._stops
            for n in range(1, min(own + 1, len(s)))
            if self.text.endswith(s[:n])
        )
        return max(lengths, default=0)
