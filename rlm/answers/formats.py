"""The output formats as data: what the model is told, how a turn is written, how it is read back.

All tag names live here and nowhere else. It knows nothing of what an answer is worth
(`rlm.answers.reading`) or of rewards (`rewards.py`).

    >>> turn = render(get_format("solution"), "6 * 7 is 42.", "42")
    >>> print(turn)
    <start_working_out>
    6 * 7 is 42.
    <end_working_out>
    <SOLUTION>42</SOLUTION>
    >>> parse(turn, get_format("solution")).answer
    '42'
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """One output format.

    instruction: the system prompt that asks for it, where the answer is a number.
    reasoning_open, reasoning_close: the tags around the visible reasoning.
    answer_open, answer_close: the tags around the answer; "" where the answer is simply
        what follows the reasoning.
    answer_margin: what stands between the answer and its tags when a turn is written.
    instruction_role: where the instruction stands, one of ROLES: in a system turn, behind each
        question of the user, or in both places.
    """

    name: str
    instruction: str
    reasoning_open: str
    reasoning_close: str
    answer_open: str
    answer_close: str
    answer_margin: str = ""
    instruction_role: str = "system"

    @property
    def tags(self) -> tuple[str, ...]:
        """The format's tags in the order in which they must stand; 4, 2 or none."""
        tags = (self.reasoning_open, self.reasoning_close, self.answer_open, self.answer_close)
        return tuple(tag for tag in tags if tag)

    def instruction_for(self, kind: str) -> str:
        """The system prompt where the answer is of another kind."""
        return self.instruction.replace(CALLED["number"], CALLED[kind])


# What an instruction calls the answer of a kind (rlm/answers/kinds.py), instead of a number.
CALLED = {
    "number": "a single number",
    "math": "a single mathematical expression",
    "choice": "the letter of one choice",
    "text": "a word or a few words",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """An assistant turn taken apart.

    reasoning, answer: without tags and surrounding white space; None if not there.
    strict: the turn has exactly the written shape; only newlines may differ around tags.
    soft: every tag stands there once, and they stand in order.
    """

    reasoning: str | None
    answer: str | None
    strict: bool
    soft: bool


THINK = Format(
    name="think",
    instruction=(
        "First reason step by step between <think> and </think>. Then write the final answer: "
        "a single number on one line and nothing else.\n"
        "Use exactly this shape:\n<think>\nyour reasoning\n</think>\nyour answer"
    ),
    reasoning_open="<think>",
    reasoning_close="</think>",
    answer_open="",
    answer_close="",
)
XML = Format(
    name="xml",
    instruction=(
        "First reason step by step between <reasoning> and </reasoning>. Then write the final "
        "answer between <answer> and </answer>: a single number on one line and nothing else.\n"
        "Use exactly this shape:\n<reasoning>\nyour reasoning\n</reasoning>\n"
        "<answer>\nyour answer\n</answer>"
    ),
    reasoning_open="<reasoning>",
    reasoning_close="</reasoning>",
    answer_open="<answer>",
    answer_close="</answer>",
    answer_margin="\n",
)
SOLUTION = Format(
    name="solution",
    instruction=(
        "First reason step by step between <start_working_out> and <end_working_out>. "
        "Then write the final answer between <SOLUTION> and </SOLUTION>: "
        "a single number on one line and nothing else.\n"
        "Use exactly this shape:\n<start_working_out>\nyour reasoning\n<end_working_out>\n"
        "<SOLUTION>your answer</SOLUTION>"
    ),
    reasoning_open="<start_working_out>",
    reasoning_close="<end_working_out>",
    answer_open="<SOLUTION>",
    answer_close="</SOLUTION>",
)
PLAIN = Format(  # for reading models that were taught no format; nothing is trained on it
    name="plain",
    instruction=(
        "Solve the problem step by step. "
        "End with one line that holds only #### and the final answer as a single number."
    ),
    reasoning_open="",
    reasoning_close="",
    answer_open="",
    answer_close="",
)

FORMATS: dict[str, Format] = {form.name: form for form in (THINK, XML, SOLUTION, PLAIN)}
TRAINABLE = ("think", "xml", "solution")
ROLES = ("system", "user", "both")


def get_format(name: str) -> Format:
    """The format of that name. ValueError that lists the known names."""
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"unknown format {name!r}: known are {known}; choose one of them")
    return FORMATS[name]


