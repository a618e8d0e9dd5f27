"""Multiple choice: the texts of the choices, the letter of the right one, the question with both.

Knows how data sets write them: a list, a dictionary of texts and labels (ARC), a text that holds a
JSON list, letters in front of the texts (AQuA), a column a choice.
"""

import json
import re

from rlm.data.layouts import LETTERS, value_at
from rlm.data.readers import Number
from rlm.errors import InputError

LETTER = re.compile(r"\(?([A-Ja-j])[).:]?")


def choice_texts(row: dict, columns: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the texts of a row's choices; InputError unless they are 2 to 10 different texts."""
    values = _listed(value_at(row, columns[0])) if len(columns) == 1 else [
        row.get(column) for column in columns
    ]  # fmt: skip
    if len(columns) > 1:
        while values and values[-1] in (None, ""):
            values.pop()
    if not isinstance(values, list):
        raise InputError(f"{where}: field '{columns[0]}' is no list of choices")
    texts = [str(v).strip() if isinstance(v, str | int | float) else "" for v in values]
    texts = _without_letters(texts)
    if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
        raise InputError(f"{where}: {len(texts)} choices, of which {texts.count('')} are blank; "
                         f"2 to {len(LETTERS)} texts are needed")  # fmt: skip
    if len(set(texts)) < len(texts):
        raise InputError(f"{where}: two of its choices are the same")
    return tuple(texts)


def _listed(value):
    """Return the list that a column of choices stands for, or the value itself if it is none."""
    if isinstance(value, dict):
        return value.get("text")
    if isinstance(value, str) and not isinstance(value, Number):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [v.get("text") for v in value]
    return value


def _without_letters(texts: list[str]) -> list[str]:
    """Return the texts without "A)", "B)", ... in front, where each has its own."""
    heads = [re.match(rf"\(?{letter}[).:]\s*(?=\S)", text)
             for letter, text in zip(LETTERS, texts, strict=False)]  # fmt: skip
    if len(heads) == len(texts) and all(heads):
        return [text[head.end() :] for head, text in zip(heads, texts, strict=True) if head]
    return texts


def choice_gold(given, row: dict, column: str, choices: tuple[str, ...], where: str) -> str:
    """Return the letter of the right choice.

    given: a number of a JSON or Parquet file is a place, from 0; a text is a label of the data
    set, a letter, or the whole text of a choice.
    """
    count = len(choices)
    if isinstance(given, Number | int) and not isinstance(given, bool):
        place = int(given) if re.fullmatch(r"[0-9]{1,3}", str(given)) else count
        if place < count:
            return LETTERS[place]
        raise InputError(f"{where}: the answer {str(given)[:20]} is no place among {count} "
                         "choices; they count from 0")  # fmt: skip
    text = given.strip() if isinstance(given, str) else ""
    column_value = row.get(column)
    labels = column_value.get("label") if isinstance(column_value, dict) else None
    if isinstance(labels, list) and len(labels) == count and text in map(str, labels):
        return LETTERS[list(map(str, labels)).index(text)]
    letter = LETTER.fullmatch(text)
    if letter and LETTERS.index(letter[1].upper()) < count:
        return letter[1].upper()
    same = [place for place, choice in enumerate(choices) if _bare(choice) == _bare(text)]
    if len(same) == 1 and text:
        return LETTERS[same[0]]
    shown = f"{text[:60]!r}" if text else f"a {type(given).__name__}"
    raise InputError(f"{where}: the answer {shown} is neither a letter A to {LETTERS[count - 1]} "
                     "nor the text of one choice")  # fmt: skip


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def with_choices(question: str, choices: tuple[str, ...]) -> str:
    """Return the question with its choices under it, a line each.

    >>> print(with_choices("6 * 7?", ("41", "42")))
    6 * 7?
    A. 41
    B. 42
    """
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines])
