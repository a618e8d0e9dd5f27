"""The exact value of a stated answer: one stated answer, exact value, fail closed.

This finds the text of the answer in a completion of some format; `rlm.answers.values` turns that
text into an exact fraction. Both are pure, never raise on a completion, and take time linear in its
length: no eval, no sympy, no float, no tolerance, and no regular expression that goes back over the
whole text. What cannot be read is no answer plus a reason (`REASONS`). It knows nothing of rewards,
and takes the tags from `rlm.answers.formats`.

    >>> read_answer("<think>6 * 7</think>The answer is $1,234.50.", "think").canonical
    '1234.5'
    >>> read_answer("<think>6 * 7</think>42 or 43", "think").reason
    'several_values'
    >>> is_correct("The answer is 25%.", "1/4", "plain")
    True
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rlm.answers.formats import FORMATS, Format, get_format, turn_of
from rlm.answers.values import Answer, read_value

__all__ = [
    "REASONS", "Answer", "equal", "is_correct", "is_correct_leniently", "last_number",
    "read_answer", "read_gold", "read_statements", "read_value",
]  # fmt: skip

REASONS = (
    "no_close",  # the reasoning was never closed
    "no_tag",  # no answer tag where one is due
    "empty",  # nothing stated
    "repeated",  # a tag more often than once, or far too many statements
    "several_values",  # two numbers, or two statements that differ
    "unparsable",  # not exactly one plain number
    "too_long",  # more than 400 characters
    "cut_off",  # one was read, in a completion that was cut off: it may be a beginning only
)
# Beside word for word repetitions of the first statement of an answer:
MAX_STATEMENTS = 100  # differently worded statements
MAX_MARKS = 2000  # places that look like one
MAX_SPELLINGS = 8  # of one value, where it is not known yet whether they are one


class Value(Protocol):
    """What a statement was read as. value: None if it could not be; then there is a reason."""

    @property
    def value(self) -> object: ...

    @property
    def reason(self) -> str | None: ...


def read_answer(text: object, format_name: str) -> Answer:
    """The answer that a completion states in that format; never raises on a completion.

    text: the completion alone, without the prompt. What is no string states nothing.
    Raises ValueError for an unknown format only.
    """
    found = read_statements(text, format_name, read_value)
    return found[0] if isinstance(found, list) else Answer(reason=found)


def read_statements(
    text: object,
    format_name: str,
    read: Callable[[str], Value],
    *,
    angles: bool = False,
    spellings: int = 1,
) -> list[Any] | str:
    """The answer that a completion states, as `read` reads it, or the reason why there is none.

    read: takes the text of a statement; statements are the same that it gives equal results for.
    angles: whether "<" may stand in an answer; tags never may. spellings: how many statements may
    differ, where only a later comparison can tell whether they mean the same; all are returned.
    """
    form = get_format(format_name)
    if not isinstance(text, str) or not text or text.isspace():
        return "empty"
    how = _How(read, _TAG if angles else _ANGLE, spellings)
    text = turn_of(text)
    if not form.reasoning_close:
        return _read_prose(text, how)
    opened, closed = text.count(form.reasoning_open), text.count(form.reasoning_close)
    if closed > 1:
        return "repeated"
    _, closer, segment = text.rpartition(form.reasoning_close)
    if not form.answer_open:
        if not closer:
            return "no_close"
        if form.reasoning_open in segment:
            return "repeated"
        tagged = FORMATS["xml"]
        if tagged.answer_open in segment or tagged.answer_close in segment:
            return _read_tag(segment, tagged, how)
        return _read_prose(segment, how)
    if opened > closed or form.reasoning_open in segment:
        return "no_close"
    return _read_tag(segment, form, how)


def read_gold(text: object) -> Answer:
    """The known answer of an example: what follows its last "####", else the whole text.

    Raises ValueError if that is not exactly one number; call it when data is loaded.
    """
    if not isinstance(text, str):
        raise ValueError(
            f"gold answer {text!r} is a {type(text).__name__}: "
            'give it as text with one number, such as "42"'
        )
    answer = read_value(text.rpartition("####")[2])
    if answer.value is None:
        shown = text if len(text) <= 80 else "..." + text[-80:]
        raise ValueError(
            f"gold answer {shown!r} cannot be read ({answer.reason}): it must state exactly one "
            'number, such as "42", "1,234.50", "3/4" or "50%"; correct it or leave the example out'
        )
    return answer


def equal(prediction: Answer, gold: Answer) -> bool:
    """Whether the prediction has the gold's exact value; no answer equals nothing.

    One rule both ways: "50%" equals "50%", "50" and "0.5", whichever of the two is the gold. Data
    leave the sign out as often as models do; between "50" and "0.5", both without it, it is a gold
    with the sign that accepts both.
    """
    if prediction.value is None or gold.value is None:
        return False
    if prediction.percent == gold.percent:
        return prediction.value == gold.value
    one, other = prediction.value, gold.value
    signed, bare = (one, other) if prediction.percent else (other, one)
    return bare in (signed, signed / 100)


def is_correct(completion: object, gold: str, format_name: str) -> bool:
    """Whether the completion states the gold's value. ValueError if the gold is unreadable."""
    return equal(read_answer(completion, format_name), read_gold(gold))