def render(fmt: Format, reasoning: str, answer: str) -> str:
    """The whole assistant turn as the model shall write it, without an end token.

    `parse` gives the same parts back if they are stripped, not blank and hold no tag.
    ValueError for the plain format, which has no shape to write.
    """
    if not fmt.tags:
        trainable = ", ".join(TRAINABLE)
        raise ValueError(f"format {fmt.name!r} is for reading only: write one of {trainable}")
    margin = fmt.answer_margin
    return (
        f"{fmt.reasoning_open}\n{reasoning}\n{fmt.reasoning_close}\n"
        f"{fmt.answer_open}{margin}{answer}{margin}{fmt.answer_close}"
    )


def parse(text: str, fmt: Format) -> Parsed:
    """The parts of an assistant turn, whatever its shape; never raises on a string.

    A turn that was cut off in its reasoning has that reasoning and no answer. Where the
    template opened the reasoning unseen, what stands before the closing tag is the reasoning.
    In the plain format the whole text is the answer. Linear time.
    """
    if not fmt.tags:
        whole = text.strip()
        return Parsed(None, whole or None, bool(whole), bool(whole))
    before, closer, rest = text.partition(fmt.reasoning_close)
    outside, opener, inside = before.partition(fmt.reasoning_open)
    if not opener and closer:
        outside, inside = "", before
    elif not opener and fmt.answer_open:  # no reasoning at all: perhaps still an answer
        outside, closer, rest = "", "none needed", text
    body, after, closed = rest, "", bool(closer)
    if fmt.answer_open and closed:
        between, has_open, body = rest.partition(fmt.answer_open)
        body, has_close, after = body.partition(fmt.answer_close)
        outside += between
        closed = bool(has_open and has_close)
    reasoning = inside.strip() or None
    answer = (body.strip() or None) if closed else None
    soft = closed and bool(opener) and all(text.count(tag) == 1 for tag in fmt.tags)
    strict = (
        soft
        and not (outside + after).strip("\n")
        and answer is not None
        and inside.strip("\n") == reasoning
        and body.strip("\n") == answer
    )
    return Parsed(reasoning, answer, strict, soft)


def opened_by(prompt_text: str, fmt: Format) -> str:
    """What a chat template's generation prompt has already written of the assistant's turn.

    "<think>\\n" where the prompt ends with the reasoning opener and a newline, "" where it does
    not end with the opener. It is part of the turn: put it before what the model samples.
    """
    opener = fmt.reasoning_open
    if not opener or not prompt_text.rstrip().endswith(opener):
        return ""
    return prompt_text[prompt_text.rindex(opener) :]


# Control tokens of tokenizers that a text may still show: <|im_end|>, </s>, <end_of_turn>.
_CONTROL = re.compile(
    r"<[|\uff5c](?P<name>[A-Za-z][A-Za-z0-9_\u2581-]{0,40}+)[|\uff5c]>"
    r"|(?P<tag></s>|<(?:eos|bos|pad|unk|end_of_turn|start_of_turn)>)"
)
_MARKS = ("<|", "<\uff5c", "</s>", "<eos>", "<bos>", "<pad>", "<unk>", "_of_turn>")
_MOST = 1000  # control tokens of one sort that are looked at
_ENDS = {
    "im_end", "endoftext", "end_of_text", "eot_id", "eom_id", "eot", "end", "return", "eos",
    "end_of_turn", "end_of_sentence", "s", "endofturn", "END_OF_TURN_TOKEN", "end_of_msg",
}  # fmt: skip
# They begin another turn, and so end this one; at its very beginning they are its own.
_BEGINS = {
    "im_start", "start_header_id", "start_of_turn", "user", "assistant", "system", "start",
    "START_OF_TURN_TOKEN", "User", "Assistant",
}  # fmt: skip


def turn_of(text: str) -> str:
    """Return the turn that a text holds, without control tokens of a tokenizer.

    The first that ends a turn, or begins another one, ends it; others leave a space, so that no
    digits are joined; a thousand of them end it, too. A text without such tokens comes back as it
    is. Linear time.

    >>> turn_of("<think>6 * 7</think>42<|im_end|>\\n<|im_start|>user")
    '<think>6 * 7</think>42'
    >>> turn_of("4<|fim_pad|>2")
    '4 2'
    """
    marks = [mark for mark in _MARKS if mark in text]
    if not marks:
        return text
    for mark in marks:
        if text.count(mark) > _MOST:
            text = mark.join(text.split(mark, _MOST)[:_MOST])
    out, at, said = [], 0, False
    for found in _CONTROL.finditer(text):
        name = (found["name"] or found["tag"].strip("</>")).replace("\u2581", "_")
        if found["tag"] == "</s>" and "<s>" in text:
            continue  # HTML that strikes something out
        out.append(text[at : found.start()])
        at = found.end()
        said = said or bool(out[-1].strip())
        if name in _ENDS or (name in _BEGINS and said):
            return "".join(out)
        out.append(" ")
    return "".join([*out, text[at:]])
