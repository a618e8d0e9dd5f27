"""Seeded questions with known answers and worked solutions: additions and word problems.

Knows nothing of formats and splits: a solution is the bare reasoning, and `keep` says which
questions a split may have. The tables of what can happen in a story are in rlm/data/stories.py; the
same questions with other names and numbers are made in rlm/data/variants.py.

    additions(0, 100, digits=(1, 3), terse_fraction=0.6)
    word_problems(0, 100, steps=(2, 4))
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from rlm.data import stories
from rlm.data.stories import Event
from rlm.errors import InputError
from rlm.records import Example
from rlm.seeds import derive

LARGEST = 200  # result on the way of a word problem
PATIENCE = 20_000  # fruitless draws in a row after which a space of questions counts as used up

# Half of the additions are asked in the first wording.
ADDITION_QUESTIONS = (
    "Calculate {a} + {b} + {c}",
    "What is {a} + {b} + {c}?",
    "{a}+{b}+{c}",
    "Add {a}, {b} and {c}.",
    "Compute {a} + {b} + {c}.",
    "How much is {a} + {b} + {c}?",
    "What is the sum of {a}, {b}, and {c}?",
    "Calculate {a}+{b}+{c}",
    "{a} + {b} + {c} = ?",
)

Keep = Callable[[str], bool]
Draft = tuple[str, str, str, str, int]  # question, gold, solution, template, steps


def additions(
    seed: int,
    n: int,
    *,
    digits: tuple[int, int] = (1, 3),
    terse_fraction: float = 0.0,
    notes: bool = False,
    split: str = "train",
    exclude: frozenset[str] = frozenset(),
    keep: Keep | None = None,
) -> list[Example]:
    """Return n distinct sums of three numbers, each number of digits[0] to digits[1] digits.

    terse_fraction: share, 0 to 1, of the solutions that name the sum without working it out.
    notes: the sums of solutions have calculator notes, as GSM8K's have: 23 + 15 = <<23 + 15=38>>38.
    exclude: questions that must not come. keep: says of a question whether it may.
    The order of the same three numbers counts, their wording does not: it hangs on the numbers.
    InputError for impossible arguments, or when there are fewer than n such questions.
    """
    low, high = digits
    if not 1 <= low <= high <= 9:
        raise InputError(f"digits {low} to {high}: use 1 to 9, the smaller number first")

    def draw(rng: Random, terse: bool) -> Draft:
        a, b, c = (number(rng, low, high) for _ in range(3))
        template = "terse" if terse else "worked"
        solution = addition_solution(a, b, c, terse, notes)
        return addition_question(a, b, c), str(a + b + c), solution, template, 2

    return _collect("addition", draw, seed, n, split, terse_fraction, exclude, keep)


def number(rng: Random, low: int, high: int) -> int:
    """A number of `low` to `high` digits, every count of digits as likely; 0 never comes."""
    count = rng.randint(low, high)
    return rng.randint(10 ** (count - 1), 10**count - 1)


def addition_question(a: int, b: int, c: int) -> str:
    """The question of these three numbers; always in the same wording, chosen by their hash."""
    return addition_wording(a, b, c).format(a=a, b=b, c=c)


def addition_wording(a: int, b: int, c: int) -> str:
    """The one of ADDITION_QUESTIONS in which these three numbers are asked."""
    place = derive("wording", a, b, c)
    other = ADDITION_QUESTIONS[1 + place // 2 % (len(ADDITION_QUESTIONS) - 1)]
    return ADDITION_QUESTIONS[0] if place % 2 else other


def addition_solution(a: int, b: int, c: int, terse: bool = False, notes: bool = False) -> str:
    """The reasoning: two sums and a check, or the bare result.

    >>> print(addition_solution(23, 15, 8))
    I need to calculate the sum of 23, 15, and 8.
    1. Adding the first two: 23 + 15 = 38
    2. Adding the third: 38 + 8 = 46
    3. Verification: 23 + 15 + 8 is indeed 46.
    """
    if terse:
        # Not "23 + 15 + 8 is 46.": that would teach the check of a worked sum to guess, too.
        return f"The answer is {a + b + c}."
    first, second = (Sum(x, "+", y, ()).written(notes) for x, y in ((a, b), (a + b, c)))
    return (
        f"I need to calculate the sum of {a}, {b}, and {c}.\n"
        f"1. Adding the first two: {first}\n"
        f"2. Adding the third: {second}\n"
        f"3. Verification: {a} + {b} + {c} is indeed {a + b + c}."
    )


def word_problems(
    seed: int,
    n: int,
    *,
    steps: tuple[int, int] = (2, 4),
    scale: tuple[int, int] = (1, 1),
    terse_fraction: float = 0.0,
    notes: bool = False,
    split: str = "train",
    exclude: frozenset[str] = frozenset(),
    keep: Keep | None = None,
    told: "dict[str, Story] | None" = None,
) -> list[Example]:
    """Return n distinct word problems that take steps[0] to steps[1] sums.

    The other arguments and errors are those of `additions`; a terse solution is "The answer
    is 46.". Every number on the way is a whole one up to LARGEST. scale: what is counted is so many
    times as large, drawn anew for each question, and so is the largest number; one at least is
    then larger than LARGEST. told: takes the story of each question, by the question.
    """
    low, high = steps
    if not 2 <= low <= high <= 8:
        raise InputError(f"{low} to {high} steps: use 2 to 8, the smaller number first")
    if not 1 <= scale[0] <= scale[1] <= 50:
        raise InputError(f"scale {scale[0]} to {scale[1]}: use 1 to 50, the smaller number first")

    def draw(rng: Random, terse: bool) -> Draft:
        count = rng.randint(low, high)
        story = tell(rng, count, rng.randint(*scale) if scale[1] > 1 else 1)
        result = story.sums[-1].result
        solution = f"The answer is {result}." if terse else story.solution(notes)
        if told is not None:
            told[story.question] = story
        return story.question, str(result), solution, story.template, len(story.sums)

    return _collect("word_problems", draw, seed, n, split, terse_fraction, exclude, keep)


@dataclass(frozen=True, slots=True)
class Sum:
    """One step: left sign right, and the ways to word what it is for."""

    left: int
    sign: str
    right: int
    labels: tuple[str, ...]

    @property
    def result(self) -> int:
        a, b = self.left, self.right
        return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[self.sign]

    def written(self, notes: bool = False) -> str:
        """The sum as a step of a solution has it, perhaps with a calculator note.

        >>> Sum(31, "+", 15, ()).written(), Sum(31, "+", 15, ()).written(notes=True)
        ('31 + 15 = 46', '31 + 15 = <<31 + 15=46>>46')
        """
        text = f"{self.left} {self.sign} {self.right}"
        note = f"<<{text}={self.result}>>" if notes else ""
        return f"{text} = {note}{self.result}"


@dataclass(frozen=True, slots=True)
class Part:
    """An event as it is told: its numbers, its sentence and its question ("" if it asks none)."""

    event: Event
    drawn: dict[str, int]
    sentence: str
    asked: str


@dataclass(frozen=True, slots=True)
class Story:
    """A word problem: what is asked, the sums that answer it, the kinds of its events.

    parts: the events in order. closing: what is asked at the end, "" where an event asks.
    """

    question: str
    sums: tuple[Sum, ...]
    template: str
    words: dict[str, str]
    parts: tuple[Part, ...] = ()
    closing: str = ""

    def solution(self, notes: bool = False) -> str:
        """Numbered steps, one a line: `1. After buying 15 more: 31 + 15 = 46`."""
        return "\n".join(
            f"{i}. {s.labels[0]}: {s.written(notes)}" for i, s in enumerate(self.sums, 1)
        )


def tell(rng: Random, steps: int, factor: int = 1) -> Story:
    """A story of exactly `steps` sums, all that is counted `factor` times as large."""
    while True:
        story = _try_to_tell(rng, steps, factor)
        if story:
            return story


def _try_to_tell(rng: Random, steps: int, factor: int) -> Story | None:
    name, friend = rng.sample(sorted(stories.NAMES), 2)
    he = stories.NAMES[name]
    words = {"N": name, "F": friend, "He": he, "He2": rng.choice([name, he.lower()]),
             "it": rng.choice(stories.ITEMS), "box": rng.choice(stories.BOXES)}  # fmt: skip
    start = rng.choice(stories.STARTS)
    domain = start.domain
    sums: list = []
    parts: list = []
    value = _happen(start, rng, 0, words, sums, parts, factor)
    if value is None:
        return None
    while len(sums) < steps and not parts[-1].asked:
        ending = [e for e in stories.ENDINGS if len(sums) + len(e.work) == steps]
        choices = [e for e in (*stories.EVENTS, *ending) if e.domain == domain]
        if not choices:
            return None
        # An ending, where one fits, is as likely as any event: a third of the stories have one.
        value = _happen(rng.choice(choices), rng, value, words, sums, parts, factor)
        if value is None:
            return None
    if len(sums) != steps or (factor > 1 and max(s.result for s in sums) <= LARGEST):
        return None
    closing = "" if parts[-1].asked else rng.choice(stories.QUESTIONS[domain])
    return written(words, sums, parts, closing)


def _happen(event: Event, rng, value, words, sums, parts, factor) -> int | None:
    """Add the event to the story; the value after it, None if the event does not fit."""
    drawn = scaled(event, event.draw(rng, value // factor), factor)
    if drawn is None:
        return None
    sums += work(event, drawn, value, words)
    if any(not 0 < s.result <= LARGEST * factor for s in sums):
        return None
    asked = (rng.choice(event.sentences), rng.choice(event.questions) if event.questions else "")
    parts.append(Part(event, drawn, *asked))
    return sums[-1].result if event.work else drawn["x"]


def scaled(event: Event, drawn: dict[str, int] | None, factor: int) -> dict[str, int] | None:
    """The numbers drawn for an event of usual size, all that is counted `factor` times as large.

    So halves and shares still come out whole.
    """
    if drawn is None or factor == 1:
        return drawn
    grow = quantities(event)
    return {name: x * factor if name in grow else x for name, x in drawn.items()}


def quantities(event: Event) -> set[str]:
    """Which drawn numbers of an event grow if everything that is counted grows.

    Of a product the left factor does, of a quotient the divisor does not: 3 boxes of 5 become 21
    boxes of 5, and half stays half.
    """
    if not event.work:
        return {"x"}
    left = {left for left, _, _ in event.work}
    return left | {right for _, sign, right in event.work if sign in "+-"}


def work(event: Event, drawn: dict[str, int], value: int, words: dict[str, str]) -> list[Sum]:
    """The sums of an event, with the numbers drawn for it and the value before it."""
    told: dict[str, Any] = {**words, **drawn}
    known, sums = drawn | {"v": value}, []
    for (left, sign, right), labels in zip(event.work, event.labels, strict=True):
        made = Sum(known[left], sign, known[right], tuple(s.format(**told) for s in labels))
        sums.append(made)
        known["w"] = made.result
    return sums


def written(words: dict[str, str], sums: list[Sum], parts: list[Part], closing: str) -> Story:
    """The story of these parts: their sentences and questions with the words and numbers in."""
    told = [text.format(**words | part.drawn)
            for part in parts for text in (part.sentence, part.asked) if text]  # fmt: skip
    if closing:
        told.append(closing.format(**words))
    template = "+".join(part.event.kind for part in parts)
    return Story(" ".join(told), tuple(sums), template, words, tuple(parts), closing)


def _collect(
    task: str,
    draw: Callable[[Random, bool], Draft],
    seed: int,
    n: int,
    split: str,
    terse_fraction: float,
    exclude: frozenset[str],
    keep: Keep | None,
) -> list[Example]:
    """Return n examples of distinct questions; the first ones do not hang on n."""
    if n < 1:
        raise InputError(f"{n} questions: use 1 or more")
    if not 0 <= terse_fraction <= 1:
        raise InputError(f"terse fraction {terse_fraction}: use a share from 0 to 1")
    rng = Random(derive(task, split, seed))
    examples: list[Example] = []
    seen, fruitless = set(exclude), 0
    while len(examples) < n:
        # Drawn for every question: the same ones come whatever the share of terse solutions.
        question, *rest = draw(rng, rng.random() < terse_fraction)
        if question in seen or (keep is not None and not keep(question)):
            fruitless += 1
            if fruitless == PATIENCE:
                raise InputError(
                    f"{n} questions of {task}, split {split}: only {len(examples)} different "
                    "ones were found; ask for fewer, or widen the digits or the steps"
                )
            continue
        fruitless = 0
        seen.add(question)
        name = f"{task}-{split}-{seed}-{len(examples)}"
        answer: list[Any] = rest
        examples.append(Example(name, question, *answer))
    return examples
