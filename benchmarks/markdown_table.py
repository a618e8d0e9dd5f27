"""Rows as a table in Markdown."""

from collections.abc import Iterable


def markdown_table(rows: Iterable[Iterable]) -> str:
    """Return the rows as a table; the first is its head.

    >>> print(markdown_table([["", "seconds"], ["ours", 4]]))
    |  | seconds |
    | --- | --- |
    | ours | 4 |
    """
    head, *others = ([str(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *others]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
