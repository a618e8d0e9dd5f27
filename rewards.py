"""What is rewarded: small functions, a table of them by name, and their weighted sum.

A reward looks at one finished turn and returns a number, 1.0 for all that it asks for:

    def short(example, text, format_name):
        \"\"\"1.0 for at most 400 characters.\"\"\"
        return float(len(text) <= 400)

To add your own, write such a function here, put it into REWARDS at the end of this file, and
give it a weight in the settings (weight 0: it is logged and earns nothing). `example` has the
question and the gold answer, `text` is the whole assistant turn, tags included. A reward may
not raise: an exception stops the run and names the example.

How an answer is read and compared stands in `rlm/answers/reading.py`, the tags in
`rlm/answers/formats.py`.
"""

import math
import re
from collections.abc import Callable, Mapping

from rlm.answers.formats import get_format, parse
from rlm.answers.reading import (
    equal,
    is_correct,
    is_correct_leniently,
    read_answer,
    read_value,
)
from rlm.records import Example, Rollout, Score

Reward = Callable[[Example, str, str], float]


def correctness(completion: str, gold: str, format: str) -> float:
    """1.0 if the completion states exactly the gold's value, else 0.0.

    Never raises on a completion. ValueError for a gold that cannot be read.
    """
    return float(is_correct(completion, gold, format))


def correct(example: Example, text: str, format_name: str) -> float:
    """1.0 for the right final answer. The only reward by default."""
    return correctness(text, example.gold, format_name)


def format_strict(example: Example, text: str, format_name: str) -> float:
    """1.0 for exactly the shape that SFT teaches; nothing but newlines around the tags."""
    return float(parse(text, get_format(format_name)).strict)


def format_soft(example: Example, text: str, format_name: str) -> float:
    """1.0 if each tag stands there once and in order, whatever else is written."""
    return float(parse(text, get_format(format_name)).soft)


def tag_count(example: Example, text: str, format_name: str) -> float:
    """An equal share for each tag that stands exactly once, minus 0.001 a character after the end.

    The end is the last tag, or the first line of the answer where nothing closes the answer.
    The XML recipe pays 0.125 for each of its 4 tags: that is this reward at weight 0.5.
    Between 0.0 and 1.0; a format without tags earns 0.0.
    """
    form = get_format(format_name)
    if not form.tags:
        return 0.0
    share = sum(text.count(tag) == 1 for tag in form.tags) / len(form.tags)
    _, closed, rest = text.rpartition(form.tags[-1])
    after = rest if form.answer_close else rest.strip().partition("\n")[2]
    penalty = 0.001 * len(after.strip()) if closed else 0.0
    return max(0.0, share - penalty)


def integer(example: Example, text: str, format_name: str) -> float:
    """1.0 if the stated answer is a whole number, right or wrong ("42.0" is one, "42%" is not)."""
    answer = read_answer(text, format_name)
    return float(answer.value is not None and answer.value.denominator == 1 and not answer.percent)


STEP = re.compile(r"^[ \t]*+(?:[Ss]tep )?([123])[.:)](?=\s)", re.MULTILINE)


def steps(example: Example, text: str, format_name: str) -> float:
    """The share of the steps 1., 2. and 3. that begin a line of the reasoning."""
    reasoning = parse(text, get_format(format_name)).reasoning or ""
    return len(set(STEP.findall(reasoning))) / 3


CHECK = re.compile(r"\b(?:verif(?:y|ied|ication)|check(?:ed|ing)?|confirm(?:ed)?)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
RESULT = re.compile(r"=|\b(?:is|equals|gives|makes)\b")


def verification(example: Example, text: str, format_name: str) -> float:
    """1.0 if the reasoning checks the answer: "Verification: 23 + 15 + 8 is indeed 46."

    Asked for is a word of checking and then, within 400 characters, a sentence that states
    something ("... is", "... =") and whose result equals the turn's own final answer.
    """
    answer = read_answer(text, format_name)
    reasoning = parse(text, get_format(format_name)).reasoning or ""
    checks = list(CHECK.finditer(reasoning))[-3:]  # a check comes last; bounds the work
    for check in checks:
        for sentence in SENTENCE_END.split(reasoning[check.end() : check.end() + 400]):
            _, *results = RESULT.split(sentence)
            if any(equal(read_value(result), answer) for result in results):
                return 1.0
    return 0.0


REWARDS: dict[str, Reward] = {
    "correctness": correct,
    "format_strict": format_strict,
    "format_soft": format_soft,
    "tag_count": tag_count,
    "integer": integer,
    "steps": steps,
    "verification": verification,
}


def check_weights(weights: Mapping[str, float]) -> None:
    """ValueError unless every name is known, every weight finite, and one of them not zero."""
    known = ", ".join(REWARDS)
    for name, weight in weights.items():
        if name not in REWARDS:
            raise ValueError(f"unknown reward {name!r}: known are {known}; choose among them")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"weight {weight!r} of reward {name}: give it as a number")
        if not math.isfinite(weight):
            raise ValueError(f"weight {weight} of reward {name}: it must be finite, such as 1.0")
    if not any(weights.values()):
        raise ValueError(
            f"reward weights {dict(weights)}: at least one must differ from 0, "
            f"or there is nothing to learn; known are {known}"
        )


def score(
    example: Example, rollout: Rollout, format_name: str, weights: Mapping[str, float]
) -> Score:
    """What a rollout earned: each reward named in `weights`, and their weighted sum.

    Score.reason says why no answer could be read (`rlm.answers.reading.REASONS`), None if one was.
    Its fact lenient_fraction is 1.0 where the last number is right, whatever the format: it
    earns nothing.
    ValueError for an unknown reward. RuntimeError, naming the reward and the example, when a
    reward raises or returns something that is not a finite number.
    """
    check_weights(weights)
    parts = {}
    for name in weights:
        try:
            parts[name] = float(REWARDS[name](example, rollout.text, format_name))
        except Exception as error:
            raise RuntimeError(f"reward {name} failed on example {example.id}: {error}") from error
        if not math.isfinite(parts[name]):
            raise RuntimeError(f"reward {name} returned {parts[name]} on example {example.id}")
    total = sum(weights[name] * part for name, part in parts.items())
    last = {"lenient_fraction": float(is_correct_leniently(rollout.text, example.gold))}
    return Score(total, parts, read_answer(rollout.text, format_name).reason, last)
