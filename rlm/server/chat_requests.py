"""What a client of the chat completions API may send, and what of it means something here."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlm.server.messages import Message, check_turns, own_options, plain_turns
from rlm.server.requests import (
    MAX_SEED,
    Ask,
    Effort,
    MaxTokens,
    Samples,
    Stops,
    Temperature,
    Tokens,
    TopK,
    TopP,
    drawn,
)
from rlm.server.unkept import OpenRequest

AnySeed = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatRequest(OpenRequest):
    """A conversation. A field that is not listed is refused, unless it changes nothing."""

    model_config = ConfigDict(extra="ignore")

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    model: str | None = Field(None, description="ignored: there is one model")
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    max_reasoning_tokens: Tokens | None = None
    reasoning_effort: Effort | None = Field(None, description="bounds the reasoning")
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = None
    seed: AnySeed | None = None
    stop: Stops | None = None
    n: Samples | None = None
    logprobs: bool | None = Field(None, description="of every token, the reasoning's too")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    replace_instruction: bool | None = Field(
        None, description="system turns stand in the place of the format's instruction"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given):
        if isinstance(given, dict) and given.get("n") is None:
            return given | {"n": 1}
        return given

    @model_validator(mode="after")
    def _can_be_answered(self):
        check_turns(self.messages)
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs; set it to true")
        limit = self.max_completion_tokens or self.max_tokens
        if limit and (self.max_reasoning_tokens or 0) > limit:
            raise ValueError("max_reasoning_tokens: more than max_tokens; use a smaller number")
        return self

    def ask(self) -> Ask:
        """Return what is asked of the model; reasoning of earlier turns is left out."""
        return Ask(
            messages=tuple(plain_turns(self.messages)),
            replace_instruction=bool(self.replace_instruction),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            max_reasoning_tokens=self.max_reasoning_tokens,
            effort=self.reasoning_effort,
            **drawn(self),
            seed=self.seed,
            n=self.n or 1,
            stop=tuple(self.stop or ()),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            template=own_options(self.chat_template_kwargs),
        )
