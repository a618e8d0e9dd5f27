"""Which column of a data set is the question, which the answer, which the solution.

Knows the names that data sets use and how nested values are reached; reads no file and no answer.
Names count without case, spaces, - and _: "Problem", "expected_answer" and "expectedAnswer" are
known. What was taken is said in one line; what is not known has to be told by name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rlm.errors import InputError

QUESTION = (
    "question", "problem", "prompt", "query", "instruction", "questionstem", "messages",
    "conversations", "conversation", "input",
)  # fmt: skip
ANSWER = (
    "answer", "expectedanswer", "finalanswer", "groundtruth", "goldanswer", "gold", "answerkey",
    "correctanswer", "correct", "target",
)  # fmt: skip
SOLUTION = (
    "solution", "generatedsolution", "rationale", "reasoning", "explanation", "cot", "completion",
    "response", "output",
)  # fmt: skip
CHOICES = ("choices", "options")
LETTERS = "ABCDEFGHIJ"
CONVERSATIONS = ("messages", "conversations", "conversation")
# Where verl's Parquet files have the gold.
NESTED_ANSWERS = ("reward_model.ground_truth", "extra_info.answer")
LOOK_AT = 100  # rows of a file that say which columns it has


@dataclass(frozen=True)
class Reading:
    """How the user wants rows to be read.

    question, answer, solution: columns, or dotted paths into nested ones; None for each that is
    found by its name. kind: of the answers, where a row has none of its own; None: the task's.
    skip_bad_rows: rows that cannot be used are left out and counted; else they are an error. notes:
    solutions keep their calculator notes.
    """

    question: str | None = None
    answer: str | None = None
    solution: str | None = None
    kind: str | None = None
    skip_bad_rows: bool = False
    notes: bool = False

    def flags(self) -> dict[str, str]:
        """Return flag -> column of those that were named."""
        named = {"question": self.question, "answer": self.answer, "solution": self.solution}
        return {f"--{role}-field": path for role, path in named.items() if path}


@dataclass(frozen=True)
class Layout:
    """Paths of the columns. answer: None where the solution states it.

    solution: None where the first rows have none; `solution` of a later row counts all the same.
    choices: one column with a list, or a column a choice; () for none. context: a second part of
    the question, which may be empty. notes: of `Reading`.
    """

    question: str
    answer: str | None
    solution: str | None
    choices: tuple[str, ...] = ()
    context: str | None = None
    notes: bool = False

    @property
    def reasoning(self) -> str:
        """The path of the solution, whether or not the first rows have one."""
        return self.solution or "solution"

    def in_words(self) -> str:
        """Return the layout as one line says it."""
        parts = [f"question from {self.question!r}"]
        if self.context:
            parts[0] += f" and {self.context!r}"
        if self.choices:
            parts.append(f"choices from {', '.join(map(repr, self.choices))}")
        if self.answer:
            parts.append(f"answer from {self.answer!r}")
        elif self.solution:
            parts.append(f"answer from what {self.solution!r} states")
        if self.solution:
            parts.append(f"solution from {self.solution!r}")
        return ", ".join(parts)


OWN = Layout("question", "answer", "solution")


def value_at(row, path: str):
    """Return the value of a column, or of a dotted path into nested ones; None if it is not there.

    >>> value_at({"a": {"b": [1, 2]}, "x.y": 3}, "a.b.1"), value_at({"x.y": 3}, "x.y")
    (2, 3)
    """
    if isinstance(row, dict) and path in row:
        return row[path]
    value = row
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and re.fullmatch(r"-?[0-9]{1,6}", part):
            value = value[int(part)] if -len(value) <= int(part) < len(value) else None
        else:
            return None
    return value


def layout_of(rows: list[dict], where: str, given: Reading) -> Layout:
    """Return the layout of the first rows of a file, the columns that are `given` before others.

    InputError if no question, or neither an answer nor a solution, is known or given, and for a
    given column that none of the rows has; it names those that are there.
    """
    columns = columns_of(rows)
    for flag, path in given.flags().items():
        if all(value_at(row, path) is None for row in rows):
            raise InputError(f"{flag} {path}: {where} has no such column; there are: "
                             f"{', '.join(paths_of(rows))}")  # fmt: skip
    taken = [path.partition(".")[0] for path in given.flags().values()]
    free = {name: column for name, column in columns.items() if column not in taken}
    question = given.question or _first(QUESTION, free)
    choices = _choices(free)
    answer = given.answer or _first(ANSWER, free) or _nested(rows)
    solution = given.solution or _first(SOLUTION, free)
    context = free.get("input") if question and question == free.get("instruction") else None
    if question and _plain_name(question) in CONVERSATIONS and not solution:
        solution = question
    if not question or not (answer or solution):
        missing = "question" if not question else "answer"
        raise InputError(
            f"{where}: field '{missing}' is missing; there are: {', '.join(paths_of(rows))}; name "
            f"the column by --{missing}-field"
        )
    return Layout(question, answer, solution, choices, context, given.notes)


def _plain_name(column: str) -> str:
    return re.sub(r"[\s_-]", "", column).lower()


def columns_of(rows: Iterable[dict]) -> dict[str, str]:
    """Return plain name -> column of all that have a value in one of the rows."""
    found: dict[str, str] = {}
    for row in rows:
        for column, value in row.items():
            if value is not None:
                found.setdefault(_plain_name(column), column)
    return found


def paths_of(rows: Iterable[dict], most: int = 20) -> list[str]:
    """Return the columns of the rows and the paths into nested ones, in quotes; "none" for none."""
    found: dict[str, None] = {}
    for row in rows:
        for column, value in row.items():
            inner = value if isinstance(value, dict) else {}
            found |= dict.fromkeys([repr(f"{column}.{name}") for name in inner] or [repr(column)])
    names = list(found)
    return names[:most] + ["..."] * (len(names) > most) or ["none"]


def _first(names: tuple[str, ...], columns: dict[str, str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _nested(rows: list[dict]) -> str | None:
    """Return the known path of an answer that is nested."""
    return next((p for p in NESTED_ANSWERS if any(value_at(r, p) is not None for r in rows)), None)


def _choices(columns: dict[str, str]) -> tuple[str, ...]:
    """Return the columns of the choices: one with all, or A, B, ... or option_1, option_2, ..."""
    one = _first(CHOICES, columns)
    if one:
        return (one,)
    for prefix in ("", "choice", "option"):
        for marks in (LETTERS.lower(), "123456789"):
            names = []
            for mark in marks:
                if f"{prefix}{mark}" not in columns:
                    break
                names.append(columns[f"{prefix}{mark}"])
            if len(names) >= 2 and (prefix or marks[0] == "a"):
                return tuple(names)
    return ()
