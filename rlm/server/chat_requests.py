"""What a client of the chat completions API may send, as far as it means something here."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlm.answers.formats import FORMATS
from rlm.server.requests import MAX_SEED, Ask, Request, Samples, Stops, Temperature, Tokens, TopP

CLOSERS = tuple(fmt.reasoning_close for fmt in FORMATS.values() if fmt.reasoning_close)
OPENERS = tuple(fmt.reasoning_open for fmt in FORMATS.values() if fmt.reasoning_open)


class Part(BaseModel):
    """A part of a turn; only texts can be read here."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of the conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatRequest(Request):
    """A conversation. Fields that are not listed are ignored."""

    model_config = ConfigDict(extra="ignore")

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    model: str | None = Field(None, description="ignored: there is one model")
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: Stops | None = None
    n: Samples | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given):
        if isinstance(given, dict) and given.get("n") is None:
            return given | {"n": 1}
        return given

    @model_validator(mode="after")
    def _whole_characters(self):
        for message in self.messages:
            try:
                message.text().encode()
            except UnicodeEncodeError:
                raise ValueError("messages: a text has half a character (a surrogate)") from None
        return self

    @model_validator(mode="after")
    def _ends_with_a_question(self):
        if not any(message.text().strip() for message in self.messages if message.role == "user"):
            raise ValueError("messages: no user turn has a text; give the question in one")
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last turn is the assistant's; end with a user's turn")
        return self

    def ask(self) -> Ask:
        """Return what is asked of the model; reasoning of earlier turns is left out."""
        turns = []
        for message in self.messages:
            role = "system" if message.role == "developer" else message.role
            text = message.text()
            text = without_reasoning(text) if role == "assistant" else text
            turns.append({"role": role, "content": text})
        return Ask(
            messages=tuple(turns),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=0.7 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            seed=self.seed,
            n=self.n or 1,
            stop=tuple(self.stop or ()),
            stream=bool(self.stream),
        )


def without_reasoning(text: str) -> str:
    """Return an assistant's turn without its reasoning, in whichever format it was written.

    >>> without_reasoning("<think>1 + 1</think>\\n2")
    '2'
    """
    for closer in CLOSERS:
        text = text.rpartition(closer)[2] if closer in text else text
    for opener in OPENERS:  # a reasoning that was never closed
        text = text.partition(opener)[0]
    return text.strip()
