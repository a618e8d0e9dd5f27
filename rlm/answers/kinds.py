r"""The kinds of answers, and the verdict on a completion: right, wrong, or not to be judged.

    number   one number, exactly equal                       rlm/answers/values.py
    math     expressions, sets, intervals, matrices, ...     rlm/answers/expressions.py
    choice   a letter from A to J, or a choice's own text    rlm/answers/texts.py
    text     equal but for case, articles, punctuation       rlm/answers/texts.py

An answer of any kind is found where a number is (`rlm.answers.reading`): in its tag, in a box,
after the reasoning; several that differ are none. An example may have several golds that are right.
Only math can leave a completion unjudged: where its worker hung or died. A completion that was cut
off states nothing: the beginning of an answer is not the answer. It knows nothing of rewards.

    >>> from rlm.records import Example
    >>> example = Example("1", "Which? A. red B. blue", "B", kind="choice", choices=("red", "blue"))
    >>> judge(example, "<think>The sky.</think>(B)", "think").right
    True
    >>> judge(example, "<think>The sky.</think>(B)", "think", finish="length").reason
    'cut_off'
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from rlm.answers import math_pool
from rlm.answers.expressions import Expression, last_formula, read_expression
from rlm.answers.math_pool import MathPool
from rlm.answers.reading import (
    MAX_SPELLINGS,
    TAIL,
    equal,
    last_number,
    read_gold,
    read_statements,
)
from rlm.answers.texts import Stated, normal_form, read_choice, read_text, without_markup
from rlm.answers.values import Answer, read_value
from rlm.records import Example

KINDS = ("number", "math", "choice", "text")
UNJUDGED = "unjudged"  # the reason of a verdict that is none


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a completion stated, and whether that is right.

    right: None where it could not be judged. canonical: the answer as it is shown, None if none
    was read. reason: why none was (`rlm.answers.reading.REASONS`), or `UNJUDGED`. value: what is
    counted in votes (`votes`).
    """

    right: bool | None
    canonical: str | None = None
    reason: str | None = None
    value: Any = None

    @property
    def word(self) -> str:
        """right, wrong, unreadable or unjudged."""
        if self.right is None:
            return UNJUDGED
        return "right" if self.right else "unreadable" if self.reason else "wrong"


def judge(example: Example, text: object, format_name: str, *, finish: str = "stop") -> Verdict:
    """Return the verdict on one completion. finish: as in `rlm.records.Rollout`."""
    return judge_all([example], [text], format_name, finishes=[finish])[0]


def judge_all(
    examples: Sequence[Example],
    texts: Sequence[object],
    format_name: str,
    *,
    finishes: Sequence[str] | None = None,
    pool: MathPool | None = None,
) -> list[Verdict]:
    """Return the verdict on each completion; those of kind math are judged in parallel.

    finishes: "length" for a completion that was cut off. pool: of the mathematics, the process's
    own by default. Never raises on a completion; ValueError for a gold that cannot be read.
    """
    finishes = finishes or ["stop"] * len(texts)
    found: list[Verdict | None] = [None] * len(texts)
    asked: dict[int, _Mathematics] = {}
    for i, (example, text, finish) in enumerate(zip(examples, texts, finishes, strict=True)):
        read = _read(example, text, format_name)
        if isinstance(read, str):
            found[i] = Verdict(False, reason=read)
        elif finish == "length":
            found[i] = Verdict(False, reason="cut_off")
        elif example.kind == "math":
            asked[i] = _Mathematics(example, read)
        else:
            found[i] = _plain_verdict(example, read[0])
    if asked:
        pairs = [pair for each in asked.values() for pair in each.pairs()]
        known = _ask(pairs, pool)
        for i, each in asked.items():
            found[i] = each.verdict(known)
    return [verdict for verdict in found if verdict is not None]


def stated(
    text: object,
    format_name: str,
    kind: str = "number",
    choices: Sequence[str] = (),
    *,
    finish: str = "stop",
) -> tuple[str | None, str | None]:
    """Return (answer, reason) of a completion that has no gold: one of them is None."""
    reader, options = _reader(kind, tuple(choices))
    found = read_statements(text, format_name, reader, **options)
    if isinstance(found, str):
        return None, found
    return (None, "cut_off") if finish == "length" else (found[0].canonical, None)


def votes(verdicts: Sequence[Verdict], *, pool: MathPool | None = None) -> list[Any]:
    """Return a label of each verdict's answer, the same for equal ones; None for no answer.

    Answers of kind math are compared with each other, not with the gold: sqrt(2)/2 and 1/sqrt(2)
    are one vote. Two that could not be compared are two.
    """
    values = [None if v.reason == "cut_off" else v.value for v in verdicts]
    firsts: list[Expression] = []
    labels: list[Any] = []
    for value in values:
        if not isinstance(value, Expression):
            labels.append(value)
            continue
        same = next((first for first in firsts if _same(first, value, pool)), None)
        if same is None:
            firsts.append(value)
        labels.append((same or value).canonical)
    return labels


