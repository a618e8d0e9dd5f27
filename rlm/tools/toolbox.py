"""What a request may call, how it writes a call, and what becomes of one.

    toolbox = Toolbox([CALCULATOR])
    engine.generate(prompts, 8, Sampling(256, tools=toolbox), seed=0)
    rollout.calls          # a `rlm.records.ToolCall` each

The engine asks a toolbox that is bound to its tokenizer (`Toolbox.bound`): is there a call in the
text; begin it; the tokens of its result. Nothing that a model writes or a tool does raises here:
whatever goes wrong is a text for the model, and a reason of `rlm.tools.tool.REASONS`.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property

from rlm.cli.python_file import public_functions
from rlm.data.solutions import note_parts
from rlm.errors import InputError
from rlm.models.text_stream import BROKEN, decode
from rlm.tools.calculator import CalculatorError, value_of
from rlm.tools.forms import RESULT_CLOSE, RESULT_OPEN, Found, JsonForm, TagForm, form_of
from rlm.tools.tool import BUILT_IN, CALCULATOR, TAKEN, CallFault, Tool, tool_of
from rlm.tools.workers import Job, Outcome, ToolWorkers

CUT = " [cut]"  # behind a result that is longer than the bound
CHARACTERS = 16  # of a result that are looked at, for each token that it may have
# What would be read as a mark of a format, of a call or of a chat template: it gets a blank.
MARKS = re.compile(r"(<)(?=[/|\uff5cA-Za-z])|(\[)(?=/?[A-Z_]{3,}\])")


class Toolbox:
    """Tools, and the bounds of their calls.

    form: "tag" or "json" (rlm/tools/forms.py). max_calls: of a completion; one more is answered
    by an error, those behind it are plain text. result_tokens: of a result, what stands around it
    not counted. seconds: deadline of a call. InputError for two tools of one name.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        form: str = "tag",
        max_calls: int = 8,
        result_tokens: int = 64,
        seconds: float = 5.0,
    ):
        self.tools, self.form = tuple(tools), form
        self.max_calls, self.result_tokens, self.seconds = max_calls, result_tokens, seconds
        for name in {name for tool in tools for name in (tool.name, tool.tag)}:
            if sum(name in (tool.name, tool.tag) for tool in tools) > 1:
                raise InputError(f"tool {name}: two tools of this name; take one of them out")
        self._bound: dict[int, Bound] = {}

    def bound(self, tokenizer) -> "Bound":
        """Return what the engine asks, made once for each tokenizer."""
        if id(tokenizer) not in self._bound:
            self._bound[id(tokenizer)] = Bound(self, tokenizer)
        return self._bound[id(tokenizer)]

    def instruction(self) -> str:
        """Return what a format's instruction says of the tools, "" where the template does it."""
        return TagForm(self.tools).instruction() if self.form == "tag" else ""

    def schemas(self) -> list[dict] | None:
        """Return the tools as a chat template takes them, None where the instruction has them."""
        return [tool.schema() for tool in self.tools] if self.form == "json" else None

    @cached_property
    def workers(self) -> dict[str, ToolWorkers]:
        """The processes of each file that has tools."""
        files = {tool.file for tool in self.tools if tool.file and not tool.function}
        return {file: ToolWorkers(file, seconds=self.seconds) for file in files}

    def begin(self, tool: Tool, arguments: dict) -> Job:
        """Return a call that has begun; that of a function here has its outcome already."""
        if tool.function is None:
            assert tool.file
            return self.workers[tool.file].submit(tool.name, arguments)
        try:
            return Job(outcome=Outcome(str(tool.function(**arguments))))
        except CallFault as fault:
            return Job(outcome=failed(fault))

    def poll(self) -> None:
        """Take what calls have come to since."""
        for workers in self.workers.values():
            workers.poll()

    def wait(self, seconds: float) -> None:
        """The same, once something has come or so many seconds are over."""
        for workers in self.workers.values():
            workers.wait(seconds / len(self.workers))

    def close(self) -> None:
        """End the processes of the tools."""
        for workers in self.workers.values():
            workers.close()


def failed(fault: CallFault) -> Outcome:
    return Outcome(str(fault), fault.reason)


