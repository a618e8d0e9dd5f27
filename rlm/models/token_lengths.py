"""Where the tokens of a completion stand in its text: a number of characters each.

    lengths = TokenLengths(tokenizer)
    lengths("<think>\\n1", ids, prefill="")        # [9, 1, 0]: the end token has no text

So a rollout's record needs no copy of its tokens' texts, and they always join to its text.
"""

from rlm.models.text_stream import TextStream, decode


class TokenLengths:
    """Splits texts by the tokens they came from; texts of single tokens are looked up once."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def __call__(self, text: str, ids: list[int], prefill: str = "", calls=()) -> list[int]:
        """Return the characters that each of `ids` has in text[len(prefill):]; they sum to it.

        text: a rollout's: the prefill and the decoded ids without the end token, cut at a stop
        text. A character of several tokens belongs to the last of them; all that is shown of a
        tool's result to the last token of it. calls: the rollout's.
        """
        if calls:
            return self._in_pieces(text, ids, len(prefill), calls)
        room = len(text) - len(prefill)
        pieces = [self._piece(id) for id in ids]
        # False where a character is split: its tokens alone are broken ones.
        if not "".join(pieces).startswith(text[len(prefill) :]):
            pieces = self._follow(ids)
        lengths = []
        for piece in pieces:
            lengths.append(min(len(piece), room))
            room -= lengths[-1]
        if lengths:
            lengths[-1] += room  # nothing, but where a decoder adds or drops a space
        return lengths

    def _in_pieces(self, text: str, ids: list[int], at: int, calls) -> list[int]:
        """Return the same, from character `at` on: what was sampled, a result, and so on."""
        lengths: list[int] = []
        for call in calls:
            lengths += self(text[at : call.written], ids[len(lengths) : call.first])
            lengths += [0] * (call.tokens - 1) + [call.end - call.written]
            at = call.end
        return lengths + self(text[at:], ids[len(lengths) :])

    def _piece(self, id: int) -> str:
        if id not in self._pieces:
            self._pieces[id] = decode(self._tokenizer, [id])
        return self._pieces[id]

    def _follow(self, ids: list[int]) -> list[str]:
        """Return the pieces as they come out of the whole text, token by token: slow and exact."""
        stream = TextStream(self._tokenizer)
        pieces = [stream.push(id) for id in ids]
        pieces[-1:] = [piece + stream.finish() for piece in pieces[-1:]]
        return pieces
