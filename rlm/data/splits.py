"""Which split a question belongs to, and the proof that training sees none that is held out.

The split hangs on the question's normalised text alone: not on the task, the file, the order or
a seed. So a question that stands in two data sets is on the same side in both; but for sets so
small that a split would have none (`filled`).
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from rlm.errors import InputError
from rlm.records import Example
from rlm.seeds import derive

SPLITS = ("train", "validation", "test")
# Shares of the questions, in the order of SPLITS; they add up to 1.
SHARES = (0.90, 0.05, 0.05)

SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})
DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Numbers, runs of letters, and signs that change a sum; a hyphen counts only before a number.
TOKENS = re.compile(r"\d+(?:\.\d+)?|[^\W\d]+|[+*/=^%<>]|-(?=\s*[($.]*\d)")


@lru_cache(maxsize=1 << 16)  # data sets repeat their questions: one solution a row
def question_key(text: str) -> str:
    """Return the question without what does not make it another one: case, spaces, punctuation.

    A text without any letter or digit keeps its own characters.

    >>> question_key("What is 1,200+3 ?") == question_key("what  is 1200 + 3")
    True
    >>> question_key("5 - 3") == question_key("5 + 3")
    False
    """
    # Lowered before and after: NFKC brings capitals of its own (K from the Kelvin sign).
    plain = unicodedata.normalize("NFKC", text.casefold()).casefold().translate(SIGNS)
    tokens = TOKENS.findall(DIGIT_COMMA.sub("", plain))
    return " ".join(tokens) or " ".join(text.split())


def hash_of(question: str) -> float:
    """Return a number of [0, 1), spread evenly over questions, by the sha256 of what counts."""
    digest = hashlib.sha256(question_key(question).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(question: str) -> str:
    """Return the split of a question, one of SPLITS, by the sha256 of its normalised text."""
    place = hash_of(question)
    train, validation, _ = SHARES
    if place < train:
        return "train"
    return "validation" if place < train + validation else "test"


def place_of(question: str, cut: Sequence[str]) -> str:
    """Return the split of a training part's question, if those in `cut` are taken from it.

    Where test has a part of its own, the hash's share for test goes to validation: so whatever
    one data set holds out by hash, another does not train on.
    """
    split = split_of(question)
    return split if split in cut or split == "train" else (*cut, "train")[0]


def filled(places: dict[str, str], wanted: list[str]) -> dict[str, str]:
    """Return the splits of the questions, each split of `wanted` with one at least where it can.

    Of a few questions the hash may leave a split without any. Training is filled first, with the
    question of the least hash; then the others in their order, each with the training question of
    the greatest, as long as training has two. What has questions keeps all it has, so nothing
    changes in a set of a hundred questions or so.

    >>> filled({"1 + 1": "train", "2 + 2": "train"}, ["validation", "test"])
    {'1 + 1': 'validation', '2 + 2': 'train'}
    >>> filled({"1 + 1": "test"}, ["validation", "test"])
    {'1 + 1': 'train'}
    """
    found = dict(places)
    for split in ("train", *wanted):
        if split in found.values():
            continue
        if split == "train":
            spare = sorted(found, key=hash_of)[:1]
        else:
            training = [question for question, place in found.items() if place == "train"]
            spare = sorted(training, key=hash_of)[1:][-1:]
        found |= dict.fromkeys(spare, split)
    return found


def keys(examples: Iterable[Example]) -> set[str]:
    """Return the normalised questions of the examples."""
    return {question_key(example.question) for example in examples}


def without(
    train: Iterable[Example], *held_out: Iterable[Example]
) -> tuple[list[Example], list[Example]]:
    """Return (kept, dropped): the training examples whose question no held-out set holds."""
    forbidden = set().union(*(keys(examples) for examples in held_out))
    kept: list[Example] = []
    dropped: list[Example] = []
    for example in train:
        (dropped if question_key(example.question) in forbidden else kept).append(example)
    return kept, dropped


def check_no_overlap(train: Iterable[Example], *held_out: Iterable[Example]) -> None:
    """InputError with the number and the first example if training would see a held-out one."""
    _, dropped = without(train, *held_out)
    if dropped:
        raise InputError(
            f"{len(dropped)} training questions are also held out for evaluation, the first is "
            f"{dropped[0].id}; take them out of one of the two (rlm.data.splits.without does)"
        )


def subset(examples: list[Example], n: int | None, seed: int) -> list[Example]:
    """Return `n` of the examples, chosen by hash and in their own order; all if None or 0.

    The choice for a small n is part of the choice for a larger one of the same seed.
    """
    if not n or n >= len(examples):
        return list(examples)
    order = sorted(range(len(examples)), key=lambda i: (derive(seed, "subset", examples[i].id), i))
    return [examples[i] for i in sorted(order[:n])]
