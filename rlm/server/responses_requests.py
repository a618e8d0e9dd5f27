"""What a client of the responses API may send: its plain form, a text or a conversation."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlm.server.messages import Message, check_turns, plain_turns
from rlm.server.requests import MAX_PROMPT, Ask, Effort, MaxTokens, Temperature, TopK, TopP, drawn
from rlm.server.unkept import OpenRequest

Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]


class Reasoning(BaseModel):
    """effort: bounds the reasoning. It is told whole, so there is no summary to choose."""

    model_config = ConfigDict(strict=True)

    effort: Effort | None = None


class ResponsesRequest(OpenRequest):
    """A text or a conversation. What is not listed is refused, unless it changes nothing."""

    model_config = ConfigDict(extra="ignore")

    input: Text | Annotated[list[Message], Field(min_length=1, max_length=256)]
    instructions: Text | None = Field(None, description="beside the format's instruction")
    model: str | None = Field(None, description="ignored: there is one model")
    max_output_tokens: MaxTokens = None
    reasoning: Reasoning | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = None
    stream: bool | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _turns(cls, value):
        if not isinstance(value, list):
            return value
        turns = [_turn(item) for item in value]
        return [turn for turn in turns if turn is not None]

    @model_validator(mode="after")
    def _can_be_answered(self):
        try:
            check_turns(self.messages())
        except ValueError as error:
            raise ValueError(f"input{str(error).removeprefix('messages')}") from None
        return self

    def messages(self) -> list[Message]:
        """The conversation."""
        told = [Message(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*told, Message(role="user", content=self.input)]
        return [*told, *self.input]

    def ask(self) -> Ask:
        """Return what is asked of the model."""
        return Ask(
            messages=tuple(plain_turns(self.messages())),
            max_tokens=self.max_output_tokens,
            effort=self.reasoning.effort if self.reasoning else None,
            **drawn(self),
        )


def _turn(item: Any) -> Any:
    """Return an item of `input` as a message, None for earlier reasoning."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "reasoning":
        return None
    if kind == "function_call":
        call = {"id": item.get("call_id"), "function": item}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        return {
            "role": "tool",
            "tool_call_id": item.get("call_id"),
            "content": item.get("output"),
        }
    if isinstance(item, dict) and kind != "message":
        raise ValueError("an item that is neither a message nor a function's call or output")
    return item