# 1,234.5 is one number, and so are 3/4 and 50%. Possessive: it never goes back.
_LAST_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+(?:/\d++|\s?%)?+")
TAIL = 2000  # characters at the end in which the last number is looked for


def last_number(text: str) -> Answer:
    """The last number of a text, whatever stands around it: the lenient reading.

    It says what a model would score if its form did not count, and is shown beside the strict
    reading (`read_answer`). Nothing is rewarded by it.

    >>> last_number("So there are 1,234.50 dollars, 50 % of them mine.").canonical
    '50%'
    """
    numbers = _LAST_NUMBER.findall(text[-TAIL:])
    return read_value(numbers[-1]) if numbers else Answer(reason="empty")


def is_correct_leniently(text: str, gold: str) -> bool:
    """Whether the last number of a text is the gold's value, whatever the text's format."""
    return equal(last_number(text), read_gold(gold))


# Extraction: completion -> text of the answer.

_ANGLE = re.compile("<")
_TAG = re.compile(r"</?[A-Za-z]{2,20}[ />=]|</?[A-Za-z]{2,20}\Z")


@dataclass(frozen=True, slots=True)
class _How:
    """read, spellings: as in `read_statements`. refused: what no answer in a tag may hold."""

    read: Callable[[str], Any]
    refused: re.Pattern[str]
    spellings: int


def _one(answer) -> list | str:
    return answer.reason if answer.value is None else [answer]


def _read_tag(segment: str, form: Format, how: _How) -> list | str:
    """The value between the answer tags, which stand once and in order."""
    opened, closed = segment.count(form.answer_open), segment.count(form.answer_close)
    if opened > 1 or closed > 1:
        return "repeated"
    before, _, rest = segment.partition(form.answer_open)
    inside, closer, after = rest.partition(form.answer_close)
    if not opened or not closer:
        return "no_tag"
    if how.refused.search(inside):
        return "unparsable"
    if any(marker in part for marker in ("####", "\\boxed") for part in (before, after)):
        return "several_values"  # a second statement beside the tag
    return _one(how.read(inside))


def _nested(depth: int) -> str:
    """A pattern for text with balanced braces, at most `depth` deep and 100 groups a level."""
    inner = r"[^{}]*+"
    for _ in range(depth):
        inner = rf"[^{{}}]*+(?:\{{{inner}\}}[^{{}}]*+){{0,100}}+"
    return inner


# Every pattern that meets a whole completion is possessive (`*+`): it never goes back.
_HASHES = re.compile(r"####([^\n\r]*+)[\n\r]?")
# A box that is not closed takes the rest of the text with it and leaves its group empty.
_BOXED = re.compile(rf"\\boxed(?:\s*+\{{({_nested(5)})\}}|(?s:.*+))")
_ANSWER_IS = re.compile(
    r"[Aa](?:nswer|NSWER)[\s*]*+(?:(?:is|IS)\b|[:=])[\s*:=]*+"
    # To the end of the sentence: a mark with white space behind it, or the end of the line.
    # 400 marks inside one sentence are more than a value may be long.
    r"([^\n\r.!?]*+(?:[.!?](?!\s|\Z)[^\n\r.!?]*+){0,400}+[.!?]?)\s?"
)


# The kinds of statement, strongest first; with each the marks of which it holds at least one.
_KINDS = (
    (_HASHES, ("####",)),
    (_BOXED, ("\\boxed",)),
    (_ANSWER_IS, ("nswer", "NSWER")),
)


def _read_prose(text: str, how: _How) -> list | str:
    """The value of the first kind of statement that occurs; all of that kind must agree."""
    text += "\n"  # so that the last statement ends as the others do
    for pattern, marks in _KINDS:
        if any(mark in text for mark in marks) and (first := pattern.search(text)):
            return _read_all(first, text, marks, how)
    return _one(how.read(text))


def _read_all(first: re.Match[str], text: str, marks: tuple[str, ...], how: _How) -> list | str:
    """The one value that all statements of a kind share. first: the first of them in the text."""
    answer = how.read(first[1] or "")
    if answer.value is None:
        return answer.reason
    # A model in a loop repeats itself word for word: what was read is plain text from here on.
    plain = first[1]
    for mark in marks:
        plain = plain.replace(mark, "")
    rest = text.replace(first[0], f" {plain}\n")
    if sum(map(rest.count, marks)) > MAX_MARKS:
        return "repeated"
    others = dict.fromkeys(first.re.findall(rest))
    if len(others) > MAX_STATEMENTS:
        return "repeated"
    found = [answer]
    for statement in others:
        other = how.read(statement)
        if other.value is None:
            return other.reason
        if other not in found:
            found.append(other)
        if len(found) > how.spellings:
            return "several_values"
    return found
