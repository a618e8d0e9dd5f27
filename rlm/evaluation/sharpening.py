"""Whether training taught a model something new, or only made it surer: pass@k of both models.

pass@1 says how surely a model answers, pass@k of a large k what it can answer at all. Training
that sharpens raises the first and leaves the second; training that teaches something new raises
the second. It asks no model: it counts the right samples of each question.

    found = pass_at_k_metrics([Sampled("sft", [0, 3, 64], 64), Sampled("grpo", [9, 60, 64], 64)])
    print(brief(found))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlm.evaluation.markdown import WIDTH, percent, points, table
from rlm.evaluation.statistics import bootstrap, pass_at_k, pass_sizes, wilson
from rlm.seeds import derive

RESAMPLES = 10_000
# Fewer questions than these may all change one way by chance: a sign test of 5 has p 0.06.
FEWEST = 6
ROSE, FELL, SAME = "rose", "fell", "stayed within noise"

# What follows from the direction of pass@1 and of pass@k with the largest k.
FINDINGS = {
    (ROSE, ROSE): "it learned something new, and answers more surely",
    (ROSE, SAME): "sharpening; it answers more surely what it could answer before",
    (ROSE, FELL): "sharpening at a price; it answers more surely, and lost questions that it could "
    "answer before",
    (SAME, ROSE): "it learned something new, though it answers no more surely",
    (SAME, SAME): "no difference is shown",
    (SAME, FELL): "it lost questions that it could answer before",
    (FELL, ROSE): "it learned something new, and answers less surely",
    (FELL, SAME): "it answers less surely what it could answer before",
    (FELL, FELL): "it lost questions that it could answer before, and answers less surely",
}


@dataclass(frozen=True)
class Sampled:
    """right: how many of a model's `samples` are right, a number a question, in their order."""

    name: str
    right: list[int]
    samples: int


def pairs_of(models: Sequence) -> list[tuple]:
    """Return (before, after) of what is compared: each with the first and with the one before.

    >>> pairs_of(["base", "sft", "grpo"])
    [('base', 'sft'), ('base', 'grpo'), ('sft', 'grpo')]
    """
    first, *others = models
    return [(first, other) for other in others] + list(pairwise(others))


