"""The Modelfile that Ollama makes a model of: the file, the prompt, where an answer ends.

    text = write("model-F16.gguf", tokenizer, manifest, ends=["<|im_end|>"])
    # in its folder: ollama create my-model -f Modelfile

Ollama's templates are Go's. Here a chat template is taken to be a frame around each turn, which
is read off rendered conversations; where a conversation comes out otherwise by those frames the
template is left out, and Ollama looks for one of its own by the template in the GGUF file.
https://docs.ollama.com/modelfile
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlm.answers.formats import FORMATS, get_format, opened_by
from rlm.errors import InputError
from rlm.models.lookup import shots_of
from rlm.models.prompts import worked_turns

SYSTEM, USER, ASSISTANT, LATER = "Sys0451", "Usr0452", "Ast0453", "Usr0454"


@dataclass(frozen=True)
class Frames:
    """What stands before and behind the text of a turn, by role; "system" is missing where the
    template shows none. begin: what a prompt begins with. opening: of the answer that is asked for.
    """

    turns: dict[str, tuple[str, str]]
    begin: str
    opening: str

    def render(self, messages: Sequence[dict]) -> str:
        """Return the prompt that they make of a conversation."""
        shown = [turn for turn in messages if turn["role"] in self.turns]
        framed = [turn["content"].join(self.turns[turn["role"]]) for turn in shown]
        return self.begin + "".join(framed) + self.opening

    def in_go(self, behind: str) -> str:
        """Return the template in Go's language. behind: what is put behind each user's text."""
        cases: list[str] = []
        for role, (before, after) in self.turns.items():
            after = f"\n\n{behind}{after}" if role == "user" and behind else after
            word = "if" if not cases else "else if"
            case = f'{{{{ {word} eq .Role "{role}" }}}}'
            cases.append(f"{case}{_in_go(before)}{{{{ .Content }}}}{_in_go(after)}")
        loop = "".join(["{{ range .Messages }}", *cases, "{{ end }}{{ end }}"])
        return _in_go(self.begin) + loop + _in_go(self.opening)


def write(file: str, tokenizer, manifest: dict, *, ends: list[str], add_bos: bool,
          context_tokens: int, lora: str | None = None) -> str:  # fmt: skip
    """Return the Modelfile of a GGUF file that lies beside it, by name.

    manifest: of the model; its format, role and worked examples. ends: texts of the tokens that end
    an answer. add_bos: whether the runtime writes the token that a prompt begins with. lora: the
    name of an adapter's file.
    """
    form = FORMATS.get(str(manifest.get("format"))) or get_format("think")
    role = str(manifest.get("instruction_role") or "system")
    if not tokenizer.chat_template:
        role = "system"  # it has one place for the instruction
    behind = "" if role == "system" else form.instruction
    lines = [f"FROM ./{file}", *([f"ADAPTER ./{lora}"] if lora else [])]
    found = frames(tokenizer, form, add_bos=add_bos)
    text = found.in_go(behind) if found else ""
    if text and '"""' not in text:
        lines.append(f"TEMPLATE {_quoted(text)}")
    else:
        lines.append("# The chat template is no frame around each turn: Ollama takes its own.")
    if role in ("system", "both"):
        lines.append(f"SYSTEM {_quoted(form.instruction)}")
    for turn in worked_turns(shots_of(manifest), form.name):
        lines.append(f"MESSAGE {turn['role']} {_quoted(turn['content'])}")
    lines += [f"PARAMETER stop {_quoted(end)}" for end in ends]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {context_tokens}"]
    return "\n".join(lines) + "\n"


def frames(tokenizer, form, *, add_bos: bool) -> Frames | None:
    """Return the frames of a tokenizer's chat template; None where it is made otherwise.

    add_bos: the token that a prompt begins with is left out, since the runtime puts it there.
    """
    if not tokenizer.chat_template:
        # As rlm.models.prompts writes a prompt for a tokenizer without a template.
        user, after = ("Question: ", "\nAnswer:\n"), ("", "\n\n")
        return Frames({"system": after, "user": user, "assistant": after}, "", "")
    system = {"role": "system", "content": SYSTEM}
    asked = [{"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}]
    later = [*asked, {"role": "user", "content": LATER}]
    try:
        found = _frames(tokenizer, system, asked, later)
        if found is None:
            return None
        tests = [[system, *later], [system, asked[0]], [system, *later, asked[1], asked[0]]]
        if any(found.render(chat) != _text(tokenizer, chat, opened=True) for chat in tests):
            return None
    except InputError:
        return None
    bos = tokenizer.bos_token if add_bos else ""
    return Frames(found.turns, found.begin.removeprefix(bos), _opening(found.opening, form))


def _frames(tokenizer, system: dict, asked: list[dict], later: list[dict]) -> Frames | None:
    whole = _text(tokenizer, [system, *later], opened=True)
    marks = [mark for mark in (SYSTEM, USER, ASSISTANT, LATER) if mark in whole]
    if marks[-3:] != [USER, ASSISTANT, LATER] or any(whole.count(mark) != 1 for mark in marks):
        return None
    parts, rest = [], whole
    for mark in marks:
        part, _, rest = rest.partition(mark)
        parts.append(part)
    user_end = _text(tokenizer, [system, *later], opened=False).rpartition(LATER)[2]
    answer_end = _text(tokenizer, [system, *asked], opened=False).rpartition(ASSISTANT)[2]
    before_answer, before_later = parts[-2:]
    opening = rest.removeprefix(user_end)
    turns = {
        "user": (before_later.removeprefix(answer_end), user_end),
        "assistant": (before_answer.removeprefix(user_end), answer_end),
    }
    start = turns["user"][0]
    if not parts[-3].endswith(start):
        return None
    between = parts[-3].removesuffix(start)
    if len(marks) == 3:
        return Frames(turns, between, opening)
    # The bos token belongs to the prompt, and all else before the instruction to its turn.
    bos = tokenizer.bos_token or ""
    begin = bos if parts[0].startswith(bos) and whole.count(bos) == 1 else ""
    return Frames({"system": (parts[0].removeprefix(begin), between)} | turns, begin, opening)


def _text(tokenizer, messages: list[dict], *, opened: bool) -> str:
    """Return a conversation in the tokenizer's template; InputError where it refuses it."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
    except TemplateError as error:
        raise InputError(str(error)) from error


def _opening(text: str, form) -> str:
    """Return how an answer is opened: with the format's own reasoning opener, or with none."""
    if not opened_by(text, form):
        for other in FORMATS.values():
            text = text.removesuffix(opened_by(text, other))
    return text


def _in_go(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return f'"""{text}"""'
