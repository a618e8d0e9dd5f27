"""Questions that were trained on, asked again: other names, other numbers, larger ones, one more.

A model that learned the method answers them as well as the ones it saw; one that learned the
questions does not (GSM-Symbolic, arXiv:2410.05229). The wording stays, word for word, but for
what is swapped. `keep` says which questions may come; splits are not known here.

    variants(seen, "numbers", seed=0, keep=lambda question: split_of(question) == "test")
"""

import re
from collections.abc import Callable
from random import Random

from rlm.data.problems import LARGEST, Story, addition_wording, number, scaled, work, written
from rlm.data.stories import BOXES, ITEMS, NAMES
from rlm.errors import InputError
from rlm.records import Example
from rlm.seeds import derive

TRIES = 2000  # draws after which a question is left out: it has no variant that may come
FACTORS = (5, 9)  # how many times as large the quantities of a larger story are

# What is done to a question, and what it is called in a report.
WORD_CHANGES = {
    "names": "other names and things, same numbers",
    "numbers": "other numbers, same names",
    "both": "other names, things and numbers",
    "larger": f"other numbers, {FACTORS[0]} to {FACTORS[1]} times as large",
}
ADDITION_CHANGES = {
    "numbers": "other numbers of as many digits",
    "larger": "numbers of one digit more than trained on",
    "longer": "one number more to add",
}


def variants(
    seen: list[Example],
    change: str,
    *,
    seed: int,
    keep: Callable[[str], bool],
    stories: dict[str, Story] | None = None,
    digits: int = 3,
) -> list[Example]:
    """Return a variant of each question, in order; its id is the question's with ~change behind.

    change: one of WORD_CHANGES if `stories` are given (the story of each question, by the
    question), else one of ADDITION_CHANGES. digits: the most that an addition was trained with.
    A question is left out when TRIES draws gave none that `keep` takes. No two are the same.
    InputError for an unknown change, or for `larger` with 9 digits.
    """
    known = ADDITION_CHANGES if stories is None else WORD_CHANGES
    if change not in known:
        raise InputError(f"change {change}: unknown; choose one of {', '.join(known)}")
    if stories is None and change == "larger" and digits > 8:
        raise InputError("additions of 9 digits: there are no larger ones; use 8 digits or fewer")
    found, used = [], {e.question for e in seen}
    drawn: tuple[str, int, int] | None
    for source in seen:
        rng = Random(derive("variant", change, seed, source.id))
        for _ in range(TRIES):
            if stories is None:
                drawn = change_addition(source.question, change, rng, digits)
            else:
                drawn = change_story(stories[source.question], change, rng)
            if drawn and drawn[0] not in used and keep(drawn[0]):
                question, gold, steps = drawn
                used.add(question)
                id = f"{source.id}~{change}"
                found.append(Example(id, question, str(gold), None, source.template, steps))
                break
    return found


def change_addition(question: str, change: str, rng: Random, digits: int) -> tuple[str, int, int]:
    """Return (question, sum, steps) in the wording of an addition, with numbers drawn anew.

    >>> change_addition("Calculate 23 + 15 + 8", "longer", Random(0), 3)
    ('Calculate 15 + 71 + 75 + 7', 168, 3)
    """
    given = re.findall(r"\d+", question)
    wording = addition_wording(*map(int, given))
    counts = [digits + 1] * 3 if change == "larger" else [len(x) for x in given]
    a, b, c, more = (number(rng, n, n) for n in (*counts, counts[rng.randrange(3)]))
    if change != "longer":
        return wording.format(a=a, b=b, c=c), a + b + c, 2
    between = wording.partition("{a}")[2].partition("{b}")[0]
    longer = wording.replace("{a}", "{a}" + between + "{more}")
    return longer.format(a=a, b=b, c=c, more=more), a + b + c + more, 3


def change_story(story: Story, change: str, rng: Random) -> tuple[str, int, int] | None:
    """Return (question, result, steps) of a story told again; None if these draws do not fit."""
    words = other_words(story.words, rng) if change in ("names", "both") else story.words
    factor = rng.randint(*FACTORS) if change == "larger" else 1
    value, sums, parts = 0, [], []
    for part in story.parts:
        drawn = part.drawn if change == "names" else part.event.draw(rng, value // factor)
        drawn = scaled(part.event, drawn, factor)
        if drawn is None:
            return None
        parts.append(type(part)(part.event, drawn, part.sentence, part.asked))
        sums += work(part.event, drawn, value, words)
        value = sums[-1].result if part.event.work else drawn["x"]
    results = [each.result for each in sums]
    if min(results) <= 0 or max(results) > LARGEST * factor:
        return None
    if factor > 1 and max(results) <= LARGEST:
        return None
    return written(words, sums, parts, story.closing).question, results[-1], len(sums)


def other_words(words: dict[str, str], rng: Random) -> dict[str, str]:
    """Return the words of a story with other people, things and containers."""
    name, friend = rng.sample(sorted(set(NAMES) - {words["N"], words["F"]}), 2)
    he = NAMES[name]
    return {
        "N": name,
        "F": friend,
        "He": he,
        "He2": name if words["He2"] == words["N"] else he.lower(),
        "it": rng.choice([x for x in ITEMS if x != words["it"]]),
        "box": rng.choice([x for x in BOXES if x != words["box"]]),
    }
