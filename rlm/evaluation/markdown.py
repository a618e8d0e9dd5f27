"""Tables in Markdown that can also be read in a terminal, and the numbers in them."""

# What a reader of a bootstrap interval has to know.
WIDTH = (
    "The bootstrap knows only changes that occurred: if all or none of the questions changed, its "
    "interval has no width."
)


def table(head: list[str], rows: list[list]) -> str:
    """Return a Markdown table with its columns lined up; a | inside a cell is escaped.

    >>> print(table(["a", "b"], [[1, "x|y"]]))
    | a | b    |
    | - | ---- |
    | 1 | x\\|y |
    """
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def percent(share: dict) -> str:
    """Return a share with its interval, in per cent: `46.0 [41.7, 50.4]`."""
    return f"{100 * share['share']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def points(change: dict) -> str:
    """Return a difference of two shares with its interval, in percentage points, signed."""
    low, high = 100 * change["low"], 100 * change["high"]
    return f"{100 * change['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def p_value(p: float) -> str:
    """Return a p value: three decimals, then powers of ten.

    >>> p_value(0.25), p_value(3.2e-12), p_value(0.0)
    ('0.250', '3.2e-12', '<1e-300')
    """
    return "<1e-300" if p < 1e-300 else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
