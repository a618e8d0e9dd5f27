"""A question -> the model's prompt, a demonstration -> its tokens: through the chat template.

Knows tokenizers and formats; no task and no model. Prompt and assistant turn are tokenised
apart, so a prompt has the same ids in SFT as when the model answers it.
"""

from collections.abc import Sequence
from typing import Any

from rlm.answers import formats
from rlm.answers.kinds import judge
from rlm.data.solutions import bare
from rlm.errors import InputError
from rlm.models.templates import as_parts, rendered, thinking
from rlm.records import Example, Prompt

FALLBACK = "{instruction}\n\n{turns}"  # for a tokenizer without a template
MARK = "0451"  # stands for an assistant's turn, to see what the template puts after it


def make_prompt(
    question: str,
    tokenizer,
    format_name: str,
    shots: Sequence[Example] = (),
    role: str | None = None,
    kind: str = "number",
    tools: Any = None,
) -> Prompt:
    """Return the prompt: the format's instruction and the question, a user turn.

    shots: worked examples, which come before it as turns of their own. role: where the
    instruction stands, of `rlm.answers.formats.ROLES`; None: where the format has it. kind: of the
    answer that is asked for, of `rlm.answers.kinds.KINDS`. tools: that may be called, a
    `rlm.tools.toolbox.Toolbox`.
    """
    asked = [{"role": "user", "content": question}]
    return chat_prompt(asked, tokenizer, format_name, shots, role, kind, tools)


def chat_prompt(
    messages: Sequence[dict],
    tokenizer,
    format_name: str,
    shots: Sequence[Example] = (),
    role: str | None = None,
    kind: str = "number",
    tools: Any = None,
    *,
    beside: bool = False,
    options: dict | None = None,
) -> Prompt:
    """Return the prompt of a conversation, {"role", "content"} each, the last one of the user.

    The format's instruction stands where `role` says. System turns take its place, or stand
    `beside` it in a system turn. How both get through the template is known to
    `rlm.models.templates.chat_text`; options: what else the template is given. A tokenizer without
    a template gets FALLBACK. A reasoning opener that the template writes itself stays in `ids` and
    is the prefill, if it is this format's; another format's is cut off, or the turn would begin
    with two openers. InputError for a template that does not show the shots as they are written.
    """
    fmt = formats.get_format(format_name)
    own = "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system")
    instruction, role = fmt.instruction_for(kind), role or fmt.instruction_role
    if own and not beside:
        instruction, own, role = own, "", "system"
    more = tools.instruction() if tools else ""
    instruction = f"{instruction}\n\n{more}" if more else instruction
    worked = worked_turns(shots, format_name)
    turns = [*worked, *(turn for turn in messages if turn["role"] != "system")]
    if not tokenizer.chat_template:
        told = "\n\n".join(filter(None, (instruction, own)))
        text = FALLBACK.format(instruction=told, turns="".join(map(_plain, turns)))
        return Prompt(_with_beginning(tokenizer, text))
    shown = {"tools": tools.schemas()} if tools and tools.schemas() else {}
    text = thinking(tokenizer, instruction, turns, role, own=own, options=(options or {}) | shown)
    if not all(turn["content"] in text for turn in worked):
        raise InputError(
            f"the tokenizer's chat template does not show earlier turns as they were written (some "
            f"leave the reasoning of format {format_name} out), so there are no worked examples "
            "with it; use --shots 0, or another --format"
        )
    prefill = formats.opened_by(text, fmt)
    if not prefill:
        for other in formats.FORMATS.values():
            text = text.removesuffix(formats.opened_by(text, other))
    return Prompt(token_ids(tokenizer, text), prefill)


def raw_prompt(tokenizer, text: str | Sequence[int]) -> Prompt:
    """Return the prompt of a text, with the tokenizer's own beginning, or of token ids as they are.

    InputError if it has no token, or ids that the tokenizer does not know.
    """
    ids = _with_beginning(tokenizer, text) if isinstance(text, str) else list(text)
    if not ids:
        raise InputError("it has no token; give it some text")
    if not all(0 <= id < len(tokenizer) for id in ids):
        raise InputError(f"ids of tokens are 0 to {len(tokenizer) - 1}; use this model's tokenizer")
    return Prompt(ids)


def worked_turns(shots: Sequence[Example], format_name: str) -> list[dict]:
    """Return the turns of worked examples: a user's question, an assistant's turn in the format."""
    return [
        {"role": role, "content": text}
        for e in shots
        for role, text in (("user", e.question), ("assistant", written_turn(e, format_name)))
    ]


def _plain(turn: dict) -> str:
    """Return a turn as FALLBACK has it."""
    text = turn["content"]
    return f"Question: {text}\nAnswer:\n" if turn["role"] == "user" else f"{text}\n\n"


