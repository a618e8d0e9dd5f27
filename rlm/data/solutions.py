"""A worked solution -> its reasoning and the final answer that it states, tags taken off once.

Texts alone: no column, no file. Data bring the tags of formats of their own, of ours or of other
tools; what is kept is plain, so that it is the same whatever format it is trained in.
"""

import re
from typing import NamedTuple

from rlm.answers.formats import FORMATS

# (opens, closes) of the reasoning in the formats that we know, ours first, then other tools'.
REASONING_TAGS = (
    *((f.reasoning_open, f.reasoning_close) for f in FORMATS.values() if f.tags),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
ANSWER_TAGS = (
    *((f.answer_open, f.answer_close) for f in FORMATS.values() if f.answer_open),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
TAGS = tuple(tag for pair in (*REASONING_TAGS, *ANSWER_TAGS) for tag in pair)
NOTE = re.compile(r"<<[^<>\n]*>>")  # GSM8K's calculator notes, <<48/2=24>>
ANSWER_IS = re.compile(r"\banswer(?:\s+is\b|\s*[:=])[\s*:]*([^\n]+)", re.IGNORECASE)
SHORT = 100  # characters of a line that is nothing but an answer


class Worked(NamedTuple):
    """reasoning: plain text, "" where there is none. answer: as text, None if none is stated."""

    reasoning: str
    answer: str | None


def take_apart(text: str, *, notes: bool = False) -> Worked:
    r"""Return reasoning and stated answer of a solution or an assistant's turn.

    The answer: behind the last ####, in the last \boxed{}, behind the last "answer is", or the
    short line that follows the reasoning's tags. Of the reasoning go tags, calculator notes, boxes
    (their content stays) and what follows ####. ValueError for tags that are not closed or stand
    inside others. notes: those of a calculator stay, for `note_parts`.

    >>> take_apart("<think>\n6 * 7 is 42.\n</think>\nThe answer is 42.")
    Worked(reasoning='6 * 7 is 42.', answer='42')
    >>> take_apart("Half of 84 is \\boxed{42}.")
    Worked(reasoning='Half of 84 is 42.', answer='42')
    """
    reasoning, turn, tagged = without_tags(text)
    answer = stated_answer(turn)
    if answer is None and tagged and turn and "\n" not in turn and len(turn) <= SHORT:
        answer = turn
    if answer is None and tagged:
        answer = stated_answer(reasoning)
    return Worked(plain(reasoning, notes=notes), answer)


def without_tags(text: str) -> tuple[str, str, bool]:
    """Return (reasoning, what states the answer, whether tags were there), tags taken off once.

    Without tags both are the whole text. Where the reasoning's tags hold nothing, as models write
    that were told not to think, the reasoning is what follows them. ValueError as `take_apart`.
    """
    found = [pair for pair in REASONING_TAGS if pair[0] in text or pair[1] in text]
    if not found:
        inside, before = _answer_inside(text)
        return _clean(before.strip() if inside else text.strip()), (inside or text).strip(), \
            bool(inside)  # fmt: skip
    opens, closes = min(found, key=lambda pair: min(_place(text, tag) for tag in pair))
    before, closed, rest = text.partition(closes)
    if not closed:
        raise ValueError(f"its reasoning is opened by {opens} and never closed")
    outside, opened, reasoning = before.partition(opens)
    reasoning = reasoning if opened else outside  # the opening tag may stand in the prompt
    inside, _ = _answer_inside(rest)
    turn = (inside or rest).strip()
    return _clean(reasoning.strip() or turn), turn, True


def _place(text: str, tag: str) -> int:
    place = text.find(tag)
    return len(text) if place < 0 else place


def _answer_inside(text: str) -> tuple[str, str]:
    """Return (what stands in the answer's tags, what stands before them); "" and all without."""
    for opens, closes in ANSWER_TAGS:
        before, opened, rest = text.partition(opens)
        inside, closed, _ = rest.partition(closes)
        if opened and not closed:
            raise ValueError(f"its answer is opened by {opens} and never closed")
        if opened:
            return inside, before
    return "", text


def _clean(reasoning: str) -> str:
    """Return the reasoning; ValueError if a tag of any known format is left in it."""
    left = next((tag for tag in TAGS if tag in reasoning), None)
    if left:
        raise ValueError(f"its reasoning holds the tag {left} of a format; take it out")
    return reasoning


def stated_answer(text: str) -> str | None:
    """Return the final answer that a text states, None if it states none.

    >>> stated_answer("So 2 + 2 = 4. **The answer is: 4.**"), stated_answer("It may be 4")
    ('4', None)
    """
    _, mark, last = text.rpartition("####")
    if mark:
        return last.strip() or None
    boxes = boxed(text)
    if boxes:
        return boxes[-1].strip() or None
    said = ANSWER_IS.findall(text)
    if said:
        sentence = re.split(r"[.!?](?:[\s*]|$)", said[-1])[0]
        return sentence.strip(" *_`") or None
    return None


def boxed(text: str) -> list[str]:
    r"""Return what stands in each \boxed{...} of the text that is closed.

    >>> boxed(r"\boxed{\frac{1}{2}} and \boxed {3}, not \boxed{4")
    ['\\frac{1}{2}', '3']
    """
    return [text[start:end] for _, start, end in _boxes(text)]


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Return (begin of the command, begin, end of the content) of each closed box."""
    found, at = [], 0
    for match in re.finditer(r"\\f?boxed\s*\{", text):
        if match.start() < at:
            continue  # inside the one before
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if depth:
            break
        found.append((match.start(), match.end(), at - 1))
    return found


def plain(reasoning: str, *, notes: bool = False) -> str:
    """Return the reasoning without boxes, notes (unless `notes`) and what follows ####."""
    text = reasoning.rpartition("####")[0] if "####" in reasoning else reasoning
    parts, at = [], 0
    for begin, start, end in _boxes(text):
        parts += [text[at:begin], text[start:end]]
        at = end + 1
    text = "".join(parts) + text[at:]
    return (text if notes else bare(text)).strip()


def bare(solution: str) -> str:
    """Return a solution without the notes that were left in it."""
    return NOTE.sub("", solution)


def note_parts(text: str) -> list[tuple[str, str, str]]:
    """Return the text cut at its notes: (what stands before, expression, result) of each, in order.

    The last one is the rest, with an empty expression.

    >>> note_parts("48/2 = <<48/2=24>>24 in May.")
    [('48/2 = ', '48/2', '24'), ('24 in May.', '', '')]
    """
    parts, at = [], 0
    for note in NOTE.finditer(text):
        expression, _, result = note[0][2:-2].rpartition("=")
        parts.append((text[at : note.start()], expression.strip(), result.strip()))
        at = note.end()
    return [*parts, (text[at:], "", "")]
