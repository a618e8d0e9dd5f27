"""How much of the test questions stands in the training questions: shared runs of words.

It knows questions only, as texts. Words are those of `rlm.data.splits.question_key`: numbers and
the signs of a sum are words, case and punctuation are not. A question of fewer than n words counts
as one run of all its words. Source of the measure: GPT-3, arXiv:2005.14165, appendix C, with 13
words; questions are shorter than pages, so here it is 8.
"""

import re
from collections.abc import Iterable

from rlm.data.splits import question_key

WORDS = 8
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def runs(question: str, n: int = WORDS, *, keep_numbers: bool = True) -> set[str]:
    """Return the runs of n words of a question; without keep_numbers every number is a #.

    >>> sorted(runs("Tom has 3 red pens.", 4, keep_numbers=False))
    ['has # red pens', 'tom has # red']
    """
    words = question_key(question).split()
    if not keep_numbers:
        words = ["#" if NUMBER.fullmatch(word) else word for word in words]
    return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def shared(
    test: Iterable[str], training: Iterable[str], n: int = WORDS, *, keep_numbers: bool = True
) -> list[bool]:
    """Return for each test question whether it shares a run of n words with any training one."""
    known = set()
    for question in training:
        known |= runs(question, n, keep_numbers=keep_numbers)
    return [bool(runs(question, n, keep_numbers=keep_numbers) & known) for question in test]