def pass_at_k_metrics(
    models: list[Sampled], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict | None:
    """Return pass@k of models that were asked the same questions, and what changed.

    k: `pass_sizes` of the fewest samples that a model has. models: each one's share with its 95 %
    Wilson interval over the questions, too wide rather than too narrow below the largest k.
    differences: of each pair of `pairs_of`, with the 95 % interval of paired bootstrap resamples
    of the questions, the questions whose pass@k changed, and the sentence of `finding`. None where
    a model has one sample of each question: then there is nothing that pass@k adds. ValueError
    for fewer than two models, no questions, or not the same number of them.
    """
    counts = {len(model.right) for model in models}
    if len(models) < 2 or len(counts) > 1 or 0 in counts:
        raise ValueError(f"pass@k of {len(models)} models with {sorted(counts)} questions: need "
                         "two or more models, asked the same questions")  # fmt: skip
    (questions,) = counts
    fewest = min(model.samples for model in models)
    if fewest < 2:
        return None
    sizes = pass_sizes(fewest)
    chances = {
        model.name: {k: [pass_at_k(model.samples, r, k) for r in model.right] for k in sizes}
        for model in models
    }
    shown = [
        {
            "model": model.name,
            "samples": model.samples,
            "pass_at_k": [_share(k, chances[model.name][k]) for k in sizes],
        }
        for model in models
    ]
    differences = []
    for before, after in ((a.name, b.name) for a, b in pairs_of(models)):
        changes = [
            _change(k, chances[before][k], chances[after][k], resamples,
                    derive("bootstrap", seed, before, after, f"pass@{k}"))
            for k in sizes
        ]  # fmt: skip
        left = sum(1 - chance for chance in chances[before][sizes[-1]])
        told = finding(changes[0], changes[-1], left, questions)
        differences.append({"before": before, "after": after, "changes": changes, "finding": told})
    return {"questions": questions, "resamples": resamples, "models": shown,
            "differences": differences}  # fmt: skip


def _share(k: int, chances: list[float]) -> dict:
    total = min(sum(chances), len(chances))  # a sum of thirds may round to more
    low, high = wilson(total, len(chances))
    return {"k": k, "share": total / len(chances), "low": low, "high": high}


def _change(k: int, before: list[float], after: list[float], resamples: int, seed: int) -> dict:
    changes = [b - a for a, b in zip(before, after, strict=True)]
    low, high = bootstrap(changes, resamples, seed)
    return {
        "k": k,
        "difference": sum(changes) / len(changes),
        "low": low,
        "high": high,
        "changed": sum(abs(change) > 1e-9 for change in changes),
    }


def direction(change: dict) -> str:
    """Return whether pass@k rose, fell, or stayed within noise.

    It changed where its interval is on one side of zero and `FEWEST` questions or more changed;
    the difference itself decides nothing.
    """
    if change["changed"] < FEWEST or change["low"] <= 0 <= change["high"]:
        return SAME
    return ROSE if change["low"] > 0 else FELL


def finding(first: dict, last: dict, left: float, questions: int) -> str:
    """Return what the changes of pass@1 and of pass@k with the largest k say, a sentence or two.

    left: questions that the model before did not solve in k tries. Where they are fewer than
    `FEWEST`, pass@k cannot be seen to rise, and the sentence says so.
    """
    ways = direction(first), direction(last)
    told = f"pass@{first['k']} {ways[0]}, pass@{last['k']} {ways[1]}: {FINDINGS[ways]}."
    if ways[1] == SAME and left < FEWEST:
        told += (f" Questions left to gain: {left:.0f} of {questions}, too few for "
                 f"pass@{last['k']} to be seen to rise.")  # fmt: skip
    return told


# --- the card and the console


def card(found: dict) -> str:
    """Return the card's section."""
    head = ["from → to", "", "before", "after", "points", "changed"]
    lines, told = [], []
    for each in found["differences"]:
        pair = f"{each['before']} → {each['after']}"
        for before, after, change in changes_of(found, each):
            lines.append([pair, f"pass@{change['k']}", percent(before), percent(after),
                          points(change), change["changed"]])  # fmt: skip
        told.append(f"- {pair}: {each['finding']}")
    return "\n\n".join((
        "## Learned, or only sharpened",
        table(head, lines),
        "\n".join(told),
        "*pass@k*: the chance that one of k samples or more is right, in per cent, by the unbiased "
        "estimator of arXiv:2107.03374, with 95 % Wilson intervals over the questions. *Points*: "
        f"the difference, with the 95 % interval of {found['resamples']:,} paired bootstrap "
        f"resamples of the questions (percentiles). {WIDTH} *Changed*: questions whose pass@k is "
        f"another. *Rose*, *fell*: the interval is on one side of zero, and {FEWEST} questions or "
        "more changed; not corrected for the number of comparisons.",
    ))  # fmt: skip


def brief(found: dict) -> str:
    """Return pass@k of each pair for the console, a line a k, and the sentence."""
    lines = []
    for each in found["differences"]:
        lines.append(f"{each['before']} -> {each['after']}")
        rows = [(f"pass@{change['k']}", percent(before), percent(after), points(change))
                for before, after, change in changes_of(found, each)]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, before, after, change in (
            [cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows
        ):
            lines.append(f"  {name}  {before} -> {after}  {change.rstrip()} points")
        lines.append(f"  {each['finding']}")
    return "\n".join(lines)


def changes_of(found: dict, each: dict) -> list[tuple[dict, dict, dict]]:
    """Return (before, after, change) of each k of one of the differences."""
    shares = {model["model"]: model["pass_at_k"] for model in found["models"]}
    return list(zip(shares[each["before"]], shares[each["after"]], each["changes"], strict=True))
