"""The turns of a conversation, as clients of the open APIs write them -> plain texts.

Calls of tools and what they gave are read as text: an agent's history can be gone on with, though
the model calls nothing.
"""

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from rlm.answers.formats import FORMATS

CLOSERS = tuple(fmt.reasoning_close for fmt in FORMATS.values() if fmt.reasoning_close)
OPENERS = tuple(fmt.reasoning_open for fmt in FORMATS.values() if fmt.reasoning_open)
# Kinds of parts that hold a text -> the field that has it. Earlier reasoning is left out.
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
UNREAD = ("reasoning", "thinking", "redacted_thinking", "summary_text", "reasoning_text")


class Part(BaseModel):
    """A part of a turn; only texts can be read here."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "input_text", "output_text", "refusal", "reasoning", "thinking"]
    text: str | None = None
    refusal: str | None = None


class Message(BaseModel):
    """A turn of the conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict] | None = None
    function_call: dict | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _texts_only(cls, value):
        if not isinstance(value, list):
            return value
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in TEXTS and kind not in UNREAD:
                named = isinstance(kind, str) and re.fullmatch(r"[a-z_]{1,40}", kind)
                what = f"of the type {kind}" if named else "that is none"
                raise ValueError(f"a part {what}; only texts can be read here")
        return [
            {"type": part["type"], TEXTS[part["type"]]: part.get(TEXTS[part["type"]])}
            for part in value
            if part["type"] in TEXTS
        ]

    def text(self) -> str:
        """The texts of its content, and what it calls."""
        if isinstance(self.content, list):
            said = "".join(part.text or part.refusal or "" for part in self.content)
        else:
            said = self.content or ""
        return "\n".join(filter(None, (said, *map(_called, self.calls()))))

    def calls(self) -> list[dict]:
        """The functions that it calls: name and arguments."""
        calls = [*(self.tool_calls or ()), *([self.function_call] if self.function_call else ())]
        inner = [call.get("function") or call.get("custom") or call for call in calls]
        return [call if isinstance(call, dict) else {} for call in inner]


def _called(function: dict) -> str:
    given = function.get("arguments", function.get("input"))
    words = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return f"Call of {function.get('name') or 'a tool'}: {words or '{}'}"


def plain_turns(messages: list[Message]) -> list[dict]:
    """Return the turns, {"role", "content"} each, of system, user and assistant alone.

    Reasoning of earlier turns is left out. What a tool gave is a turn of the user's.
    """
    turns, names = [], {}
    for message in messages:
        text, role = message.text(), message.role
        for call in message.tool_calls or ():
            function = call.get("function")
            names[str(call.get("id"))] = (
                function.get("name") if isinstance(function, dict) else None
            )
        if role == "assistant":
            text = without_reasoning(text)
        elif role in ("tool", "function"):
            name = message.name or names.get(str(message.tool_call_id)) or "the tool"
            role, text = "user", f"Result of {name}: {text}"
        elif role == "developer":
            role = "system"
        turns.append({"role": role, "content": text})
    return turns


def check_turns(messages: list[Message]) -> None:
    """ValueError if nobody could answer them, naming the field messages."""
    for message in messages:
        try:
            f"{message.text()}{message.name}".encode()
        except UnicodeEncodeError:
            raise ValueError("messages: a text has half a character (a surrogate)") from None
    if not any(message.text().strip() for message in messages if message.role == "user"):
        raise ValueError("messages: no user turn has a text; give the question in one")
    if messages[-1].role == "assistant":
        raise ValueError("messages: the last turn is the assistant's; end with a user's turn")


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


def own_options(given: dict[str, Any] | None) -> dict:
    """Return what a request tells the chat template, without what is done anyway."""
    return {
        name: value
        for name, value in (given or {}).items()
        if value is not None and not (name in ("enable_thinking", "thinking") and value is True)
    }