def check_gold(kind: str, gold: object, choices: Sequence[str] = ()) -> str:
    """Return the gold as it is kept: a choice as its letter, all else without space around it.

    ValueError that says what is wrong if the kind is unknown, or it cannot be read as that kind.
    A mathematical one is also judged against itself. Call it when data is loaded; for many of
    kind math call `check_golds`, which is faster.
    """
    (found,) = check_golds(kind, [gold], [choices])
    if isinstance(found, ValueError):
        raise found
    return found


def check_golds(
    kind: str, golds: Sequence[object], choices: Sequence[Sequence[str]] | None = None
) -> list[str | ValueError]:
    """Return for each gold what `check_gold` returns, or the error that it raises."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of answers {kind!r}: known are {', '.join(KINDS)}")
    found: list[str | ValueError] = []
    for gold, of in zip(golds, choices or [()] * len(golds), strict=True):
        try:
            found.append(_checked(kind, gold, of))
        except ValueError as error:
            found.append(error)
    if kind == "math":
        _check_against_themselves(found)
    return found


# How each kind is read and compared.


def _read(example: Example, text: object, format_name: str) -> list[Any] | str:
    """Return what a completion states, or why nothing."""
    reader, options = _reader(example.kind, example.choices)
    return read_statements(text, format_name, reader, **options)


@cache
def _reader(kind: str, choices: tuple[str, ...]) -> tuple[Callable, dict]:
    if kind == "number":
        return read_value, {}
    if kind == "choice":
        return partial(read_choice, choices=choices), {"angles": True}
    if kind == "math":
        return read_expression, {"angles": True, "spellings": MAX_SPELLINGS}
    if kind == "text":
        return read_text, {"angles": True}
    raise ValueError(f"unknown kind of answers {kind!r}: known are {', '.join(KINDS)}")


def _plain_verdict(example: Example, said: Answer | Stated) -> Verdict:
    """Return the verdict on an answer that needs no worker."""
    if isinstance(said, Answer):
        right = any(equal(said, read_gold(gold)) for gold in example.golds)
        return Verdict(right, said.canonical, value=said.value)
    read = read_choice if example.kind == "choice" else read_text
    options = {"choices": example.choices} if example.kind == "choice" else {}
    golds = [read(gold, **options) for gold in example.golds]
    right = any(gold.value == said.value for gold in golds if gold.value is not None)
    return Verdict(right, said.canonical, value=said.value)


class _Mathematics:
    """A completion's statements beside its golds, and which pairs of them have to be asked of."""

    def __init__(self, example: Example, said: list[Expression]):
        self.said = said
        self.golds = [_gold_expression(gold) for gold in example.golds]

    def pairs(self) -> list[tuple[str, str]]:
        every = [(gold, said) for said in self.said for gold in self.golds]
        return [(g.as_latex, s.as_latex) for g, s in every if _locally(g, s) is None]

    def verdict(self, known: dict) -> Verdict:
        """Return right if each statement equals one of the golds."""
        found = [self._statement(said, known) for said in self.said]
        first = self.said[0]
        if False in found:
            return Verdict(False, first.canonical, value=first)
        if None in found:
            return Verdict(None, first.canonical, UNJUDGED, value=first)
        return Verdict(True, first.canonical, value=first)

    def _statement(self, said: Expression, known: dict) -> bool | None:
        answers = []
        for gold in self.golds:
            here = _locally(gold, said)
            answers.append(known[gold.as_latex, said.as_latex] if here is None else here)
        return True if True in answers else None if None in answers else False


def _locally(gold: Expression, said: Expression) -> bool | None:
    """Return whether they are equal where that is known without Math-Verify, else None."""
    if gold.number and said.number:
        return equal(said.number, gold.number)
    if gold.words or said.words:
        other = gold.latex or said.latex
        if gold.words and said.words:
            return gold.words == said.words
        if other is None or any(map(str.isdigit, other)):
            return False
        return normal_form(without_markup(other)) == (gold.words or said.words)
    return True if gold.latex == said.latex and gold.latex else None


def _same(one: Expression, other: Expression, pool: MathPool | None) -> bool:
    known = _locally(one, other)
    if known is None:
        pair = (one.as_latex, other.as_latex)
        known = _ask([pair], pool)[pair]
    return bool(known)


