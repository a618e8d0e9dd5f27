"""Turns -> text through a tokenizer's chat template, whatever that template can and cannot do.

What comes out is looked at: the instruction and every user's turn stand in it, or the turns are
given another way. Knows no tokens and no formats' meaning, but the tags around their reasoning.
"""

import datetime
import json
import re

from rlm.answers.formats import FORMATS
from rlm.errors import InputError

# The template of the tiny bases, ChatML. A system turn is left out on purpose: they were never
# taught to read instructions, and without them their prompts are a third as long.
UNINSTRUCTED = (
    "{% for m in messages if m['role'] != 'system' %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPTIONS, DATE = "rlm_template_options", "rlm_template_date"  # of a tokenizer, see `set_template`
THINKING = ("enable_thinking", "thinking")  # what templates call the switch
# A reasoning that is closed before it began, at the end of a prompt.
_SHUT = re.compile(
    "(?:"
    + "|".join(
        f"{re.escape(fmt.reasoning_open)}\\s*{re.escape(fmt.reasoning_close)}"
        for fmt in FORMATS.values()
        if fmt.reasoning_open
    )
    + r")\s*\Z"
)
# What is given to a template by its function, and so is no option.
RESERVED = (
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs",
    "strftime_now",
)  # fmt: skip


def set_template(tokenizer, *, options: dict | None = None, date: str | None = None) -> None:
    """Give a tokenizer what its template is rendered with from now on.

    options: name -> value, which the template has to know by name (InputError). date: YYYY-MM-DD
    that it writes for today; None keeps the day on which it is first asked for.
    """
    check_options(tokenizer, options or {})
    setattr(tokenizer, OPTIONS, dict(options or {}))
    if date:
        setattr(tokenizer, DATE, datetime.date.fromisoformat(date))


def check_options(tokenizer, options: dict) -> None:
    """InputError for an option that the template does not know, or that is not for it to take."""
    template = tokenizer.chat_template
    # Several by name: the one that is used is looked up by the tokenizer.
    source = "".join(template.values()) if isinstance(template, dict) else template or ""
    for name in options:
        if name in RESERVED or not re.search(rf"\b{re.escape(name)}\b", source):
            known = [each for each in THINKING if re.search(rf"\b{each}\b", source)]
            hint = f"; it knows {known[0]}" if known else ""
            raise InputError(
                f"the chat template knows no option {name}{hint}; use a name that stands in it, or "
                "none"
            )


def rendered(tokenizer, messages: list[dict], options: dict | None = None, **more) -> str:
    """Return what the template makes of the turns, "" if it refuses them."""
    try:
        return _render(tokenizer, messages, options, **more)
    except _refusals():
        return ""


def _render(tokenizer, messages: list[dict], options: dict | None, **more) -> str:
    if not hasattr(tokenizer, DATE):  # a prompt must not change at midnight
        setattr(tokenizer, DATE, datetime.date.today())
    day = datetime.datetime.combine(getattr(tokenizer, DATE), datetime.time())
    given = getattr(tokenizer, OPTIONS, {}) | (options or {})
    return tokenizer.apply_chat_template(
        messages, tokenize=False, strftime_now=day.strftime, **given, **more
    )


def _refusals() -> tuple:
    """Return what a template raises that cannot render what it is given."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, LookupError, AttributeError


def placed(instruction: str, turns: list[dict], role: str, own: str = "") -> list[dict]:
    """Return the turns with the instruction where `role` says.

    role: "system", a system turn before them; "user", behind the text of each user turn; "both".
    own: a text that stands in the system turn, behind the instruction if that is there, too.
    """
    behind = [
        turn | {"content": f"{turn['content']}\n\n{instruction}"}
        if turn["role"] == "user" and role != "system"
        else turn
        for turn in turns
    ]
    told = _system_text(instruction, role, own)
    return [{"role": "system", "content": told}, *behind] if told else behind


def _system_text(instruction: str, role: str, own: str) -> str:
    return "\n\n".join(filter(None, ("" if role == "user" else instruction, own)))


def merged(instruction: str, turns: list[dict], role: str, own: str = "") -> list[dict]:
    """Return the turns as `placed`, but without a system turn: it is in the first user's turn."""
    told = own if role == "both" else _system_text(instruction, role, own)
    plain = placed(instruction, turns, "user") if role != "system" else list(turns)
    first = next((i for i, turn in enumerate(plain) if turn["role"] == "user"), None)
    if told and first is not None:
        content = f"{told}\n\n{plain[first]['content']}"
        plain[first] = plain[first] | {"content": content}
    return plain


def joined(turns: list[dict]) -> list[dict]:
    """Return the turns with neighbours of one role as one turn."""
    found: list[dict] = []
    for turn in turns:
        if found and found[-1]["role"] == turn["role"]:
            found[-1] = turn | {"content": f"{found[-1]['content']}\n\n{turn['content']}"}
        else:
            found.append(turn)
    return found


def as_parts(messages: list[dict]) -> list[dict]:
    """Return the messages with contents as lists of parts, which some templates loop over."""
    return [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]


def chat_text(tokenizer, instruction: str, turns: list[dict], role: str = "system", **more) -> str:
    """Return the text of the prompt, up to where the assistant's turn begins: see `chat_turns`."""
    return chat_turns(tokenizer, instruction, turns, role, **more)[1]


def chat_turns(
    tokenizer,
    instruction: str,
    turns: list[dict],
    role: str = "system",
    *,
    own: str = "",
    options: dict | None = None,
) -> tuple[list[dict], str]:
    """Return (the turns that the template is given, the prompt that it makes of them).

    The first of these that the template renders with the instruction and every user's turn in it:
    the turns as they are `placed`, contents as texts or as lists of parts; without a system turn
    (`merged`); the same with neighbours of one role joined. InputError if there is none.
    """
    refusal = ""
    for each in (turns, joined(turns)):
        for arrange in (placed, merged):
            messages = arrange(instruction, each, role, own)
            for shaped in (messages, as_parts(messages)):
                try:
                    text = _render(tokenizer, shaped, options, add_generation_prompt=True)
                except _refusals() as error:
                    refusal = refusal or " ".join(str(error).split())
                    continue
                if _shows(tokenizer, text, (instruction, own), each):
                    return shaped, text
    if len(turns) > 1 and _renders_a_question(tokenizer, turns, options):
        raise InputError(
            f"this model's chat template cannot render the conversation ({refusal or 'turns are'}"
            f"{'' if refusal else ' missing in what it renders'}); begin with a user's turn, "
            "let the assistant's and the user's follow each other, and end with the user's"
        )
    what = f"({refusal})" if refusal else "(the question is not in what it renders)"
    raise InputError(
        f"the tokenizer's chat template cannot render a question {what}; "
        "use a model with a template for chats, or delete chat_template from its tokenizer"
    )


def _renders_a_question(tokenizer, turns: list[dict], options: dict | None) -> bool:
    """Return whether the template renders a user's turn that stands alone."""
    question = [{"role": "user", "content": turns[-1]["content"]}]
    found = [rendered(tokenizer, m, options) for m in (question, as_parts(question))]
    return any(_has(text, turns[-1]["content"]) for text in found)


def _shows(tokenizer, text: str, system: tuple[str, ...], turns: list[dict]) -> bool:
    """Return whether a text has what the model must read; UNINSTRUCTED leaves `system` out."""
    needed = [turn["content"] for turn in turns if turn["role"] == "user"]
    if tokenizer.chat_template != UNINSTRUCTED:
        needed += system
    return all(_has(text, part) for part in needed)


def _has(text: str, part: str) -> bool:
    """Return whether a part stands in a text, whatever was made of its white space."""
    return part.strip() in text or "".join(part.split()) in "".join(text.split())


def thinking(
    tokenizer, instruction: str, turns: list[dict], role: str, *, own: str, options: dict | None
) -> str:
    """Return `chat_text` with the thinking on: no reasoning is closed before it began.

    Where the template ends with such a block, thinking is turned on; if it stays, it is taken off.
    Options that say whether to think are left to who gives them.
    """
    given = options or {}
    text = chat_text(tokenizer, instruction, turns, role, own=own, options=given)
    known = getattr(tokenizer, OPTIONS, {}) | given
    if not _shut(text, turns) or any(name in known for name in THINKING):
        return text
    told = given | dict.fromkeys(THINKING, True)
    text = chat_text(tokenizer, instruction, turns, role, own=own, options=told)
    shut = _shut(text, turns)
    return text[: shut.start()] if shut else text


def _shut(text: str, turns: list[dict]) -> re.Match | None:
    """Return where the template itself closes a reasoning at the end of a prompt."""
    found = _SHUT.search(text)
    question = turns[-1]["content"].strip()
    # A question may end like that, too.
    return found if found and text.rfind(question) + len(question) <= found.start() else None


def read_options(words: list[str]) -> dict:
    """Return the options that NAME=VALUE words give; a value is JSON, or else a text.

    >>> read_options(["enable_thinking=false", "builtin_tools=[]", "style=short"])
    {'enable_thinking': False, 'builtin_tools': [], 'style': 'short'}
    """
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(f"{word!r} is no option; write NAME=VALUE, as in enable_thinking=true")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
