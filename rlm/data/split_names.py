"""Which split a file is, by the words of its name and of the folders that it stands in.

A word counts anywhere in a name: test.jsonl, gsm8k_test.jsonl, gsm8k.test-00000-of-00001.parquet,
MathTest.csv, test/part-0.jsonl. A word of evaluation beats one of training, so whatever says that
it is held out is never trained on. Knows names alone; opens nothing.
"""

import re
from itertools import pairwise
from pathlib import Path

CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
PARTS = r"(?:set|data|split|part|file|questions?|examples?|rows)?s?"
# In the order in which they count. "eval" is test, or validation where another file is test.
WORDS = {
    "test": re.compile(
        rf"(?:te?st|testing|testmini|hold ?out|held ?out|bench(?:mark)?|unseen|blind){PARTS}"
    ),
    "validation": re.compile(rf"(?:val|valid|validat(?:e|ion|ing)|dev|development){PARTS}"),
    "eval": re.compile(rf"(?:eval|evaluat(?:e|ion|ing)){PARTS}"),
    "train": re.compile(rf"(?:trn|train|training|trainval){PARTS}"),
}


def words_of_name(name: str) -> list[str]:
    """Return the words of a file's or folder's name, in lower case.

    >>> words_of_name("gsm8kTest-00000-of-00001")
    ['gsm', 'k', 'test', 'of']
    """
    return re.findall(r"[a-z]+", CAMEL.sub(" ", name).lower())


def said(name: str) -> str | None:
    """Return what a name says: "train", "validation", "test", "eval", None if nothing.

    >>> said("gsm8k_test"), said("held-out"), said("train_val"), said("testament")
    ('test', 'test', 'validation', None)
    """
    words = words_of_name(name)
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    for split, pattern in WORDS.items():
        if any(map(pattern.fullmatch, words + pairs)):
            return split
    return None


def splits_of(files: list[Path], root: Path) -> dict[Path, str | None]:
    """Return the split of each file: "train", "validation" or "test", None if nothing says it.

    The names of the folders between root and a file count too. Evaluation without a kind is the
    test, or the validation where another file is the test.
    """
    found = {file: _said_on_the_way(file, root) for file in files}
    evaluation = "validation" if "test" in found.values() else "test"
    return {file: evaluation if split == "eval" else split for file, split in found.items()}


def _said_on_the_way(file: Path, root: Path) -> str | None:
    """Return what the file and its folders below root say: evaluation if one of them does."""
    inside = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    splits = [said(name) for name in (file.stem, *reversed(inside))]
    held_out = [split for split in splits if split not in (None, "train")]
    return held_out[0] if held_out else next((split for split in splits if split), None)
