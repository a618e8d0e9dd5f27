"""A tool: a Python function with a name, a line on what it does, and typed arguments.

    @dataclass Tool   made by `tool_of(function)`; the built-in ones are in BUILT_IN

Arguments come from a model: they are checked here, and what is wrong with them is a `CallFault`,
which becomes a text for the model. Who runs a tool is rlm/tools/toolbox.py.
"""

import inspect
import json
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlm.errors import InputError
from rlm.tools.calculator import CalculatorError, calculate

KINDS: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
LONGEST = 2000  # characters of all arguments of a call
# Names that would be read as tags of a format or of a result.
TAKEN = ("result", "think", "answer", "reasoning", "solution")

# Why a call failed.
REASONS = {
    "malformed": "the call could not be read",
    "unknown_tool": "there is no tool of that name",
    "bad_arguments": "an argument is missing, one too many, or of another type",
    "error": "the tool raised an exception, or has no result for these arguments",
    "timeout": "the tool took longer than its deadline",
    "died": "the tool's process ended",
    "cut": "the result was longer than the bound and is shown as far as that",
    "too_many": "the completion had used up its calls",
}


class CallFault(Exception):
    """reason: one of REASONS; the text is for the model."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a tool. kind: one of KINDS."""

    name: str
    kind: type
    required: bool = True


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call.

    about: one line on what it does. tag: under which name the tag form calls it. example: an
    argument to show, for a tool of one. function: run where the engine runs; it has to come back
    at once and raise CallFault alone. None: `file` has a function of this name, which a process of
    its own runs.
    """

    name: str
    about: str
    parameters: tuple[Parameter, ...]
    tag: str
    example: str = ""
    function: Callable[..., Any] | None = None
    file: str | None = None

    def schema(self) -> dict:
        """Return the tool as chat templates and OpenAI's API have it."""
        properties = {p.name: {"type": KINDS[p.kind]} for p in self.parameters}
        required = [p.name for p in self.parameters if p.required]
        shape = {"type": "object", "properties": properties, "required": required}
        about = {"name": self.name, "description": self.about, "parameters": shape}
        return {"type": "function", "function": about}

    def check(self, given: Any) -> dict:
        """Return the arguments of a call by name; CallFault for what the tool does not take."""
        if not isinstance(given, dict):
            raise CallFault("bad_arguments", f"{self.name} takes {self.told()} as a JSON object")
        for name in given:
            if name not in [p.name for p in self.parameters]:
                raise CallFault("bad_arguments", f"{self.name} takes {self.told()}, no {name!r}")
        for p in self.parameters:
            if p.required and p.name not in given:
                raise CallFault("bad_arguments", f"{self.name} needs {p.name}")
        return {p.name: _typed(p, given[p.name]) for p in self.parameters if p.name in given}

    def read(self, text: str) -> dict:
        """Return the arguments that the tag form has as text: of one argument it is the value.

        Of several it is a JSON object. CallFault as `check`, or for what is no JSON.
        """
        if len(self.parameters) == 1:
            (parameter,) = self.parameters
            return {parameter.name: _read(parameter, text.strip())}
        return self.check(read_json(text) if text.strip() else {})

    def told(self) -> str:
        """Return the arguments in words: `value (number), unit (string)`."""
        return ", ".join(f"{p.name} ({KINDS[p.kind]})" for p in self.parameters) or "no arguments"


def read_json(text: str) -> Any:
    """Return the value of a JSON text, strictly; CallFault "malformed" for anything else.

    Names that come twice, NaN and infinite numbers are none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    def none(constant: str):
        raise ValueError(f"{constant} is no JSON")

    if len(text) > LONGEST:
        raise CallFault("malformed", f"a call has at most {LONGEST} characters")
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=none)
    except (ValueError, RecursionError) as error:
        said = "too deep" if isinstance(error, RecursionError) else str(error)
        raise CallFault("malformed", f"the call is not JSON: {said}") from None


def _typed(parameter: Parameter, value: Any) -> Any:
    """Return a JSON value as the parameter's type: a whole number also stands for a float."""
    kind = parameter.kind
    if kind is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    finite = type(value) is not float or abs(value) != float("inf")  # 1e999 reads as infinite
    if type(value) is kind and finite:
        return value
    raise CallFault("bad_arguments", f"{parameter.name} has to be a {KINDS[kind]}")


def _read(parameter: Parameter, text: str) -> Any:
    """Return a text as the parameter's type."""
    kind = parameter.kind
    if len(text) > LONGEST:
        raise CallFault("malformed", f"a call has at most {LONGEST} characters")
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and re.fullmatch(r"[-+]?[0-9]{1,400}", text):
        return int(text)
    if kind is float and NUMBER.fullmatch(text):
        return _typed(parameter, float(text))
    raise CallFault("bad_arguments", f"{parameter.name} has to be a {KINDS[kind]}")


def tool_of(function: Callable[..., Any], file: str | None = None) -> Tool:
    """Return a function as a tool, run by a process of its own from the file that it stands in.

    InputError unless it has a docstring, whose first line tells the model what it does, and typed
    arguments of KINDS that can be given by name.
    """
    name = function.__name__
    if not NAME.fullmatch(name) or name.lower() in TAKEN:
        raise InputError(f"tool {name}: use a name of letters, digits and _, none of "
                         f"{', '.join(TAKEN)}")  # fmt: skip
    about = (inspect.getdoc(function) or "").partition("\n")[0].strip()
    if not about:
        raise InputError(f"tool {name}: has no docstring; write in one line what it does")
    file = file or inspect.getsourcefile(function)
    if not file or "<locals>" in function.__qualname__ or name == "<lambda>":
        raise InputError(f"tool {name}: has to stand at the top of a file, since a process of its "
                         "own runs it")  # fmt: skip
    return Tool(name, about, _parameters(name, function), name, file=str(file))


def _parameters(name: str, function: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(function)
    found = []
    for p in inspect.signature(function).parameters.values():
        if hints.get(p.name) not in KINDS or p.kind not in (
            p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY
        ):  # fmt: skip
            known = ", ".join(kind.__name__ for kind in KINDS)
            raise InputError(f"tool {name}: argument {p.name} needs a type, one of {known}, as in "
                             f"{name}({p.name}: str)")  # fmt: skip
        found.append(Parameter(p.name, hints[p.name], p.default is p.empty))
    return tuple(found)


def _calculator(expression: str) -> str:
    try:
        return calculate(expression)
    except CalculatorError as error:
        raise CallFault("error", str(error)) from None


CALCULATOR = Tool(
    "calculator",
    "Calculates an arithmetic expression exactly, with + - * / ^ and parentheses.",
    (Parameter("expression", str),),
    tag="calc",
    example="12 * 7",
    function=_calculator,
)
BUILT_IN: dict[str, Tool] = {tool.name: tool for tool in (CALCULATOR,)}
