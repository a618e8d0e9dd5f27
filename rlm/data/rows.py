"""Rows of data sets -> Examples: what is question, gold answer and reasoning in each.

Knows layouts and kinds of answers; reads no file. A gold answer that cannot be read is an
InputError here, never a reward later; so are tags that nobody can take off.
"""

import re
from dataclasses import replace

from rlm.answers.kinds import KINDS, check_gold
from rlm.answers.reading import read_gold
from rlm.data.choices import choice_gold, choice_texts, with_choices
from rlm.data.layouts import CONVERSATIONS, OWN, Layout, value_at
from rlm.data.readers import Number
from rlm.data.solutions import NOTE, Worked, bare, take_apart
from rlm.errors import InputError
from rlm.records import Example

SURROGATE = re.compile("[\ud800-\udfff]")
# Who speaks in a conversation, by the names that data sets have for it.
ASKS = ("user", "human", "prompter")
ANSWERS = ("assistant", "gpt", "model", "bot")


def row_example(
    row: dict, where: str, id: str, layout: Layout = OWN, kind: str | None = None
) -> Example:
    """Return the example of a row whose columns are known.

    kind: of the answer, where the row has no `kind` of its own; None: choice where there are
    choices, else number. An answer in GSM8K's manner ("reasoning #### 42") brings its own solution.
    InputError, beginning with `where`, for whatever cannot be used.
    """
    if row.get("is_correct") is False or row.get("is_correct") == "false":
        raise InputError(f"{where}: its 'is_correct' is false: the solution is wrong")
    question = text_of(row, layout.question, where, speaker="question")
    if layout.context and (value_at(row, layout.context) or "") != "":
        question += "\n\n" + field(row, layout.context, where)
    has_choices = any(value_at(row, column) not in (None, "") for column in layout.choices)
    choices = choice_texts(row, layout.choices, where) if has_choices else ()
    kind = kind_of(row, where, kind or ("choice" if choices else "number"))
    worked = solution_of(row, layout, where)
    if choices and kind == "choice":
        given = value_at(row, layout.answer) if layout.answer else worked.answer
        golds = [choice_gold(given, row, layout.choices[0], choices, where)]
        question = with_choices(question, choices)
    else:
        golds = golds_of(row, layout, worked, where, kind)
    found = Example(
        id,
        question,
        golds[0],
        worked.reasoning or None,
        steps=len(NOTE.findall(raw_solution(row, layout))) or step_count(worked.reasoning),
        kind=kind,
        accepted=tuple(golds[1:]),
        choices=choices,
    )
    return checked(found, where)


def own_example(row: dict, where: str, id: str) -> Example:
    """Return the example of a row with our columns: question, answer and perhaps solution."""
    return row_example(row, where, id)


def gsm8k_example(row: dict, where: str, id: str, *, notes: bool = False) -> Example:
    """Return the example of a GSM8K row: its answer is "reasoning #### gold", notes inside.

    notes: they stay in the solution.
    """
    question = field(row, "question", where)
    answer = field(row, "answer", where)
    reasoning, mark, _ = answer.rpartition("####")
    if not mark:
        raise InputError(f"{where}: 'answer' has no '#### NUMBER' at its end, as gsm8k has it")
    plain = (reasoning if notes else bare(reasoning)).strip()
    return Example(id, question, checked_gold(answer, where), plain, steps=step_count(reasoning))


def solution_of(row: dict, layout: Layout, where: str) -> Worked:
    """Return the row's reasoning and the answer that it states; ("", None) if it has none."""
    text = raw_solution(row, layout)
    if not text.strip():
        return Worked("", None)
    if _has_solution(row, layout):
        text = text_of(row, layout.reasoning, where, speaker="answer")
    try:
        return take_apart(text, notes=layout.notes)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def raw_solution(row: dict, layout: Layout) -> str:
    """Return the text of the row's solution as it stands there, "" where there is none.

    Without a solution of its own it is what an answer in GSM8K's manner has before ####, or one
    with tags.
    """
    if _has_solution(row, layout):
        given = value_at(row, layout.reasoning)
        return _spoken(given, ANSWERS) or str(given)
    answer = value_at(row, layout.answer) if layout.answer else None
    if isinstance(answer, str) and ("####" in answer or "</" in answer):
        return answer
    return ""


def _has_solution(row: dict, layout: Layout) -> bool:
    given = value_at(row, layout.reasoning)
    return given is not None and not (isinstance(given, str) and not given.strip())


