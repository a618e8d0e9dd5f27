"""How a call and its result are written, as data: by tags, or in the JSON of a chat template.

    <calc>12 * 7</calc><result>84</result>                                     tag
    <tool_call>\n{"name": "calculator", "arguments": {...}}\n</tool_call>      json, as Qwen has it

A form finds the next call in a text as it grows, reads it strictly, and says what stands around a
result. It does not run anything (rlm/tools/toolbox.py). Linear time.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlm.answers import formats
from rlm.errors import InputError
from rlm.tools.tool import LONGEST, CallFault, Tool, read_json

NAMES = ("tag", "json")
RESULT_OPEN, RESULT_CLOSE = "<result>", "</result>"
SHOWN, VALUE, MARK = "rlm_shown_tool", "rlm-shown-value", "rlm-shown-result"


@dataclass(frozen=True, slots=True)
class Found:
    """A call in a text: from character `start` to before `end`. inside: what stands in its marks.

    name: the tool that the marks name, "" where the inside has it.
    """

    start: int
    end: int
    inside: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class TagForm:
    """A call is <TAG>arguments</TAG>, its result <result>text</result>.

    before, after: the texts around a result. at_stop: whether a call ends with an end token.
    """

    tools: tuple[Tool, ...]
    before: str = RESULT_OPEN
    after: str = RESULT_CLOSE
    at_stop: bool = False
    quoted: bool = False

    def find(self, text: str, start: int, seen: int) -> Found | None:
        """Return the call that ends first, behind character `seen`, and begins at `start` or later.

        One whose inside is longer than LONGEST is none.
        """
        found = []
        for tool in self.tools:
            opener, closer = f"<{tool.tag}>", f"</{tool.tag}>"
            at = text.find(closer, max(start, seen - len(closer) + 1))
            while at >= 0:
                begin = text.rfind(opener, max(start, at - LONGEST - len(opener)), at)
                if begin >= 0:
                    inside = text[begin + len(opener) : at]
                    found.append(Found(begin, at + len(closer), inside, tool.name))
                    break
                at = text.find(closer, at + 1)
        return min(found, key=lambda call: call.end, default=None)

    def read(self, call: Found) -> tuple[Tool, dict]:
        """Return the tool and its arguments; CallFault for what it does not take."""
        (tool,) = (tool for tool in self.tools if tool.name == call.name)
        return tool, tool.read(call.inside)

    def write(self, tool: Tool, arguments: dict) -> str:
        """Return a call as the model shall write it."""
        values = list(arguments.values())
        one = len(tool.parameters) == 1 and len(values) == 1
        inside = _plain(values[0]) if one else json.dumps(arguments, ensure_ascii=False)
        return f"<{tool.tag}>{inside}</{tool.tag}>"

    def instruction(self) -> str:
        """Return what the prompt says of the tools."""
        lines = []
        for tool in self.tools:
            kinds = ", ".join(f'"{p.name}": {p.kind.__name__}' for p in tool.parameters)
            one = tool.parameters[0].name if len(tool.parameters) == 1 else ""
            inside = tool.example or one or f"{{{kinds}}}"
            lines.append(f"<{tool.tag}>{inside}</{tool.tag}>  {tool.about}")
        return (
            "While you reason you may call a tool: write a call as below, and its result follows "
            f"between {RESULT_OPEN} and {RESULT_CLOSE}.\n" + "\n".join(lines)
        )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class JsonForm:
    """A call as a chat template writes it: an object with a name and arguments, in marks.

    opener, closer: the marks, "" where there is none. key: of the arguments. listed: the object
    stands in a list. The rest as of `TagForm`; quoted: a result stands inside a JSON string.
    """

    tools: tuple[Tool, ...]
    opener: str
    closer: str
    key: str
    listed: bool
    before: str
    after: str
    at_stop: bool
    quoted: bool
    shape: str  # a call of SHOWN with the argument VALUE, as the template writes it

    def find(self, text: str, start: int, seen: int) -> Found | None:
        """Return the call that ends first, behind character `seen`, and begins at `start` or later.

        Where a call ends with an end token: the one that ends with the text.
        """
        if self.at_stop:
            return self._at_end(text, start)
        at = text.find(self.closer, max(start, seen - len(self.closer) + 1))
        while at >= 0:
            begin = text.rfind(self.opener, max(start, at - LONGEST - len(self.opener)), at)
            if begin >= 0:
                return Found(begin, at + len(self.closer), text[begin + len(self.opener) : at])
            at = text.find(self.closer, at + 1)
        return None

    def _at_end(self, text: str, start: int) -> Found | None:
        if self.opener:
            begin = text.rfind(self.opener, start)
            inside = text[begin + len(self.opener) :]
        else:  # an object that begins a line
            begin = text.rfind("\n{", start)
            begin = begin + 1 if begin >= 0 else start
            inside = text[begin:]
        inside = inside.strip().removesuffix(self.closer)
        bare = not self.opener and not inside.startswith("{")
        return None if begin < 0 or bare else Found(begin, len(text), inside)

    def read(self, call: Found) -> tuple[Tool, dict]:
        """Return the tool and its arguments; CallFault for whatever else stands there."""
        value = read_json(call.inside.strip())
        if self.listed and isinstance(value, list) and len(value) == 1:
            (value,) = value
        names = {"name", self.key}
        if not isinstance(value, dict) or not names <= set(value) <= names | {"id", "type"}:
            raise CallFault("malformed", f"a call is one object with name and {self.key}")
        known = {tool.name: tool for tool in self.tools}
        if not isinstance(value["name"], str) or value["name"] not in known:
            raise CallFault("unknown_tool", f"there is no such tool; known: {', '.join(known)}")
        given = value[self.key]
        given = read_json(given) if isinstance(given, str) else given
        tool = known[value["name"]]
        return tool, tool.check(given)

    def write(self, tool: Tool, arguments: dict) -> str:
        """Return a call as the model shall write it."""
        told = json.dumps(arguments, ensure_ascii=False)
        shown = re.sub(r"\{[^{}]*" + VALUE + r"[^{}]*\}", lambda _: told, self.shape)
        return shown.replace(SHOWN, tool.name)

    def instruction(self) -> str:
        """Return "": the template itself tells the model of the tools."""
        return ""


def form_of(name: str, tools: Sequence[Tool], tokenizer=None) -> TagForm | JsonForm:
    """Return the form of that name. InputError for json where the template has none for tools."""
    if name not in NAMES:
        raise InputError(f"form of calls {name!r}: unknown; use {' or '.join(NAMES)}")
    if name == "tag":
        return TagForm(tuple(tools))
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise InputError("--tool-form json: the tokenizer has no chat template; use tag")
    pieces = _pieces(_Renderer(tokenizer, template if isinstance(template, str) else ""))
    return JsonForm(tuple(tools), **pieces)


class _Renderer:
    """A tokenizer by its template, so that what it writes is looked at once."""

    def __init__(self, tokenizer, template: str):
        self.tokenizer, self.template = tokenizer, template

    def __hash__(self):
        return hash((id(self.tokenizer), self.template))

    def __eq__(self, other):
        return self.tokenizer is other.tokenizer and self.template == other.template

    def __call__(self, turns: list[dict], prompt: bool) -> str:
        from jinja2 import TemplateError

        about = {"type": "object", "properties": {"v": {"type": "string"}}, "required": ["v"]}
        shown = {"name": SHOWN, "description": "Shown.", "parameters": about}
        tools = [{"type": "function", "function": shown}]
        try:
            return self.tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, KeyError) as error:
            told = " ".join(str(error).split())[:200]
            raise InputError("--tool-form json: the tokenizer's chat template cannot render a "
                             f"call ({told}); use --tool-form tag") from None  # fmt: skip


@lru_cache(maxsize=8)
def _pieces(render: _Renderer) -> dict[str, Any]:
    """Return the fields of a JsonForm: what the template writes around a call and a result."""
    call = {"name": SHOWN, "arguments": {"v": VALUE}}
    asked: list[dict] = [{"role": "user", "content": "?"}]
    made = {"type": "function", "id": "call00001", "function": call}
    called = [*asked, {"role": "assistant", "content": "", "tool_calls": [made]}]
    answer = {"role": "tool", "name": SHOWN, "tool_call_id": "call00001", "content": MARK}
    prompt = render(asked, True)
    whole = render([*called, answer], True)
    turn = whole[_shared(prompt, whole) :]
    span = _json_span(turn)
    if span is None or MARK not in turn[span[1] :]:
        raise InputError("--tool-form json: the tokenizer's chat template writes no call as JSON, "
                         "or no result; use --tool-form tag")  # fmt: skip
    start, end, value = span
    ended = render(called, False)  # what follows the call, up to where the result's turn begins
    tail = ended.rpartition(turn[start:end])[2]
    tail = tail[: _shared(tail, turn[end:])]
    closer = re.split(r"<[|\uff5c]|</s>|<eos>|<end_of_turn>", tail)[0].strip()
    opener = turn[:start].strip()
    cut = end + (turn[end:].index(closer) + len(closer) if closer else 0)
    before, _, after = turn[cut:].partition(MARK)
    for form in formats.FORMATS.values():  # the reasoning goes on, it is not opened again
        after = after.removesuffix(formats.opened_by(after, form))
    listed = isinstance(value, list)
    return {
        "opener": opener,
        "closer": closer,
        "key": next(key for key, found in (value[0] if listed else value).items()
                    if VALUE in json.dumps(found)),
        "listed": listed,
        "before": before,
        "after": after,
        "at_stop": len(closer) < 3,
        "quoted": before.endswith('"') and after.startswith('"'),
        "shape": turn[:cut].lstrip("\n"),
    }  # fmt: skip


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _json_span(text: str) -> tuple[int, int, Any] | None:
    """Return (start, end, value) of the JSON object or list that calls SHOWN, None without one."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            value, end = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        found = value[0] if isinstance(value, list) and value else value
        if isinstance(found, dict) and found.get("name") == SHOWN:
            return match.start(), end, value
    return None
