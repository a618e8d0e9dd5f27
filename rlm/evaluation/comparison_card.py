"""The card of a comparison: its figures in Markdown, with what they mean beside them.

It makes no figure of its own: all come from `rlm.evaluation.comparison`, the facts from the script.
"""

from rlm.evaluation.markdown import WIDTH, p_value, percent, points, table

READINGS = ("strict", "lenient")


def card(figures: dict, facts: dict[str, object]) -> str:
    """Return the card. facts: what was asked and how, a line each (`task`, `seed`, ...)."""
    names = [model["model"] for model in figures["models"]]
    parts = [
        f"# {', '.join(names)} on the same {figures['questions']} questions",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        _accuracy(figures),
        _differences(figures),
        _parts(figures),
        _reasons(figures),
        _strata(figures, "by_steps", "steps", "the known solution's steps"),
        _strata(figures, "by_digits", "digits", "the digits of the largest number"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def brief(figures: dict) -> str:
    """Return the differences for the console, a few lines each."""
    lines = []
    for each in figures["differences"]:
        lines.append(f"{each['before']} -> {each['after']}")
        for reading in READINGS:
            change = each[reading]
            lines.append(f"  {reading:7}  {points(change)} points, p {p_value(change['p'])}, "
                         f"{change['gained']} gained, {change['lost']} lost")  # fmt: skip
        kinds = each["parts"]
        net = {kind: kinds[f"{kind}_gain"] - kinds[f"{kind}_loss"] for kind in
               ("format", "reasoning")}  # fmt: skip
        lines.append(f"  of {each['strict']['gained'] - each['strict']['lost']:+d} questions: "
                     f"format {net['format']:+d}, reasoning {net['reasoning']:+d}")  # fmt: skip
    return "\n".join(lines)


def _accuracy(figures: dict) -> str:
    columns = ("strict", "lenient", "wrong", "unreadable", "truncated")
    rows = [[m["model"], *(percent(m[name]) for name in columns)] for m in figures["models"]]
    return "\n\n".join((
        "## Accuracy",
        table(["model", "strict", "lenient", "wrong", "unreadable", "cut off"], rows),
        "Per cent of the questions, with 95 % Wilson intervals. *Strict*: the answer is right that "
        "stands where the format has it. *Lenient*: the last number of the text is right, whatever "
        "its format. *Wrong*: an answer was read and is not the known one. *Cut off*: at the "
        "maximum of tokens.",
    ))  # fmt: skip


def _differences(figures: dict) -> str:
    rows = [
        [f"{each['before']} → {each['after']}", reading, points(each[reading]),
         each[reading]["gained"], each[reading]["lost"], p_value(each[reading]["p"])]
        for each in figures["differences"] for reading in READINGS
    ]  # fmt: skip
    return "\n\n".join((
        "## Differences",
        table(["from → to", "reading", "points", "gained", "lost", "p"], rows),
        f"Percentage points, with the 95 % interval of {figures['resamples']:,} paired bootstrap "
        f"resamples of the questions (percentiles). {WIDTH} *Gained*, *lost*: "
        "questions that became right, became not right. *p*: McNemar's exact test, two-sided, not "
        "corrected for the number of comparisons.",
    ))  # fmt: skip


def _parts(figures: dict) -> str:
    rows, total = [], figures["questions"]
    for each in figures["differences"]:
        kinds, change = each["parts"], each["strict"]
        cells = [f"{sign}{kinds[name]} ({100 * kinds[name] / total:.1f})"
                 for name, sign in (("format_gain", "+"), ("reasoning_gain", "+"),
                                    ("format_loss", "-"), ("reasoning_loss", "-"))]  # fmt: skip
        net = change["gained"] - change["lost"]
        rows.append([f"{each['before']} → {each['after']}", f"{net:+d} ({100 * net / total:+.1f})",
                     *cells, kinds["number_was_right"]])  # fmt: skip
    return "\n\n".join((
        "## What the difference is made of",
        table(["from → to", "strict difference", "format gain", "reasoning gain", "format loss",
               "reasoning loss", "number was right"], rows),
        "Questions (percentage points); the four parts add up to the difference. *Format gain*: "
        "unreadable before, right now. *Reasoning gain*: read before and wrong, right now. Losses "
        "alike. *Number was right*: of the format gain, the questions whose last number was "
        "right before, so that only the form was missing.",
    ))  # fmt: skip


def _reasons(figures: dict) -> str:
    models = figures["models"]
    names = list(dict.fromkeys(name for model in models for name in model["reasons"]))
    if not names:
        return "## Why answers were not read\n\nEvery answer was read."
    none = {"count": 0, "share": 0.0}
    rows = []
    for model in models:
        found = [model["unreadable"], *(model["reasons"].get(name, none) for name in names)]
        rows.append([model["model"], *(f"{x['count']} ({100 * x['share']:.1f})" for x in found)])
    return "\n\n".join((
        "## Why answers were not read",
        table(["model", "unreadable", *names], rows),
        "Questions (per cent of all). The reasons are explained in rlm/answers/reading.py.",
    ))  # fmt: skip


def _strata(figures: dict, name: str, column: str, meaning: str) -> str:
    found = figures[name]
    if {each["label"] for each in found} == {0}:
        return ""
    names = [model["model"] for model in figures["models"]]
    head = [column, "questions", *(f"{m} ({r})" for m in names for r in READINGS)]
    rows = [
        [each["label"] or "unknown", each["questions"],
         *(percent(each["models"][m][r]) for m in names for r in READINGS)]
        for each in found
    ]  # fmt: skip
    return f"## By {meaning}\n\n{table(head, rows)}"