def golds_of(row: dict, layout: Layout, worked: Worked, where: str, kind: str) -> list[str]:
    """Return the gold and all that is as right, read from the answer's column or the solution."""
    if layout.answer is None:
        if worked.answer is None:
            raise InputError(
                f"{where}: field {layout.solution!r} states no final answer (\\boxed{{}}, ####, "
                "'The answer is'); name a column that has it by --answer-field"
            )
        return [worked.answer]
    given = value_at(row, layout.answer)
    if kind == "text" and isinstance(given, list) and given:
        wrapped = [{layout.answer: each} for each in given]
        return [field(each, layout.answer, where, number=True) for each in wrapped]
    answer = field(row, layout.answer, where, number=True)
    if "####" in answer:
        return [answer.rpartition("####")[2].strip()]
    if "</" in answer and worked.answer is not None and raw_solution(row, layout) == given:
        return [worked.answer]
    return [answer]


def kind_of(row: dict, where: str, kind: str) -> str:
    """Return the kind of a row's answer: its own `kind`, else the one given; it must be known."""
    own = row.get("kind")
    kind = kind if own in (None, "") else str(own)
    if kind not in KINDS:
        raise InputError(f"{where}: {kind[:40]!r} is no kind of answers; use {', '.join(KINDS)}")
    return kind


def checked(example: Example, where: str) -> Example:
    """Return the example; InputError if its gold cannot be read as its kind.

    Mathematics is looked at later, of many examples at once: `rlm.data.dataset.check_mathematics`.
    """
    if example.kind == "math":
        return example
    try:
        golds = [check_gold(example.kind, gold, example.choices) for gold in example.golds]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return replace(example, gold=golds[0], accepted=tuple(golds[1:]))


def step_count(solution: str) -> int:
    """Return how many steps a solution takes: its calculator notes, else its lines; 0 if empty.

    >>> step_count("48/2 = <<48/2=24>>24 in May.\\nIn all 48 + 24 = <<48+24=72>>72.\\nSo 72.")
    2
    """
    return len(NOTE.findall(solution)) or sum(bool(line.strip()) for line in solution.splitlines())


def checked_gold(answer: str, where: str) -> str:
    """Return the text of the gold answer: what follows the last ####, else all of it."""
    gold = answer.rpartition("####")[2].strip()
    try:
        read_gold(gold)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return gold


def text_of(row: dict, path: str, where: str, *, speaker: str) -> str:
    """Return the text of a column that is a text or a conversation of one question, one answer.

    speaker: "question" or "answer", whose turn it is of a conversation.
    """
    value = value_at(row, path)
    if not isinstance(value, list):
        return field(row, path, where)
    turns = [t for t in map(_turn, value) if t[0] != "system"]
    asked = [text for who, text in turns if who in ASKS]
    said = [text for who, text in turns if who in ANSWERS]
    wanted = asked if speaker == "question" else said
    several = len(asked) > 1 or len(said) > 1 or len(turns) != len(asked) + len(said)
    whole = path.rpartition(".")[2].lower() in CONVERSATIONS
    if several or (whole and not (asked and said)) or not wanted:
        raise InputError(
            f"{where}: field '{path}' is no conversation of one question and one answer "
            f"({', '.join(who for who, _ in turns)[:80] or 'no turns'})"
        )
    return field({path: wanted[0]}, path, where)


def _turn(turn) -> tuple[str, str]:
    """Return (who speaks, what) of a turn as chat data or ShareGPT have it."""
    if not isinstance(turn, dict):
        return type(turn).__name__, ""
    who = turn.get("role") or turn.get("from") or "?"
    said = turn.get("content") if "content" in turn else turn.get("value")
    if isinstance(said, list):  # parts, as multimodal chats have them
        said = "".join(part.get("text") or "" for part in said if isinstance(part, dict))
    return str(who).lower(), said if isinstance(said, str) else ""


def _spoken(value, speakers: tuple[str, ...]) -> str:
    """Return the text of the speakers' turns of a conversation, "" if it is none."""
    if not isinstance(value, list):
        return ""
    return "\n".join(text for who, text in map(_turn, value) if who in speakers)


def field(row: dict, name: str, where: str, *, number: bool = False) -> str:
    """Return a text field without the space around it; InputError if it is not there or no text.

    name: a column, or a dotted path. number: a number is taken as well, as it is written.
    """
    value = value_at(row, name)
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        value = Number(value)
    if value is None:
        have = ", ".join(sorted(map(repr, row)))[:100] or "none"
        raise InputError(f"{where}: field '{name}' is missing; there are: {have}")
    if not isinstance(value, str) or (isinstance(value, Number) and not number):
        kind = "number" if isinstance(value, Number) else type(value).__name__
        allowed = "text or a number" if number else "text"
        raise InputError(f"{where}: field '{name}' is a {kind}; it must be {allowed}")
    text = str(value).strip()
    if not text:
        raise InputError(f"{where}: field '{name}' is empty; fill it in or take the line out")
    if "\0" in text or SURROGATE.search(text):
        raise InputError(f"{where}: field '{name}' holds a NUL or half a character (surrogate)")
    return text
