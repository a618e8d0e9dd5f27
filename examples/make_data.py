"""Writes small data sets in the layouts of other people's files, for docs/data.md.

    python examples/make_data.py sums mine.csv            # exercise;result;worked, with semicolons
    python examples/make_data.py choices choices.jsonl    # four sums, one of them is right
    python examples/make_data.py fractions fractions.jsonl  # the answer is a fraction in LaTeX

The same command writes the same file.
"""

import argparse
import csv
import json
import sys
from fractions import Fraction
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # rlm, where it is not installed
from rlm.data.choices import LETTERS
from rlm.data.problems import additions


def sums(n: int) -> list[dict]:
    """Three numbers to add, with the working of the tiny base's own kind."""
    return [{"exercise": e.question, "result": e.gold, "worked": e.solution}
            for e in additions(0, n, digits=(1, 2))]  # fmt: skip


def choices(n: int) -> list[dict]:
    """Which of four sums is right? Worked out one by one until it is found.

    Results have one digit: the tiny base can learn to tell two of them apart.
    """
    random, rows = Random("choices"), []
    while len(rows) < n:
        numbers = [_small_sum(random) for _ in range(4)]
        right = random.randrange(4)
        said = [a + b if i == right else random.choice([c for c in range(1, 10) if c != a + b])
                for i, (a, b) in enumerate(numbers)]  # fmt: skip
        texts = [f"{a} + {b} = {c}" for (a, b), c in zip(numbers, said, strict=True)]
        found = ["agree" if i == right else "differ" for i in range(4)]
        steps = [f"{LETTERS[i]}. {texts[i]}? {a + b} and {said[i]} {found[i]}."
                 for i, (a, b) in enumerate(numbers)]  # fmt: skip
        if len(set(texts)) == 4:
            rows.append({"question": "Which sum is right?", "choices": texts,
                         "answer": right, "solution": "\n".join(steps[: right + 1])})  # fmt: skip
    return rows


def _small_sum(random: Random) -> tuple[int, int]:
    """Return two numbers whose sum has one digit."""
    while True:
        a, b = random.randint(1, 8), random.randint(1, 8)
        if a + b <= 9:
            return a, b


def fractions(n: int) -> list[dict]:
    r"""a/c + b/c, with the answer in lowest terms as \frac{p}{q}, or as a whole number."""
    random, rows = Random("fractions"), {}
    while len(rows) < n:
        below = random.randint(2, 9)
        a, b = random.randint(1, 9), random.randint(1, 9)
        value = Fraction(a + b, below)
        top, bottom = value.numerator, value.denominator
        shown = str(top) if bottom == 1 else rf"\frac{{{top}}}{{{bottom}}}"
        worked = f"{a} + {b} = {a + b}, so it is {a + b}/{below}."
        if bottom != below:
            worked += f"\nBoth by {below // bottom}: {top}/{bottom}."
        question = rf"What is \frac{{{a}}}{{{below}}} + \frac{{{b}}}{{{below}}}?"
        rows[question] = {"problem": question, "solution": f"{worked}\n" + rf"\boxed{{{shown}}}"}
    return list(rows.values())


SETS = {"sums": (sums, 400), "choices": (choices, 1500), "fractions": (fractions, 500)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=SETS)
    parser.add_argument("file", type=Path, help="a .csv or .jsonl file that is written")
    parser.add_argument("--rows", type=int, help="how many; without it some hundreds")
    given = parser.parse_args()
    make, usual = SETS[given.kind]
    rows = make(given.rows or usual)
    with open(given.file, "w", encoding="utf-8", newline="") as file:
        if given.file.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{given.file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
