"""The cards of `robustness` and `symbolic`: their metrics in Markdown, with what they mean.

They make no figure of their own.
"""

from rlm.evaluation.comparison import RESAMPLES
from rlm.evaluation.markdown import WIDTH, p_value, percent, points, table


def robustness_card(sets: list[dict], overlap: list[dict], facts: dict[str, object]) -> str:
    """Return the card of a robustness test; facts: what was asked and how, a line each."""
    names = list(sets[0]["models"])
    return "\n\n".join((
        f"# {', '.join(names)}: the questions that were trained on, changed and made harder",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## Accuracy",
        robustness_table(sets, meanings=True),
        "Per cent right, with 95 % Wilson intervals. *To seen*: where a set asks the seen "
        "questions in another shape, the difference to the same questions as seen, in percentage "
        f"points, with the 95 % interval of {RESAMPLES:,} paired bootstrap resamples and McNemar's "
        f"exact p. {WIDTH} *Lenient*: the last number of the text is right, whatever its format. A "
        "model that learned the method loses little from *seen* to *unseen*, *names*, *numbers* "
        "and *both*; *larger* and *longer* are outside of what was trained. What is made up "
        "belongs to the test split by its hash; a seen question without such a variant is left "
        "out.",
        _overlap(overlap),
    )) + "\n"  # fmt: skip


def robustness_table(sets: list[dict], *, meanings: bool = False) -> str:
    """Return the accuracies, a line a set; `meanings` adds what a set is."""
    names = list(sets[0]["models"])
    head = ["set", *(["what it is"] if meanings else []), "questions"]
    for name in names:
        head += [name, "to seen", "p", "lenient"]
    lines = []
    for each in sets:
        cells = [each["set"], *([each["meaning"]] if meanings else []), each["questions"]]
        for name in names:
            found, change = each["models"][name], each["models"][name]["change"]
            cells.append(percent(found["strict"]))
            cells += [points(change), p_value(change["p"])] if change else ["", ""]
            cells.append(f"{100 * found['lenient']['share']:.1f}")
        lines.append(cells)
    return table(head, lines)


def _overlap(overlap: list[dict]) -> str:
    words = overlap[0]["words"]
    lines = [[each["set"], each["questions"], *(percent(each[name]) for name in
              ("same", "kept", "normalised"))] for each in overlap]  # fmt: skip
    return "\n\n".join((
        "## How much of it stands in the training questions",
        table(["set", "questions", "the same question", f"{words} words, numbers kept",
               f"{words} words, numbers alike"], lines),
        f"Per cent of a set's questions that stand in the training set as a whole, or share a run "
        f"of {words} words with a training question: with the numbers as they are, and with every "
        "number taken as the same. A shorter question counts as one run.",
    ))  # fmt: skip


def symbolic_card(found: list[dict], facts: dict[str, object]) -> str:
    """Return the card of several draws of templates; found: `symbolic.spread` of each model."""
    names = [each["model"] for each in found]
    templates = found[0]["by_template"]
    head, lines = ["template", "draws"], []
    for name in names:
        head += [f"{name}: mean", "deviation"]
    for template, each in templates.items():
        cells = [template, each["draws"]]
        for model in found:
            figures = model["by_template"][template]
            cells += [f"{100 * figures['mean']:.1f}", f"{100 * figures['deviation']:.1f}"]
        lines.append(cells)
    return "\n\n".join((
        f"# {', '.join(names)} on several draws of {len(templates)} templates",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## Accuracy and its spread over the draws",
        symbolic_table(found),
        "Per cent. *Accuracy*: of all questions, with its 95 % Wilson interval. *Mean*, "
        "*deviation*: of the accuracies of whole draws, each with one question of every template "
        "(as arXiv:2410.05229 reports them). *By chance*: the deviation to expect if the draws of "
        "a template differ by chance alone. Deviations are of samples (n - 1).",
        "## By template",
        table(head, lines),
        "Per cent right over the draws of a template, and the deviation of right (100) or not (0).",
    )) + "\n"  # fmt: skip


def symbolic_table(found: list[dict]) -> str:
    """Return the models' accuracies with their spread over whole draws."""
    lines = []
    for each in found:
        draws = each["by_draw"]
        spread = [draws["mean"], draws["deviation"], each["expected"]]
        shown = ["too few" if x is None else f"{100 * x:.1f}" for x in spread]
        lines.append([each["model"], percent(each["accuracy"]), draws["draws"], *shown])
    return table(["model", "accuracy", "draws", "mean", "deviation", "by chance"], lines)