def sft_tokens(
    example: Example,
    tokenizer,
    format_name: str,
    *,
    generation_config=None,
    shots: Sequence[Example] = (),
    role: str | None = None,
    tools: Any = None,
    calls: bool = True,
) -> dict:
    """Return the tokens of a demonstration: prompt_ids, completion_ids, end_ids.

    completion_ids: the assistant's turn without what the prompt has already opened, and the end
        token, which is to be trained like every other one.
    end_ids: all ids that end a turn (`end_ids`). InputError if the example has no solution, or
    if its turn would not be read as the gold answer (a solution with tags of the format in it).
    tools: of the prompt; with `calls` the solution's calculator notes become calls of theirs.
        `learned` then says of each of completion_ids whether it is to be trained: what a tool
        writes is not.
    """
    fmt, turn = formats.get_format(format_name), written_turn(example, format_name)
    asked: dict = {"tools": tools} if tools else {}
    prompt = make_prompt(
        example.question, tokenizer, format_name, shots, role, **example.asks, **asked
    )
    ends = end_ids(tokenizer, generation_config)
    found = {"prompt_ids": prompt.ids, "end_ids": ends}
    if tools and calls:
        turn = formats.render(fmt, (example.solution or "").strip(), example.gold)
        pieces = tools.bound(tokenizer).demonstration(_after(prompt.prefill, turn, fmt), ends)
    else:
        pieces = [(token_ids(tokenizer, _after(prompt.prefill, turn, fmt)), True)]
    pieces = [*pieces, ([ends[0]], True)]
    completion = [id for ids, _ in pieces for id in ids]
    assert completion[-1] in ends and completion[-1] is not None
    found["completion_ids"] = completion
    if tools:
        found["learned"] = [own for ids, own in pieces for _ in ids]
    return found


def written_turn(example: Example, format_name: str) -> str:
    """Return the assistant's turn of a demonstration: its solution and its answer in the format.

    Without calculator notes. InputError if the example has no solution, or if the turn would not be
    read as the gold.
    """
    if example.solution is None:
        raise InputError(f"{example.id}: has no solution; SFT needs one, GRPO does not")
    fmt = formats.get_format(format_name)
    turn = formats.render(fmt, bare(example.solution).strip(), example.gold)
    verdict = judge(example, turn, format_name)
    if not (verdict.right and formats.parse(turn, fmt).strict):
        raise InputError(
            f"{example.id}: written in format {format_name}, its answer {example.gold!r} cannot "
            "be read back; take tags and answer marks out of its solution"
        )
    return turn


def is_demonstration(example: Example, format_name: str) -> bool:
    """Return whether the example can be shown in the format: `written_turn` has a turn for it."""
    try:
        written_turn(example, format_name)
    except InputError:
        return False
    return True


def _after(prefill: str, turn: str, fmt: formats.Format) -> str:
    """Return the turn without the opener that the prompt ends with, and its newlines."""
    if not prefill:
        return turn
    rest = turn.removeprefix(fmt.reasoning_open)
    return rest if prefill == fmt.reasoning_open else rest.lstrip("\n")


def end_ids(tokenizer, generation_config=None) -> list[int]:
    """Return the ids that end an assistant's turn; the first is the one to train.

    That is what the chat template itself puts after a turn, if the model also stops there when
    it generates (the tokenizer's eos, or in the generation config); else the eos token. With a
    base model like Qwen2.5-0.5B these differ: its template writes <|im_end|>, its eos is
    <|endoftext|>, and a model trained on the first alone would never stop.
    """
    stops = getattr(generation_config, "eos_token_id", None)
    stops = stops if isinstance(stops, list | tuple) else [stops]
    known = [i for i in dict.fromkeys([tokenizer.eos_token_id, *stops]) if i is not None]
    if not known:
        raise InputError("the tokenizer has no eos token: a model could never end its turn")
    first = next((i for i in _after_turn(tokenizer) if i in known), known[0])
    return [first, *(i for i in known if i != first)]


def _after_turn(tokenizer) -> list[int]:
    """Return the token ids that the chat template puts after an assistant's turn."""
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    for shaped in (turns, as_parts(turns)):
        _, mark, behind = rendered(tokenizer, shaped).rpartition(MARK)
        if mark:
            return token_ids(tokenizer, behind)
    return []


def token_ids(tokenizer, text: str) -> list[int]:
    """Return the ids of a text whose special tokens are written out, none added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_beginning(tokenizer, text: str) -> list[int]:
    """Return the ids of a plain text with the tokenizer's own beginning, but no end token."""
    ids = list(tokenizer(text)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def check_room(prompt: Prompt, max_tokens: int, context_tokens: int) -> None:
    """InputError with the numbers if prompt and completion do not fit the model's context."""
    if len(prompt.ids) + max_tokens > context_tokens:
        room = context_tokens - len(prompt.ids)
        advice = f"use --max-tokens {room} or less" if room > 0 else "shorten the question"
        raise InputError(
            f"a prompt of {len(prompt.ids)} tokens and --max-tokens {max_tokens} are more than "
            f"the model's context of {context_tokens} tokens; {advice}"
        )