class Bound:
    """A toolbox with the tokens of a tokenizer. most_tokens: that one result may have in all."""

    def __init__(self, toolbox: Toolbox, tokenizer):
        self.toolbox, self._tokenizer = toolbox, tokenizer
        self.form: TagForm | JsonForm = form_of(toolbox.form, toolbox.tools, tokenizer)
        self._special = set(tokenizer.all_special_ids)
        self.before, self.after = self._ids(self.form.before), self._ids(self.form.after)
        self.most_tokens = len(self.before) + toolbox.result_tokens + len(self.after)
        self._cut = self._ids(CUT)

    @property
    def room(self) -> int:
        """The tokens that all results of a completion may have."""
        return (self.toolbox.max_calls + 1) * self.most_tokens

    def find(self, text: str, start: int, seen: int, calls: int, *, ended=False) -> Found | None:
        """Return the call that has just ended in a text, None if there is none.

        start: where the last one ended. seen: characters that were looked at before. calls: that
        there were. ended: whether the model has ended its turn, which ends calls of some forms.
        """
        if calls > self.toolbox.max_calls or ended != self.form.at_stop:
            return None
        return self.form.find(text, start, seen)

    def begin(self, call: Found, calls: int) -> tuple[str, str, Job]:
        """Return (the tool's name, its arguments as JSON, the job) of a call.

        Both are as far as they could be read. calls: that there were before it.
        """
        try:
            tool, arguments = self.form.read(call)
        except CallFault as fault:
            return call.name, call.inside, Job(outcome=failed(fault))
        written = json.dumps(arguments, ensure_ascii=False)
        if calls >= self.toolbox.max_calls:
            told = f"no calls are left, {self.toolbox.max_calls} are allowed"
            return tool.name, written, Job(outcome=Outcome(told, "too_many"))
        return tool.name, written, self.toolbox.begin(tool, arguments)

    def result(self, outcome: Outcome, *, ended=(), stops=()) -> tuple[list[int], str, Outcome]:
        """Return (ids, text as it is shown, outcome) of what is put behind a call.

        The outcome is that with its text as the model sees it. stops: ids that end a turn; where
        the model has sampled one (`ended`) it is not put in again.
        """
        told = outcome.text if outcome.failure is None else f"error: {outcome.text}"
        body, cut = self._body(told)
        before = list(self.before)
        if ended and before and before[0] in stops:
            del before[0]
        shown = self._text(body)
        failure = outcome.failure or ("cut" if cut else None)
        ids = [*before, *body, *self.after]
        return ids, f"{RESULT_OPEN}{shown}{RESULT_CLOSE}", Outcome(shown, failure)

    def demonstration(self, turn: str, ends: Sequence[int]) -> list[tuple[list[int], bool]]:
        """Return a turn in pieces of ids, and whether the model is to learn each of them.

        A calculator note (`rlm.data.solutions.note_parts`) becomes a call, if the calculator has
        the note's result; the result that stands behind it is left out, since the call has one.
        What a tool writes is not learned. ends: ids that end a turn.
        """
        pieces: list[tuple[list[int], bool]] = []
        text, calls, result = "", 0, ""
        for before, expression, stated in note_parts(turn):
            text += before.removeprefix(result) if result else before
            job = self._shown(expression, stated) if calls < self.toolbox.max_calls else None
            result = ""
            if job is None or job.outcome is None:
                continue
            margin = "\n" if self.form.at_stop and text.strip() else ""
            text += margin + self.form.write(CALCULATOR, {"expression": expression})
            ids, _, outcome = self.result(job.outcome)
            ended = ids[:1] if self.form.at_stop and ids[0] in ends else []
            pieces += [(self._ids(text) + ended, True), (ids[len(ended) :], False)]
            text, calls, result = "", calls + 1, outcome.text
        return [*pieces, (self._ids(text), True)]

    def _shown(self, expression: str, stated: str) -> Job | None:
        """Return the call of an expression, None unless it comes to what was stated."""
        if not expression or CALCULATOR not in self.toolbox.tools:
            return None
        try:
            if value_of(expression) != value_of(stated):
                return None
        except CalculatorError:
            return None
        return self.toolbox.begin(CALCULATOR, {"expression": expression})

    def _body(self, text: str) -> tuple[list[int], bool]:
        """Return the ids of a result without marks in it, within the bound; whether it was cut."""
        most = self.toolbox.result_tokens
        short = text[: CHARACTERS * most]
        short = MARKS.sub(lambda found: f"{found[0]} ", short.replace("\0", " "))
        short = json.dumps(short, ensure_ascii=False)[1:-1] if self.form.quoted else short
        ids = [id for id in self._ids(short) if id not in self._special]
        if len(ids) <= most and len(text) <= CHARACTERS * most:
            return ids, False
        ids = ids[: max(0, most - len(self._cut))]
        while ids and self._text(ids).endswith(BROKEN):  # half a character
            ids.pop()
        return [*ids, *self._cut][:most], True

    def _text(self, ids: list[int]) -> str:
        return decode(self._tokenizer, ids)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def built_in(names: Sequence[str]) -> list[Tool]:
    """Return the built-in tools of these names; InputError that lists the known ones."""
    for name in names:
        if name not in BUILT_IN:
            raise InputError(f"tool {name}: unknown; use {', '.join(BUILT_IN)}, or a file of your "
                             "own by --tool-file")  # fmt: skip
    return [BUILT_IN[name] for name in dict.fromkeys(names)]


def load_tools(path: str) -> list[Tool]:
    """Return the tools of a Python file: its public functions.

    The file is run, with all that it does. InputError if it fails, has none, or has a public
    function that is no tool.
    """
    functions = public_functions("--tool-file", path, "tool")
    if not functions:
        raise InputError(f"--tool-file {path}: no public function in it; write one with a "
                         "docstring and typed arguments")  # fmt: skip
    taken = [name for name in functions if name in BUILT_IN or name.lower() in TAKEN]
    if taken:
        raise InputError(f"--tool-file {path}: {taken[0]} is a name of its own here; use another")
    try:
        return [tool_of(function, file=path) for function in functions.values()]
    except InputError as error:
        raise InputError(f"--tool-file {path}: {error}; a name that begins with _ is no "
                         "tool") from None  # fmt: skip