def _ask(pairs: list[tuple[str, str]], pool: MathPool | None) -> dict[tuple[str, str], bool | None]:
    if not pairs:
        return {}
    found = (pool or math_pool.shared_pool()).judge(pairs)
    return {pair: each.equal for pair, each in zip(pairs, found, strict=True)}


@cache
def _gold_expression(gold: str) -> Expression:
    found = read_expression(gold.rpartition("####")[2])
    if found.value is None:
        raise ValueError(_no_gold("math", gold, found.reason))
    return found


# Golds.

_STATES = {
    "math": r'one mathematical expression, such as "\frac{\sqrt{2}}{2}", "x^2 + 1" or "[0, 1)"',
    "choice": 'one letter from A to J, such as "B", or the text of one of the choices',
    "text": "a word or a few, at most 400 characters",
}


def _no_gold(kind: str, gold: object, reason: str | None) -> str:
    shown = repr(gold) if len(repr(gold)) <= 80 else "..." + repr(gold)[-80:]
    return (
        f"gold answer {shown} cannot be read as {kind} ({reason}): it must state "
        f"{_STATES[kind]}; correct it, leave the example out, or choose another kind"
    )


def _checked(kind: str, gold: object, choices: Sequence[str]) -> str:
    if kind == "number":
        read_gold(gold)
        return str(gold).strip()
    if not isinstance(gold, str):
        raise ValueError(_no_gold(kind, gold, f"of type {type(gold).__name__} instead of text"))
    text = gold.rpartition("####")[2].strip() if kind != "text" else gold.strip()
    if kind == "math":
        _gold_expression(text)
        return text
    found = read_choice(text, choices) if kind == "choice" else read_text(text)
    if found.value is None:
        raise ValueError(_no_gold(kind, gold, found.reason))
    return found.value if kind == "choice" else text


def _check_against_themselves(found: list[str | ValueError]) -> None:
    """Put an error where Math-Verify does not read a gold, or does not find it equal to itself."""
    latex = {
        i: expression.as_latex
        for i, gold in enumerate(found)
        if isinstance(gold, str) and (expression := _gold_expression(gold)).latex
    }
    if not latex:
        return
    judged = math_pool.shared_pool().judge([(text, text) for text in latex.values()])
    for i, each in zip(latex, judged, strict=True):
        if each.equal is None:
            found[i] = ValueError(_no_gold("math", found[i], "not judged in time and memory"))
        elif not each.equal:
            why = "not equal to itself" if each.gold_read else "unparsable"
            found[i] = ValueError(_no_gold("math", found[i], why))


# The lenient reading.


def is_right_leniently(example: Example, text: str) -> bool:
    """Whether the last statement of a text is right, whatever its format (`last_statements`)."""
    (found,) = last_statements([example], [text])
    return bool(found is not None and found.right)


def last_statements(
    examples: Sequence[Example], texts: Sequence[str], *, pool: MathPool | None = None
) -> list[Verdict | None]:
    """Return the verdict on the last statement of each text, None where there is none.

    Of numbers the last one, of choices the last letter that is marked as one or stands alone, of
    texts a gold in the last line, of mathematics the last box or formula, else the last number.
    Nothing is rewarded by it.
    """
    found: list[Verdict | None] = [None] * len(texts)
    asked: dict[int, _Mathematics] = {}
    for i, (example, text) in enumerate(zip(examples, texts, strict=True)):
        if example.kind == "number":
            found[i] = _plain_verdict(example, last_number(text))
        elif example.kind == "math":
            said = _last_mathematics(text[-TAIL:])
            if said.value is not None:
                asked[i] = _Mathematics(example, [said])
        else:
            found[i] = _last_words(example, text[-TAIL:])
    known = _ask([pair for each in asked.values() for pair in each.pairs()], pool)
    for i, each in asked.items():
        found[i] = each.verdict(known)
    return found


def _last_words(example: Example, tail: str) -> Verdict | None:
    """Return the verdict on the last choice, or on the last line as a text."""
    lines = [line for line in tail.splitlines() if line.strip()]
    if example.kind == "choice":
        for line in reversed(lines):
            for piece in (line, *reversed(line.split())):
                said = read_choice(piece, example.choices)
                if said.value is not None:
                    return _plain_verdict(example, said)
        return None
    last = f" {normal_form(without_markup(lines[-1]))} " if lines else ""
    inside = [gold for gold in example.golds if f" {normal_form(gold)} " in last]
    return Verdict(bool(inside), inside[0] if inside else None, value=last) if lines else None


def _last_mathematics(tail: str) -> Expression:
    said = read_expression(last_formula(tail))
    if said.value is None and (number := last_number(tail)).value is not None:
        return Expression(number=number)
    return said
