"""Log-probabilities as clients read them: the tokens as texts, beside each the likeliest ones.

They are of every token that the model sampled, tags and reasoning included, so that the texts join
to the turn; the end token is left out, and so is what a tool wrote. They are the model's own: at
temperature 1, nothing cut off.
"""

from rlm.models.text_stream import BROKEN, TextStream, decode
from rlm.records import Choice, Rollout

LOWEST = -9999.0  # for what a model rules out, which JSON has no number for


class Teller:
    """The tokens of one sample, told in the order in which they came."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer)

    def chat(self, token: int, choice: Choice) -> dict:
        """Return an entry of `logprobs.content`, as the chat API has it."""
        text = self._take(token)
        likeliest = [
            _entry(text if id == token else self._shown(id), logprob)
            for id, logprob in choice.likeliest
        ]
        return _entry(text, choice.logprob) | {"top_logprobs": likeliest}

    def plain(self, chosen: list[tuple[int, Choice]], offset: int = 0) -> dict:
        """Return `logprobs` as the completions API has it. offset: of the first in the text."""
        entries = [self.chat(token, choice) for token, choice in chosen]
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {each["token"]: each["logprob"] for each in entry["top_logprobs"]}
                for entry in entries
            ],
            "text_offset": offsets,
        }

    def _take(self, token: int) -> str:
        piece = self._text.push(token)
        return piece or self._shown(token)  # a part of a character has no text of its own yet

    def _shown(self, token: int) -> str:
        return decode(self._tokenizer, [token])


def _entry(text: str, logprob: float) -> dict:
    whole = BROKEN not in text
    return {
        "token": text,
        "logprob": max(LOWEST, logprob),
        "bytes": list(text.encode()) if whole else None,
    }


def chosen_of(rollout: Rollout, finish: str) -> list[tuple[int, Choice]]:
    """Return what each sampled token of a rollout was chosen from, without the end token."""
    own = [id for id, sampled in zip(rollout.ids, rollout.sampled, strict=True) if sampled]
    chosen = list(zip(own, rollout.choices or (), strict=False))
    return chosen[:-1] if finish == "stop" else chosen
