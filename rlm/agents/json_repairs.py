"""What can be put right in a text that is nearly JSON: text around it, commas, open brackets.

    >>> closed(without_trailing_commas('{"a": [1, 2, ], "b": {'))
    '{"a": [1, 2 ], "b": {}}'

It does not know what the JSON means. Strings are left alone.
"""

from itertools import pairwise


def without_text_around(text: str) -> str:
    """Return the text from its first brace, which it must have, to its last closing bracket."""
    start = text.index("{")
    end = max(text.rfind("}"), text.rfind("]"))
    return text[start : end + 1] if end > start else text[start:]


def _marks(text: str):
    """Yield (place, character) of what stands outside the strings of a JSON text."""
    inside = escaped = False
    for place, character in enumerate(text):
        if inside:
            inside = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            inside = True
        else:
            yield place, character


def without_trailing_commas(text: str) -> str:
    """Return the text without the commas that only a closing bracket follows."""
    marks = [(place, c) for place, c in _marks(text) if not c.isspace()]
    pairs = pairwise(marks)
    drop = {
        place
        for (place, c), (after, follows) in pairs
        if c == "," and follows in "]}" and not text[place + 1 : after].strip()
    }
    return "".join(c for place, c in enumerate(text) if place not in drop)


def closed(text: str) -> str:
    """Return the text with the brackets that were left open closed; a string is not."""
    open_ones = []
    for _, character in _marks(text):
        if character in "{[":
            open_ones.append("}" if character == "{" else "]")
        elif open_ones and character == open_ones[-1]:
            open_ones.pop()
    return text + "".join(reversed(open_ones))


REPAIRS = {
    "text_around": without_text_around,
    "trailing_comma": without_trailing_commas,
    "unclosed": closed,
}
