"""Rows of data sets -> Examples: what is question, gold answer and reasoning in each.

Knows the fields of gsm8k and of the user's own JSONL; reads no file. A gold answer that cannot
be read is an InputError here, never a reward later.
"""

import re

from rlm.answers.reading import read_gold
from rlm.data.sources import Number
from rlm.errors import InputError
from rlm.records import Example

NOTE = re.compile(r"<<[^<>\n]*>>")  # GSM8K's calculator notes, <<48/2=24>>
SURROGATE = re.compile("[\ud800-\udfff]")


def own_example(row: dict, where: str, id: str) -> Example:
    """Return the example of a user's row: question, answer and, if there is one, solution.

    An answer in GSM8K's manner ("reasoning #### 42") brings its own solution.
    """
    question = field(row, "question", where)
    answer = field(row, "answer", where, number=True)
    gold = checked_gold(answer, where)
    given = row.get("solution")
    if given is None or (isinstance(given, str) and not given.strip()):
        solution = answer.rpartition("####")[0]
    else:
        solution = field(row, "solution", where)
        solution = solution.rpartition("####")[0] if "####" in solution else solution
    plain = NOTE.sub("", solution).strip() or None
    return Example(id, question, gold, plain, steps=step_count(solution))


def gsm8k_example(row: dict, where: str, id: str) -> Example:
    """Return the example of a GSM8K row: its answer is "reasoning #### gold", notes inside."""
    question = field(row, "question", where)
    answer = field(row, "answer", where)
    reasoning, mark, _ = answer.rpartition("####")
    if not mark:
        raise InputError(f"{where}: 'answer' has no '#### NUMBER' at its end, as gsm8k has it")
    plain = NOTE.sub("", reasoning).strip()
    return Example(id, question, checked_gold(answer, where), plain, steps=step_count(reasoning))


def step_count(solution: str) -> int:
    """Return how many steps a solution takes: its calculator notes, else its lines; 0 if empty.

    >>> step_count("48/2 = <<48/2=24>>24 in May.\\nIn all 48 + 24 = <<48+24=72>>72.\\nSo 72.")
    2
    """
    return len(NOTE.findall(solution)) or sum(bool(line.strip()) for line in solution.splitlines())


def checked_gold(answer: str, where: str) -> str:
    """Return the text of the gold answer: what follows the last ####, else all of it."""
    gold = answer.rpartition("####")[2].strip()
    try:
        read_gold(gold)
    except ValueError as error:
        raise InputError(f"{where}: the gold answer cannot be read: {error}") from None
    return gold


def field(row: dict, name: str, where: str, *, number: bool = False) -> str:
    """Return a text field without the space around it; InputError if it is not there or no text.

    number: a number is taken as well, as it is written.
    """
    value = row.get(name)
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        value = Number(value)
    if value is None:
        have = ", ".join(sorted(map(repr, row)))[:100] or "none"
        raise InputError(f"{where}: field '{name}' is missing; there are: {have}")
    if not isinstance(value, str) or (isinstance(value, Number) and not number):
        kind = "number" if isinstance(value, Number) else type(value).__name__
        allowed = "text or a number" if number else "text"
        raise InputError(f"{where}: field '{name}' is a {kind}; it must be {allowed}")
    text = str(value).strip()
    if not text:
        raise InputError(f"{where}: field '{name}' is empty; fill it in or take the line out")
    if "\0" in text or SURROGATE.search(text):
        raise InputError(f"{where}: field '{name}' holds a NUL or half a character (surrogate)")
    return text
